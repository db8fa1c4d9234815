"""Checks that run one after another and print a table, line by line."""

import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Check = Callable[[Any], str | None]
"""Raises an error where something is wrong; may return a detail for the table."""
HEADER = "| check | result | seconds |\n| --- | --- | --- |"


class Row(NamedTuple):
    """A line of the table."""

    name: str
    result: str
    seconds: float

    @property
    def has_failed(self) -> bool:
        """Whether the check did not pass."""
        return self.result.startswith("FAILED")


def run(name: str, check: Check, subject: object) -> Row:
    """Run one check; what it raises is its result. The traceback of any but an AssertionError goes to stderr."""
    start = time.perf_counter()
    try:
        detail = check(subject)
        result = f"passed: {detail}" if detail else "passed"
    except AssertionError as error:
        result = f"FAILED: {one_line(error)}"
    except Exception as error:
        traceback.print_exc()
        result = f"FAILED: {type(error).__name__}: {one_line(error)[:300]}"
    return Row(name, result, time.perf_counter() - start)


def one_line(error: Exception) -> str:
    """The message of an error in a cell of the table."""
    return " ".join(str(error).replace("|", "/").split())


def run_all(checks: Mapping[str, Check], subject: object) -> list[Row]:
    """Run every check, and print the line of each when it has ended."""
    rows = []
    for name, check in checks.items():
        rows.append(run(name, check, subject))
        print(f"| {name} | {rows[-1].result} | {rows[-1].seconds:.1f} |", flush=True)
    return rows


def print_counts(rows: list[Row]) -> bool:
    """Print how many checks passed and failed; return whether one failed."""
    failed = sum(row.has_failed for row in rows)
    print(f"\n{len(rows) - failed} passed, {failed} failed")
    return failed > 0
