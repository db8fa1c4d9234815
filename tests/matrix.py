"""The fast tests and README's program on each Python at hand, and on the oldest and newest versions allowed.

`python -m tests.matrix` builds the wheel. Each cell is a fresh environment outside of the checkout: it holds the wheel,
its extras, and what the fast tests need. The exit status is 1 if a cell failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tests.pages import ROOT, blocks

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SHOWN = ("torch", "lightning", "torchmetrics", "tensorboard", "numpy")
FAST = ("-q", "-m", "not slow", "-n", "auto", "--maxprocesses", "4", "--dist", "worksteal")
EPOCHS = 200
"""Epochs of README's program, which has 4000."""


class Cell(NamedTuple):
    """A Python and what is installed beside the wheel: versions that are pinned, the oldest or the newest allowed."""

    python: str
    executable: str
    versions: str

    @property
    def name(self) -> str:
        """As `--only` takes it."""
        return f"{self.python}-{self.versions}"


class Outcome(NamedTuple):
    """A row of the table; no counts where the tests did not run."""

    cell: Cell
    installed: dict[str, str]
    counts: dict[str, int]
    program: str
    seconds: float

    @property
    def has_passed(self) -> bool:
        """Tests ran, none failed, and README's program ended well."""
        return self.counts.get("passed", 0) > 0 and not self.counts["failed"] and self.program == "passed"


def interpreters() -> dict[str, str]:
    """Executables by version, oldest first: of the Pythons of the PATH and of pyenv that the package allows."""
    candidates = [sys.executable, *(shutil.which(f"python3.{minor}") or "" for minor in range(8, 30))]
    if shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=True).stdout.strip()
        candidates += [str(path) for path in sorted(Path(root).glob("versions/*/bin/python3"))]
    allowed, found = SpecifierSet(PROJECT["requires-python"]), dict[str, str]()
    for executable in filter(None, candidates):
        code = "import ensurepip, platform, venv; print(platform.python_version())"
        asked = subprocess.run([executable, "-c", code], capture_output=True, text=True, check=False)
        version = asked.stdout.strip()
        if asked.returncode == 0 and allowed.contains(version, prereleases=True):
            found.setdefault(".".join(version.split(".")[:2]), executable)
    return dict(sorted(found.items(), key=lambda item: Version(item[0])))


def cells(found: dict[str, str]) -> list[Cell]:
    """Each Python with pinned versions; its oldest and newest with the oldest; its newest with the newest."""
    oldest, newest = next(iter(found)), next(reversed(found))
    pairs = [*((python, "pinned") for python in found), (oldest, "oldest"), (newest, "oldest"), (newest, "newest")]
    return [Cell(python, found[python], versions) for python, versions in dict.fromkeys(pairs)]


def lower_bounds(python: str) -> Iterator[str]:
    """Every requirement of the package and its extras at its lower bound, as far as it is one of this Python."""
    extras = PROJECT["optional-dependencies"]
    for text in (*PROJECT["dependencies"], *(text for extra in user_extras() for text in extras[extra])):
        requirement = Requirement(text)
        if requirement.name != PROJECT["name"] and (
            requirement.marker is None or requirement.marker.evaluate({"python_version": python})
        ):
            (bound,) = (part.version for part in requirement.specifier if part.operator == ">=")
            yield f"{requirement.name}=={bound}"


def user_extras() -> list[str]:
    """Extras that a page tells users to install, and that of the fast tests."""
    return ["cli", "plot", "digits", "report", "rich", "test"]


def run(command: list[str | Path], folder: Path, log: Path, **variables: str) -> int:
    """Run a command in a folder, without what this process would hand on; its output is added to a file."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_"))}
    with log.open("a", encoding="utf-8") as output:
        output.write(f"\n$ {' '.join(map(str, command))}\n")
        output.flush()
        ended = subprocess.run(
            command, cwd=folder, env=environment | variables, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    return ended.returncode


def checkout_without_package(folder: Path) -> Path:
    """A copy of what git knows of the checkout but the package, so that the tests import the wheel."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for name in names.stdout.decode().splitlines():
        if not name.startswith("lightning_leaky/") and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def readme_program() -> str:
    """The first program of the README, with fewer epochs."""
    program = next(block for block in blocks(ROOT / "README.md", "python") if ".fit(" in block)
    return re.sub(r"max_epochs=\d+", f"max_epochs={EPOCHS}", program)


