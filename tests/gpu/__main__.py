"""Everything that needs a GPU, in less than eight minutes: `make gpu`, or `python -m tests.gpu`.

Each part runs in a process of its own, which is cut when its time is over: a part that fails or hangs stops no other.
What earlier parts leave of their time, later ones may use. `gpu.json` and `gpu.md` are written anew every second, and
`log.txt` has what the parts print: a run that is cut short still tells. It ends with status 0 if every part has passed,
1 if one has not, and 2, loudly, without a CUDA device.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from benchmarks.environment import environment
from benchmarks.tables import table, write
from tests.gpu import NO_CUDA

ROOT = Path(__file__).parents[2]
REHEARSAL = "**A rehearsal on a CPU, at reduced sizes. It says that the parts run, and nothing of a GPU.**"
NOT_REACHED, RUNNING, PASSED = "not reached", "running", "passed"
# torch's pool of compilers can keep a process from ending: Python 3.12 with torch 2.11 waits 300 s for it.
SETTINGS = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
PATIENCE = 3
"""How many times longer a reduced run may take: it may have two slow processors."""


class Part(NamedTuple):
    """A module to run, with its arguments, and the seconds that it has at least."""

    name: str
    seconds: float
    command: str


SUITES = "training,readings,monitoring,memory"
PARTS = (
    Part("checks", 70, "tests.gpu.check --parts checks"),
    Part("processes", 110, "tests.gpu.check --parts nccl fsdp"),
    Part("g1", 100, f"benchmarks --only {SUITES},trainer --sizes g1 --repeats 2"),
    Part("g2", 95, f"benchmarks --only {SUITES} --sizes g2 --repeats 1"),
    Part("transformers", 95, "benchmarks --only gpt_and_vit --repeats 1"),
)
"""What matters most comes first, and so do checks; seconds for one H200 with 16 processors."""


@dataclass
class Result:
    """What has become of a part, and what it has written so far."""

    at_most: float
    status: str = NOT_REACHED
    seconds: float = 0.0
    found: dict[str, Any] = field(default_factory=dict)
    text: str = ""

    def read(self, output: Path) -> None:
        """Take what the part has written, if it has."""
        with suppress(FileNotFoundError):
            self.found = json.loads(output.read_text(encoding="utf-8"))
            self.text = output.with_suffix(".md").read_text(encoding="utf-8")


def command_of(part: Part, device: str, is_reduced: bool, output: Path) -> list[str]:
    """The command of a part; reduced, benchmarks take networks that a CPU trains in milliseconds."""
    module, *arguments = part.command.split()
    if is_reduced and module == "benchmarks":
        arguments = [f"{one}-reduced" if one in ("g1", "g2") else one for one in arguments] + ["--quick"]
    places = ["--device", device, "--output", str(output)]
    return [sys.executable, "-W", "ignore", "-m", module, *arguments, *places]


def run(command: list[str], result: Result, deadline: float, log: Path, save: Callable[[], None]) -> None:
    """Run a part until it ends or its time is over; the result changes meanwhile, and is saved."""
    start, said_before, output = time.monotonic(), log.stat().st_size, Path(command[-1])
    settings = os.environ | SETTINGS | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with log.open("ab") as file:
        places = {"stdout": file, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, cwd=ROOT, env=settings, process_group=0, **places)
    result.status, code = RUNNING, None
    try:
        while code is None and time.monotonic() < deadline:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout=min(1.0, max(0.0, deadline - time.monotonic())))
            result.seconds = time.monotonic() - start
            result.read(output)
            save()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and the processes that it has started
        process.wait()
    result.status = PASSED if code == 0 else f"FAILED with status {code}" if code is not None else "CUT"
    if code != 0:
        said = log.read_bytes()[said_before:].decode(errors="replace").splitlines()[-15:]
        result.text += "\n".join(["", "It said last:", "", "```", *said, "```", ""])
    save()


@contextmanager
def terminable():
    """Let SIGTERM end the part under way too."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def report(results: dict[str, Result], where: dict[str, Any], is_rehearsal: bool) -> tuple[dict[str, Any], str]:
    """All results, for JSON and as Markdown."""
    parts = {
        name: {"status": one.status, "seconds": one.seconds, "at most": one.at_most} | one.found
        for name, one in results.items()
    }
    lines = [(name, one.status, f"{one.seconds:.0f}", f"{one.at_most:.0f}") for name, one in results.items()]
    text = ["# The GPU run", *([REHEARSAL] if is_rehearsal else [])]
    text += ["\n".join(f"- {name}: {value}" for name, value in where.items())]
    text += [table(("part", "result", "seconds", "its own time"), lines)]
    text += [f"# {name}: {one.status}\n\n{one.text}" for name, one in results.items()]
    return {"rehearsal": is_rehearsal, "environment": where, "parts": parts}, "\n\n".join(text)


def run_all(parts: list[Part], device: str, is_reduced: bool, folder: Path) -> dict[str, Result]:
    """Run parts one after the other and write what they find."""
    where, results = environment(torch.device(device)), dict[str, Result]()
    for part in parts:
        results[part.name] = Result(part.seconds * (PATIENCE if is_reduced else 1))
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    log.write_bytes(b"")

    def save() -> None:
        write(folder / "gpu.json", *report(results, where, device == "cpu"))

    save()
    deadline = time.monotonic()
    with TemporaryDirectory() as outputs, terminable():
        for part in parts:
            one, output = results[part.name], Path(outputs) / f"{part.name}.json"
            deadline += one.at_most
            print(f"{part.name} …", flush=True)
            run(command_of(part, device, is_reduced, output), one, deadline, log, save)
            print(f"\n{one.text}\n{part.name}: {one.status} after {one.seconds:.0f} s\n", flush=True)
    return results


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--reduced", action="store_true", help="small networks; a CPU takes no others")
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], help="by default all")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), metavar="FOLDER", help="default: %(default)s")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print(NO_CUDA, file=sys.stderr)
        return 2
    if given.device == "cpu" and not given.reduced:
        parser.error("`--device cpu` takes `--reduced`: at full sizes it would run for hours.")
    chosen = [part for part in PARTS if given.parts is None or part.name in given.parts]
    results = run_all(chosen, given.device, given.reduced, given.output.resolve())
    print(REHEARSAL if given.device == "cpu" else "", f"Written to {given.output}.", sep="\n")
    return int(any(result.status != PASSED for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
