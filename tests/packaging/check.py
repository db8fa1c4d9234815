"""Whether what is built installs, and works where nothing else is: `python -m tests.packaging.check` prints a table.

It builds the source archive, from that the wheel, and installs the wheel with its dependencies, no extras, into an
empty environment in a temporary folder. It ends with status 0 if every check has passed, and 1 if one failed.
"""

import argparse
import shutil
import sys
import tempfile
import time
import traceback
import venv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.packaging import archives, typed
from tests.packaging.import_time import import_time
from tests.packaging.scripts import run_command, run_script

CONSTRAINTS = archives.ROOT / "constraints.txt"
MAX_IMPORT_SECONDS = 0.2
REPEATS = 9


class Product(NamedTuple):
    """What is checked, and a folder outside of the checkout to do it in."""

    folder: Path

    @property
    def wheel(self) -> Path:
        """The wheel."""
        return next((self.folder / "dist").glob("*.whl"))

    @property
    def sdist(self) -> Path:
        """The source archive."""
        return next((self.folder / "dist").glob("*.tar.gz"))

    @property
    def python(self) -> Path:
        """Python of the environment that holds the wheel and its dependencies."""
        return self.folder / "environment" / "bin" / "python"

    def empty_folder(self) -> Path:
        """A new folder, so that no check sees what another has written."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def pip(self, *arguments: str | Path) -> None:
        """Run pip in the environment."""
        run_command(self.python, "-I", "-m", "pip", *arguments, cwd=self.folder)


def build(product: Product) -> None:
    """Build both archives, with the pinned build backend."""
    options = ("--outdir", product.folder / "dist", archives.ROOT)
    run_command(sys.executable, "-m", "build", *options, cwd=product.folder, PIP_CONSTRAINT=str(CONSTRAINTS))


def install(product: Product) -> None:
    """Make the environment and install the wheel; torch first, for the reason that the Makefile gives."""
    venv.create(product.python.parent.parent, with_pip=True)
    for what in ("torch", product.wheel):
        product.pip("install", "--constraint", CONSTRAINTS, what)


def script(name: str, *arguments: str) -> Callable[[Product], None]:
    """A check that runs a script of this folder in the environment."""

    def check(product: Product) -> None:
        run_script(name, *arguments, python=product.python, cwd=product.empty_folder())

    return check


def dependencies_agree(product: Product) -> None:
    """No installed package lacks another or wants another version of it."""
    product.pip("check")


def types_are_seen(product: Product) -> None:
    """mypy, run on a user's file, reads the types of the installed package."""
    wrong = typed.differences(product.empty_folder(), f"--python-executable={product.python}")
    assert not wrong, wrong


def import_is_quick(product: Product) -> str:
    """Importing takes less than the bound beyond importing Lightning."""
    medians = import_time(product.python, product.folder, REPEATS)
    shown = f"{medians.same_process:.3f} s, alternating processes {medians.alternating:.3f} s"
    assert max(medians) < MAX_IMPORT_SECONDS, f"{shown}; the bound is {MAX_IMPORT_SECONDS} s"
    return shown


Check = Callable[[Product], str | None]
# Nothing can be checked where one of these has failed.
STEPS: dict[str, Check] = {"build": build, "install into an empty environment": install}
CHECKS: dict[str, Check] = {
    "wheel": lambda product: archives.wheel_is_right(product.wheel),
    "source archive": lambda product: archives.sdist_is_right(product.sdist),
    "metadata": lambda product: archives.metadata_is_right(product.wheel),
    "dependencies": dependencies_agree,
    "installed package": script("installed.py"),
    "a fit without extras": script("user.py"),
    # jinja2 comes with torch, which does not promise it.
    "messages name the missing extras": script("missing.py", "jinja2"),
    "no side effects of the import": script("side_effects.py", archives.PACKAGE),
    "types": types_are_seen,
    "import time beyond Lightning's": import_is_quick,
}


class Row(NamedTuple):
    """A line of the table."""

    name: str
    result: str
    seconds: float


def run(name: str, check: Check, product: Product) -> Row:
    """Run one check; whatever it raises becomes its result, and the traceback goes to stderr."""
    start = time.perf_counter()
    try:
        detail = check(product)
        result = f"passed: {detail}" if detail else "passed"
    except Exception as error:
        traceback.print_exc()
        reason = " ".join(str(error).replace("|", "/").split())
        result = f"FAILED: {type(error).__name__}: {reason[:300]}"
    return Row(name, result, time.perf_counter() - start)


def has_failed(row: Row) -> bool:
    """Whether a check did not pass."""
    return row.result.startswith("FAILED")


def run_all(product: Product) -> list[Row]:
    """Build, install and check."""
    rows = []
    for name, step in STEPS.items():
        rows.append(run(name, step, product))
        if has_failed(rows[-1]):
            return rows
    return rows + [run(name, check, product) for name, check in CHECKS.items()]


def table(rows: list[Row]) -> str:
    """The rows and how many of each result there are."""
    failed = sum(map(has_failed, rows))
    lines = [f"| {name} | {result} | {seconds:.1f} |" for name, result, seconds in rows]
    header = ["| check | result | seconds |", "| --- | --- | --- |"]
    return "\n".join([*header, *lines, "", f"{len(rows) - failed} passed, {failed} failed"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dist", type=Path, metavar="FOLDER", help="where to leave the archives if all checks pass")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        product = Product(Path(folder))
        rows = run_all(product)
        print(table(rows))
        if any(map(has_failed, rows)):
            return 1
        if given.dist is not None:
            shutil.copytree(product.folder / "dist", given.dist, dirs_exist_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