def counts_of(report: Path) -> dict[str, int]:
    """How many tests of a JUnit report passed, failed and were skipped."""
    (suite,) = ElementTree.parse(report).getroot()
    number = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    failed = number["failures"] + number["errors"]
    return {"passed": number["tests"] - failed - number["skipped"], "failed": failed, "skipped": number["skipped"]}


def install(cell: Cell, wheel: Path, folder: Path, log: Path) -> Path | None:
    """A Python of a new environment that holds the wheel and its extras; None where it could not be made."""
    constraints = folder / "constraints.txt"
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    text = {"pinned": pinned, "oldest": "\n".join(lower_bounds(cell.python)), "newest": ""}[cell.versions]
    constraints.write_text(text, encoding="utf-8")
    python = folder / "environment" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--constraint", constraints]
    steps: list[list[str | Path]] = [
        [cell.executable, "-m", "venv", folder / "environment"],
        [*pip, "torch"],  # alone: the Makefile says why
        [*pip, f"{wheel}[{','.join(user_extras())}]"],
    ]
    return python if all(run(step, folder, log) == 0 for step in steps) else None


def measure(cell: Cell, wheel: Path, logs: Path) -> Outcome:
    """Install, test, run the program, and take the environment away."""
    start, log = time.perf_counter(), logs / f"{cell.name}.log"
    log.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = install(cell, wheel, folder, log)
        if python is None:
            return Outcome(cell, {}, {}, "not installed", time.perf_counter() - start)
        code = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {SHOWN}}}))"
        installed = json.loads(subprocess.run([python, "-c", code], capture_output=True, check=True).stdout)
        report, checkout = folder / "report.xml", folder / "checkout"
        checkout_without_package(checkout)
        run([python, "-m", "pytest", *FAST, f"--junitxml={report}"], checkout, log)
        counts = counts_of(report) if report.exists() else {}
        (folder / "program.py").write_text(readme_program(), encoding="utf-8")
        program = "passed" if run([python, "program.py"], folder, log) == 0 else "failed"
    return Outcome(cell, installed, counts, program, time.perf_counter() - start)


def row(outcome: Outcome) -> str:
    """A line of the table."""
    numbers = [outcome.counts.get(name, "–") for name in ("passed", "failed", "skipped")]
    versions = [outcome.installed.get(name, "–") for name in SHOWN]
    words = [outcome.cell.python, outcome.cell.versions, *versions, *numbers, outcome.program, f"{outcome.seconds:.0f}"]
    return f"| {' | '.join(map(str, words))} |"


def table(outcomes: list[Outcome]) -> str:
    """All lines under their heading."""
    names = ["Python", "versions", *SHOWN, "passed", "failed", "skipped", "README's program", "seconds"]
    return "\n".join([f"| {' | '.join(names)} |", "| --- " * len(names) + "|", *map(row, outcomes)])


def main() -> int:
    """Run the cells that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="cells by name, as 3.13-pinned or *-oldest")
    parser.add_argument("--other", action="store_true", help="only the newest Python, pinned, if it is not this one")
    parser.add_argument("--logs", type=Path, default=ROOT / "runs" / "matrix", help="folder of logs (%(default)s)")
    options = parser.parse_args()
    found = interpreters()
    newest = next(reversed(found))
    if options.other and newest == f"{sys.version_info.major}.{sys.version_info.minor}":
        print(
            f"NOT RUN: no Python newer than {newest} is at hand. Install one, or make pyenv list it.", file=sys.stderr
        )
        return 0
    only = f"{newest}-pinned" if options.other else options.only
    chosen = [cell for cell in cells(found) if fnmatch(cell.name, only)]
    if not chosen:
        names = ", ".join(cell.name for cell in cells(found))
        print(f"`--only` must match a cell, got {only!r}; there are {names}.", file=sys.stderr)
        return 2
    options.logs.mkdir(parents=True, exist_ok=True)
    outcomes = list[Outcome]()
    with tempfile.TemporaryDirectory() as dist:
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", dist, str(ROOT)]
        subprocess.run(build, check=True)
        (wheel,) = Path(dist).glob("*.whl")
        for cell in chosen:
            outcomes.append(measure(cell, wheel, options.logs))
            print(row(outcomes[-1]), flush=True)
            (options.logs / "table.md").write_text(f"{table(outcomes)}\n", encoding="utf-8")
    print(f"\n{table(outcomes)}\n\nLogs: {options.logs}")
    return int(not all(outcome.has_passed for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
