"""A campaign of faults: each run is disturbed, resumed, and compared with one that was left alone.

    python -m tests.campaigns.faults --runs 300 --seed 0 --workers 2
    python -m tests.campaigns.faults --only kill --seed 17 --runs 1

A run is a fault and a seed, which says when and how it happens. Full disks, and disks of their own for the checkpoints,
are small tmpfs that only root can mount: where that fails, runs are reported as not run. The exit status is 0 only if
all runs survived.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.campaigns.checks import (
    LostError,
    Reference,
    check_checkpoints,
    check_end,
    check_logs,
    check_steps,
    check_weights,
    check_words,
    require,
)
from tests.campaigns.disturbances import FAULTS as FAULTS_OF_ONE
from tests.campaigns.disturbances import Counting, Disturbance
from tests.campaigns.fit import Fault, append, lines_of, newest, work
from tests.campaigns.settings import Places, Setting
from tests.campaigns.several import FAULTS_OF_SEVERAL, GoesOn, Late
from tests.campaigns.telling import report

FAULTS = {**FAULTS_OF_ONE, **FAULTS_OF_SEVERAL}
DEADLINE = 90.0  # seconds for a fit, which takes two to five
GRACE = 60.0  # seconds for a process to notice that the other one is gone


class NotRunError(Exception):
    """A fault could not be brought about here."""


class Processes:
    """Starts the processes of a fit by a server that has imported everything, and never waits for them forever."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([work.__module__, GoesOn.__module__])
        self.lock = threading.Lock()  # a process is started and reaped by one thread at a time
        self.ports = itertools.count(random.SystemRandom().randrange(15000, 25000))

    def run(
        self,
        places: Places,
        setting: Setting,
        attempt: int = 0,
        checkpoint: Path | None = None,
        fault: Fault | None = None,
    ) -> list[int | None]:
        """Exit codes of the processes of one fit; ``None`` for one that had to be killed at its deadline."""
        hit = 0 if fault is None else fault.rank
        with self.lock:
            port = self.free_port()
            processes = [
                self.context.Process(
                    target=work,
                    args=(rank, port, places, setting, attempt, checkpoint, fault if rank == hit else None),
                )
                for rank in range(setting.processes)
            ]
            for process in processes:
                process.start()
        has_ended = self.wait(processes)
        with self.lock:
            for process in processes:
                process.kill()  # it starts no processes of its own
                process.join()
        return [process.exitcode if ended else None for process, ended in zip(processes, has_ended, strict=True)]

    def wait(self, processes: Sequence[BaseProcess]) -> list[bool]:
        """Which processes end by themselves: the first within its deadline, the others a while after it."""
        deadline = time.monotonic() + DEADLINE
        running = [process.sentinel for process in processes]
        while running and time.monotonic() < deadline:
            ended = wait(running, timeout=deadline - time.monotonic())
            if ended:
                running = [sentinel for sentinel in running if sentinel not in ended]
                deadline = min(deadline, time.monotonic() + GRACE)
        return [process.sentinel not in running for process in processes]

    def free_port(self) -> int:
        """A port below those that the system gives away, for one pair of processes."""
        for port in self.ports:
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)):
                    return port
        raise AssertionError


