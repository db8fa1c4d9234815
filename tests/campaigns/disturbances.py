"""The faults: what can happen to a run, when, and how a seed says so."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from tests.campaigns.checks import Reference, has_lost_values, require, rows_of
from tests.campaigns.fit import Session, lines_of
from tests.campaigns.settings import NUM_BATCHES, Places, Setting


@dataclass(frozen=True, kw_only=True)
class Disturbance:
    """What every fault has: its setting, the process it hits, the disk it writes to."""

    setting: Setting
    rank: int = 0
    disk_bytes: int | None = None  # a disk of its own for checkpoints
    temporary_on_disk: bool = False
    logs_on_disk: bool = False
    resumes_here: bool = False
    last_clean_step: int | None = None
    exit_codes: tuple[int, ...] = ()  # of a process that dies

    @property
    def compared_with(self) -> Setting:
        return self.setting

    def arm(self, session: Session) -> None:
        """Nothing to do, where the disk does it."""

    def check(self, end: dict[str, Any], places: Places) -> None:
        """Whether the fault has happened, and the process that lives on has ended as it should."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Killed(Disturbance):
    """A signal at one of the calls and returns of Python's main thread."""

    moment: int
    signal: signal.Signals

    def arm(self, session: Session) -> None:
        session.clock.set(self.moment, partial(self.strike, session))

    def strike(self, session: Session) -> None:
        session.has_happened = True
        os.kill(os.getpid(), self.signal)

    def check(self, end: dict[str, Any], places: Places) -> None:
        require(end["has_happened"] and self.signal == signal.SIGTERM, f"was not hit by {self.signal.name}")


class BrokenError(RuntimeError):
    """Raised on purpose."""


@dataclass(frozen=True, kw_only=True)
class Raises(Disturbance):
    """One call of a method raises, before or after its work; if `again`, all later ones too."""

    method: str
    number: int
    after: bool
    again: bool = False

    def arm(self, session: Session) -> None:
        def action(number: int, call: Callable[[], Any]) -> Any:
            if number != self.number and not (self.again and number > self.number):
                return call()
            if self.after:
                call()
            session.has_happened = True
            raise BrokenError

        session.intercept(self.method, action)

    def check(self, end: dict[str, Any], places: Places) -> None:
        """In a call of our callbacks a logger's error is a warning, and the training goes on."""
        goes_on = self.method in LOGS and has_lost_values(end)
        is_as_planned = end["error"] == "BrokenError()" or (end["error"] is None and goes_on)
        require(end["has_happened"] and is_as_planned, f"ended with {end['error']}")


@dataclass(frozen=True, kw_only=True)
class FullDisk(Disturbance):
    """No space is left at some checkpoint."""

    def check(self, end: dict[str, Any], places: Places) -> None:
        require(os.strerror(errno.ENOSPC) in (end["error"] or ""), f"ended with {end['error']}")


@dataclass(frozen=True, kw_only=True)
class Poisoned(Disturbance):
    """A number in a batch that is none. The run goes on, and is resumed from before."""

    batch: int
    part: int
    value: float

    def arm(self, session: Session) -> None:
        def action(number: int, call: Callable[[], Any]) -> Any:
            batch = call()
            if number == self.batch + 1:
                batch[self.part][0, 0] = self.value
                session.has_happened = True
            return batch

        session.intercept("batches.batch", action)

    def check(self, end: dict[str, Any], places: Places) -> None:
        """No callback has stopped the run or given up its step-sizes; what is no number is logged, and said once."""
        require(end["has_happened"] and end["error"] is None, f"ended with {end['error']}")
        if not self.setting.with_callbacks:
            return
        lines = lines_of(places.notes("steps", 0, self.rank))
        require(lines[-1]["step"] == self.setting.steps, f"stopped at step {lines[-1]['step']}")
        for line in lines:
            rho = torch.tensor(line["step_sizes"])
            sums_to_one = abs(float(rho.sum()) - 1) < 1e-6
            require(bool((rho > 0).all()) and sums_to_one, f"step-sizes {rho} at step {line['step']}")
        readings = {line["step"]: line["reading"] for line in lines if line["step"] > self.last_clean_step}
        self._check_readings({step: reading for step, reading in readings.items() if reading}, end, places)

    def _check_readings(self, readings: dict[int, Any], end: dict[str, Any], places: Places) -> None:
        logged = {int(row["step"]) + 1: row for row in rows_of(places, 0) if "hamiltonian/layer_01" in row}
        for step, reading in readings.items():
            broken = [name for name, values in reading.items() if not torch.tensor(values).isfinite().all()]
            require(bool(broken), f"the reading of step {step} is finite")
            values = [float(value) for key, value in logged[step].items() if key.split("/")[0] in broken]
            require(not torch.tensor(values).isfinite().all(), f"the row of step {step} is finite")
        said = Counter(re.split("[:.]", message)[0] for message in end["warnings"])
        found = [message.partition(" are not finite") for message in end["warnings"]]
        named = [name for names, end, _ in found if end for name in re.findall(r"'(\w+)'", names)]
        require(len(named) == len(set(named)) > 0, f"{named} are warned of")  # at the latest of the last validation
        is_due = any(step % 3 == 1 for step in range(self.last_clean_step + 2, self.setting.steps + 1))
        times = said["Step-sizes left as they are"]
        require(times == 1 or (times == 0 and not is_due), f"{times} warnings of step-sizes")


