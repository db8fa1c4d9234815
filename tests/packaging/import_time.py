"""How long importing the package takes beyond importing Lightning."""

import statistics
from pathlib import Path
from typing import NamedTuple

from tests.packaging.scripts import run_command

TIMED = """
import time
cpu = time.process_time()
import lightning
between = time.perf_counter()
{}
end = time.perf_counter()
print(end - between, time.process_time() - cpu)
"""
WITHOUT, WITH = TIMED.format(""), TIMED.format("import lightning_leaky")


class ImportTime(NamedTuple):
    """Medians over the repeats, in seconds.

    Attributes:
        same_process: What the clock says between the end of the one import and the end of the other.
        alternating: Processor time of a process with both imports less that of one with Lightning alone; noisier, but
            without the assumption that the first import is over when it returns.
    """

    same_process: float
    alternating: float


def import_time(python: Path, cwd: Path, repeats: int) -> ImportTime:
    """Import in fresh processes, with and without the package in turn."""
    seconds, differences = [], []
    for repeat in range(repeats):
        codes = (WITH, WITHOUT) if repeat % 2 else (WITHOUT, WITH)
        runs = {
            code: [float(text) for text in run_command(python, "-I", "-c", code, cwd=cwd).split()] for code in codes
        }
        seconds.append(runs[WITH][0])
        differences.append(runs[WITH][1] - runs[WITHOUT][1])
    return ImportTime(statistics.median(seconds), statistics.median(differences))
