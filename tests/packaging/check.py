"""Whether what is built installs, and works where nothing else is: `python -m tests.packaging.check` prints a table.

It builds the source archive, from that the wheel, and installs the wheel with its dependencies, no extras, into an
empty environment in a temporary folder. It ends with status 0 if every check has passed, and 1 if one failed.
"""

import argparse
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.packaging import archives, inside, typed
from tests.packaging.commands import run_command
from tests.packaging.product import Product, build, install
from tests.packaging.table import HEADER, Check, Row, print_counts, run_all

MAX_IMPORT_SECONDS = 0.2
TRIES = 5
IMPORT = """
import lightning, time
start = time.perf_counter()
import lightning_leaky
print(time.perf_counter() - start)
"""


def start_inside(product: Product) -> None:
    """Run what is checked inside of the environment."""
    script = Path(inside.__file__)
    # -I: neither the folder of the script nor PYTHONPATH may bring modules that are not installed.
    run_command(product.python, "-I", script, product.folder / "inside.json", cwd=product.empty_folder())


def inside_check(name: str) -> Check:
    """A check that ran inside of the environment."""

    def check(product: Product) -> None:
        wrong = json.loads((product.folder / "inside.json").read_text(encoding="utf-8"))[name]
        assert not wrong, "; ".join(wrong)

    return check


def index_takes_it(product: Product) -> None:
    """A package index takes both archives and can show the README."""
    run_command(sys.executable, "-m", "twine", "check", "--strict", product.wheel, product.sdist, cwd=product.folder)


def types_are_seen(product: Product) -> None:
    """mypy, run on a user's file, reads the types of the installed package."""
    wrong = typed.differences(product.empty_folder(), product.python)
    assert not wrong, wrong


def import_is_quick(product: Product) -> str:
    """Importing takes less than the bound beyond importing Lightning, once at least: load of the machine only adds."""
    least = math.inf
    for _ in range(TRIES):
        least = min(least, float(run_command(product.python, "-I", "-c", IMPORT, cwd=product.folder)))
        if least < MAX_IMPORT_SECONDS:
            return f"{least:.3f} s of {MAX_IMPORT_SECONDS}"
    raise AssertionError(f"{least:.3f} s at best of {TRIES} imports; the bound is {MAX_IMPORT_SECONDS} s")


# Nothing can be checked where one of these has failed.
STEPS: dict[str, Check] = {
    "build": build,
    "install into an empty environment": install,
    "start there": start_inside,
}
CHECKS: dict[str, Check] = {
    "wheel": lambda product: archives.wheel_is_right(product.wheel),
    "source archive": lambda product: archives.sdist_is_right(product.sdist),
    "sizes": lambda product: archives.sizes_are_right(product.wheel, product.sdist),
    "metadata": lambda product: archives.metadata_is_right(product.wheel),
    "twine check --strict": index_takes_it,
    "dependencies agree": lambda product: product.pip("check"),
    **{name: inside_check(name) for name in inside.CHECKS},
    "import time beyond Lightning's": import_is_quick,
    "types": types_are_seen,
}


def check_product(product: Product) -> list[Row]:
    """Build, install and check."""
    rows: list[Row] = []
    for name, step in STEPS.items():
        rows += run_all({name: step}, product)
        if rows[-1].has_failed:
            return rows
    return rows + run_all(CHECKS, product)


def main(arguments: list[str] | None = None, before: Mapping[str, Check] | None = None) -> int:
    """Print the table.

    Args:
        arguments: The command line's; by default those of the process.
        before: Checks of the checkout, which run before anything is built of it.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dist", type=Path, metavar="FOLDER", help="where to leave the archives if all checks pass")
    given = parser.parse_args(arguments)
    print(HEADER)
    with tempfile.TemporaryDirectory() as folder:
        product = Product(Path(folder))
        rows = run_all(before or {}, archives.ROOT) + check_product(product)
        if print_counts(rows):
            return 1
        if given.dist is not None:
            shutil.copytree(product.dist, given.dist, dirs_exist_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