class Campaign:
    """Runs, and the undisturbed ones that they are compared with."""

    def __init__(self, root: Path, with_callbacks: bool = True, delay: float = 30.0) -> None:
        self.root, self.with_callbacks, self.delay = root, with_callbacks, delay
        self.processes = Processes()
        self.lock = threading.Lock()
        self.references: dict[Setting, Reference] = {}

    def reference(self, setting: Setting) -> Reference:
        """The undisturbed run of a setting, run when it is first asked for."""
        with self.lock:
            if setting not in self.references:
                places = self.new_places()
                reference = Reference(setting, places)
                if any(self.processes.run(places, setting, fault=Counting())) or reference.errors:
                    raise RuntimeError(f"the undisturbed run of {setting} failed: {reference.errors} {outputs(places)}")
                self.references[setting] = reference
            return self.references[setting]

    def new_places(self, **where: bool) -> Places:
        return Places(Path(tempfile.mkdtemp(dir=self.root)), **where)

    def play(self, name: str, seed: int) -> dict[str, Any]:
        """One run, from its seed to what became of it."""
        began = time.monotonic()
        result: dict[str, Any] = {"fault": name, "seed": seed}
        try:
            fault = FAULTS[name](random.Random(f"{name} {seed}"), self.reference, self.with_callbacks)
            fault = replace(fault, delay=self.delay) if isinstance(fault, Late) else fault
            result |= {"drawn": repr(fault), "processes": fault.setting.processes}
            places = self.new_places(temporary_on_disk=fault.temporary_on_disk, logs_on_disk=fault.logs_on_disk)
            with disk(places, fault.disk_bytes):
                try:
                    result |= {"outcome": "survived", **self.disturb_and_resume(fault, places)}
                except LostError as error:
                    result |= {"outcome": "lost", "reason": str(error), "output": outputs(places)}
        except NotRunError as error:
            result |= {"outcome": "not run", "reason": str(error)}
        except Exception:  # of the campaign itself: it must not be taken for a run that survived
            result |= {"outcome": "lost", "reason": traceback.format_exc()}
        return result | {"seconds": round(time.monotonic() - began, 1)}

    def disturb_and_resume(self, fault: Disturbance, places: Places) -> dict[str, Any]:
        """Raise LostError as soon as something is not as it must be."""
        reference, last = self.reference(fault.compared_with), fault.last_clean_step
        began = time.monotonic()
        codes = self.processes.run(places, fault.setting, fault=fault)
        found = {"fit_seconds": round(time.monotonic() - began, 1)}
        found["ends"] = [self.check_process(fault, places, rank, code) for rank, code in enumerate(codes)]
        if isinstance(fault, GoesOn):
            fault.check_whole(places, reference)
            return found
        check_steps(places, reference, 0, last)
        torn = check_checkpoints(places, reference, 0, last)
        check_logs(places, reference, 0, last)

        has_resumed = places.notes("end", 1, 0).exists()
        if not has_resumed:
            enlarge(places, fault.disk_bytes)
            codes = self.processes.run(places, fault.setting, 1, newest(places.checkpoints, last))
        for rank, code in enumerate(codes):
            require(code == 0, f"process {rank} of the resumed run ended with exit code {code}")
            end = lines_of(places.notes("end", 1, rank))[0]
            require(end["error"] is None, f"process {rank} of the resumed run ended with {end['error']}")
            check_end(end)
        check_steps(places, reference, 1)
        check_checkpoints(places, reference, 1, last)
        check_logs(places, reference, 1)
        check_weights(places, reference, 1)
        return {**found, "torn": torn, "resumed_from": end["resumed_from"], "resumed_here": has_resumed}

    def check_process(self, fault: Disturbance, places: Places, rank: int, code: int | None) -> str:
        """A process has ended, on its own or as the fault says; one that outlives the fit has no hook left."""
        require(code is not None, f"process {rank} hung")
        is_hit = rank == fault.rank
        if is_hit and code in fault.exit_codes:
            return signal.Signals(-code).name
        require(code == 0, f"process {rank} ended with exit code {code}")
        end = lines_of(places.notes("end", 0, rank))[0]
        check_end(end)
        if is_hit:
            fault.check(end, places)
        else:  # it cannot go on alone, but may have been done
            last = lines_of(places.notes("steps", 0, rank))[-1:]
            is_done = bool(last) and last[0]["step"] == fault.setting.steps
            require(end["error"] is not None or is_done, f"process {rank} went on alone")
            if end["error"] is not None and self.with_callbacks:
                check_words(end)
        return end["error"] or "done"


def outputs(places: Places) -> str:
    """The end of what the processes have printed."""
    return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in sorted(places.root.glob("output_*")))


@contextmanager
def disk(places: Places, size: int | None) -> Iterator[None]:
    """A disk of its own for the checkpoints, for as long as the run takes."""
    places.disk.mkdir()
    if size is None:
        yield
        return
    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(places.disk))
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(places.disk)], check=True)


def enlarge(places: Places, size: int | None) -> None:
    """Make room on a disk."""
    if size is not None:
        mount("-o", f"remount,size={64 << 20}", str(places.disk))


def mount(*arguments: str) -> None:
    try:
        subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotRunError(f"mount failed: {getattr(error, 'stderr', None) or error}") from error


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of the first run; each has the next one")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side")
    parser.add_argument("--only", choices=FAULTS, help="one fault; otherwise they take turns")
    parser.add_argument("--delay", type=float, default=30.0, help="seconds by which a late process is late")
    parser.add_argument("--log", type=Path, help="a line of JSON for each run; runs that it has are not repeated")
    parser.add_argument(
        "--without-callbacks", action="store_true", help="the same faults to Lightning alone, to tell whose a loss is"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    names = [options.only] if options.only else list(FAULTS)
    wanted = [(names[index % len(names)], options.seed + index) for index in range(options.runs)]
    began = time.monotonic()
    results = {(one["fault"], one["seed"]): one for one in (lines_of(options.log) if options.log else [])}
    with tempfile.TemporaryDirectory() as root, ThreadPoolExecutor(options.workers) as pool:
        campaign = Campaign(Path(root), not options.without_callbacks, options.delay)
        futures = [pool.submit(campaign.play, *run) for run in wanted if run not in results]
        try:
            for future in as_completed(futures):
                result = future.result()
                results[result["fault"], result["seed"]] = result
                print(result["fault"], result["seed"], result["outcome"], result.get("reason", ""), flush=True)
                if options.log:
                    append(options.log, result)
        finally:
            pool.shutdown(cancel_futures=True)  # an interrupted campaign ends with the runs that have begun
    found = [results[run] for run in wanted]
    print(report(found, FAULTS, options, time.monotonic() - began))
    return int(any(result["outcome"] != "survived" for result in found))


if __name__ == "__main__":
    sys.exit(main())
