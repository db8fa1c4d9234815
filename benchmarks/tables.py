"""Rows of results, as markdown and as JSON."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from decimal import ROUND_CEILING, Context
from pathlib import Path
from typing import Any


@dataclass
class Row:
    """One result: a median over rounds with the least and greatest round, the smaller the better.

    Attributes:
        goal: What the value should not exceed. It never fails a run.
        measures: Further numbers, each a column.
        bounds: What some of the measures must not exceed, or the run fails.
        note: Why there is no value.
        failed: Whether that is an error, which fails the run.
    """

    name: str
    size: str
    against: str = ""
    value: float | None = None
    unit: str = ""
    low: float | None = None
    high: float | None = None
    rounds: int | None = None
    goal: float | None = None
    ours_ms: float | None = None
    against_ms: float | None = None
    measures: dict[str, float] = field(default_factory=dict)
    bounds: dict[str, float] = field(default_factory=dict)
    note: str = ""
    failed: bool = False

    def is_met(self) -> bool | None:
        """Whether the value, as measured and not as shown, reaches the goal; ``None`` where one of them is missing."""
        return None if self.value is None or self.goal is None else self.value <= self.goal

    def broken(self) -> list[str]:
        """The error that came in place of a value, and measures beyond their bounds; NaN is beyond any."""
        return [f"{self.name}: {self.note}"] * self.failed + [
            f"{self.name} at {self.size}: {name} is {self.measures[name]:.3g}, at most {bound:g} is allowed"
            for name, bound in self.bounds.items()
            if not self.measures[name] <= bound
        ]

    def as_json(self) -> dict[str, Any]:
        """Return everything, unrounded."""
        return {**asdict(self), "met": self.is_met()}


def ratio_row(
    name: str,
    size: str,
    against: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    goal: float | None = None,
    measures: dict[str, float] | None = None,
    bounds: dict[str, float] | None = None,
) -> Row:
    """Row of ratios, round by round, of the seconds of two sides."""
    return Row(
        name,
        size,
        against,
        unit="×",
        goal=goal,
        ours_ms=1e3 * statistics.median(ours),
        against_ms=1e3 * statistics.median(theirs),
        measures=measures or {},
        bounds=bounds or {},
        **spread_of([mine / other for mine, other in zip(ours, theirs, strict=True)]),
    )


def spread_of(values: Sequence[float]) -> dict[str, Any]:
    """Those of a row's arguments that sum up its rounds."""
    return {"value": statistics.median(values), "low": min(values), "high": max(values), "rounds": len(values)}


def markdown(rows: Sequence[Row]) -> str:
    """Table of some rows, without the columns that are empty in all of them."""
    columns: dict[str, Callable[[Row], str]] = {
        "what": lambda row: row.name,
        "size": lambda row: row.size,
        "against": lambda row: row.against,
        "measured": lambda row: row.note or f"{shown(row.value)} {row.unit}".strip(),
        "rounds from – to": lambda row: "" if row.low is None else f"{shown(row.low)} – {shown(row.high)}",
        "goal": lambda row: "" if row.goal is None else f"≤ {row.goal:g} {row.unit}".strip(),
        "met": lambda row: {True: "yes", False: "no", None: ""}[row.is_met()],
        **{name: _measure(name) for row in rows for name in row.measures},
        "ours, ms": lambda row: shown(row.ours_ms),
        "against, ms": lambda row: shown(row.against_ms),
    }
    cells = [[title, *(cell(row) for row in rows)] for title, cell in columns.items()]
    header, *lines = zip(*(column for column in cells if any(column[1:])), strict=True)
    return table(header, lines)


def table(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Any table, as markdown."""
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in (header, ["---"] * len(header), *lines))


def write(output: Path, report: object, text: str) -> None:
    """Write a JSON file and a Markdown file beside it; a reader meanwhile finds the old or the new ones."""
    output.parent.mkdir(parents=True, exist_ok=True)
    for file, content in ((output, json.dumps(report, indent=2)), (output.with_suffix(".md"), text)):
        unfinished = file.with_name(f"{file.name}.tmp")
        unfinished.write_text(f"{content}\n", encoding="utf-8")
        os.replace(unfinished, file)


def shown(value: float | None, digits: int = 4) -> str:
    """Some digits, cut against us: what is measured here is the better the smaller.

    Example:
        >>> shown(1.05001)
        '1.051'
    """
    rounded = Context(prec=digits, rounding=ROUND_CEILING).create_decimal_from_float
    return "" if value is None else f"{rounded(float(value)):{'f' if abs(value) >= 1 else 'g'}}"


def _measure(name: str) -> Callable[[Row], str]:
    return lambda row: shown(row.measures.get(name))