STEPS = tuple(
    f"module.{name}"
    for name in (
        "training_step",
        "network.layers.1.forward",
        "loss",
        "backward",
        "optimizer_step",
        "lr_scheduler_step",
        "validation_step",
        "on_train_epoch_end",
    )
)
LOGS = tuple(
    f"{logger}.{name}"
    for logger in ("csv", "tensorboard")
    for name in ("log_metrics", "log_hyperparams", "after_save_checkpoint", "save", "finalize")
)


class Counting:
    """No fault: an undisturbed run counts the calls that others may break."""

    rank, resumes_here, last_clean_step = 0, False, None

    def arm(self, session: Session) -> None:
        for method in (*STEPS, *LOGS, "processes.collective"):
            session.intercept(method, partial(self._count, session, method))

    @staticmethod
    def _count(session: Session, method: str, number: int, call: Callable[[], Any]) -> Any:
        session.calls[method] = number
        return call()


# How a seed draws them. An undisturbed run of the same setting says how many moments there are.

References = Callable[[Setting], Reference]
PAGE = 4096


def draw_setting(rng: random.Random, with_callbacks: bool, in_two: float = 0.0) -> Setting:
    return Setting(1 + (rng.random() < in_two), rng.choice([1, 2]), with_callbacks)


def draw_moment(rng: random.Random, reference: Reference, rank: int) -> int:
    """Half of the moments fall into the writing of a checkpoint, which takes a hundredth of the time.

    None falls into the last tenth: the number of calls differs from run to run with how long a process waits.
    """
    if rank == 0 and rng.random() < 0.5:
        save = rng.choice(reference.saves)
        return rng.randint(save["begin"], save["end"])
    return rng.randint(1, reference.end(rank)["calls"]["python"] * 9 // 10)


def draw_kill(rng: random.Random, references: References, with_callbacks: bool) -> Killed:
    setting = draw_setting(rng, with_callbacks, in_two=0.2)
    rank, disk_bytes = rng.randrange(setting.processes), rng.choice([None, 64 << 20])
    return Killed(
        setting=setting,
        rank=rank,
        disk_bytes=disk_bytes,
        moment=draw_moment(rng, references(setting), rank),
        signal=signal.SIGKILL,
        exit_codes=(-signal.SIGKILL,),
    )


def draw_sigterm(rng: random.Random, references: References, with_callbacks: bool) -> Killed:
    setting = draw_setting(rng, with_callbacks)
    return Killed(
        setting=setting,
        moment=draw_moment(rng, references(setting), 0),
        signal=signal.SIGTERM,
        exit_codes=(-signal.SIGTERM,),
    )


def draw_full_disk(rng: random.Random, references: References, with_callbacks: bool) -> FullDisk:
    """A disk of whole pages, on which at least the last checkpoint finds no place."""
    setting = draw_setting(rng, with_callbacks)
    reference = references(setting)
    pages = len(reference.saves) * -(-reference.checkpoint_size // PAGE)
    return FullDisk(
        setting=setting,
        disk_bytes=PAGE * rng.randrange(1, pages),
        temporary_on_disk=rng.random() < 0.5,
        logs_on_disk=rng.random() < 0.5,
    )


def draw_poison(rng: random.Random, references: References, with_callbacks: bool) -> Poisoned:
    setting = draw_setting(rng, with_callbacks)
    batch = rng.randrange(NUM_BATCHES * setting.max_epochs)
    return Poisoned(
        setting=setting,
        batch=batch,
        part=rng.randrange(2),
        value=rng.choice([float("nan"), float("inf"), -float("inf")]),
        last_clean_step=setting.steps_before(batch),
        resumes_here=rng.random() < 0.5,
    )


def draw_exception(rng: random.Random, references: References, with_callbacks: bool) -> Raises:
    setting = draw_setting(rng, with_callbacks, in_two=0.2)
    rank, method = rng.randrange(setting.processes), rng.choice(STEPS)
    return Raises(
        setting=setting,
        rank=rank,
        method=method,
        number=rng.randint(1, references(setting).end(0)["calls"][method]),
        after=rng.random() < 0.5,
        resumes_here=setting.processes == 1 and rng.random() < 0.5,
    )


def draw_logger(rng: random.Random, references: References, with_callbacks: bool) -> Raises:
    setting = draw_setting(rng, with_callbacks)
    method = rng.choice(LOGS)
    return Raises(
        setting=setting,
        method=method,
        number=rng.randint(1, references(setting).end(0)["calls"][method]),
        after=rng.random() < 0.5,
        again=rng.random() < 0.5,
        resumes_here=rng.random() < 0.5,
    )


FAULTS: dict[str, Callable[[random.Random, References, bool], Disturbance]] = {
    "kill": draw_kill,
    "full disk": draw_full_disk,
    "nan or inf": draw_poison,
    "exception": draw_exception,
    "sigterm": draw_sigterm,
    "logger": draw_logger,
}
