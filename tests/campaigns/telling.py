"""What a campaign of faults tells: a table, how pairs ended, and what was lost."""

from __future__ import annotations

import argparse
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import lightning
import torch

from tests.campaigns.settings import PATIENCE


def table(results: Sequence[dict[str, Any]], names: Iterable[str]) -> str:
    """One line a fault."""
    columns = ("runs", "in two processes", "survived", "lost", "not run", "torn checkpoints, refused")
    columns = (*columns, "longest fit, s")
    lines = [f"| fault | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    for name in (*names, "all"):
        runs = [result for result in results if name in ("all", result["fault"])]
        outcomes = Counter(result["outcome"] for result in runs)
        counts = (
            len(runs),
            sum(result.get("processes") == 2 for result in runs),
            *(outcomes[outcome] for outcome in columns[2:5]),
            sum(result.get("torn", 0) for result in runs),
            max((result.get("fit_seconds", 0) for result in runs), default=0),
        )
        lines.append(f"| {name} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def note_on_sigterm(results: Sequence[dict[str, Any]]) -> str:
    """How both processes ended where one was told to: Lightning's own doing, with or without callbacks."""
    told = [one for one in results if one["fault"] == "sigterm to one of two" and "ends" in one]
    handlers = {"Lightning's handler": "with_handler=True", "the default handler": "with_handler=False"}
    return "\n".join(_ends(name, [one for one in told if mark in one["drawn"]]) for name, mark in handlers.items())


def _ends(handler: str, runs: Sequence[dict[str, Any]]) -> str:
    ends = [one["ends"] for one in runs]
    orderly = sum("SIGTERMException()" in both and "SIGABRT" not in both for both in ends)
    waited = sum(any("Timed out" in end for end in both) for both in ends)
    aborted = sum("SIGABRT" in both for both in ends)
    longest = max((one["fit_seconds"] for one in runs), default=0)
    return (
        f"sigterm to one of two processes with {handler}, {len(ends)} survived: {orderly} with a SIGTERMException; "
        f"{waited} where a process waited until gloo's timeout of {PATIENCE} s, {aborted} where gloo aborted it; the "
        f"longest fit took {longest} s."
    )


def report(results: Sequence[dict[str, Any]], names: Iterable[str], options: argparse.Namespace, seconds: float) -> str:
    """The table, what it was made with, and what was lost."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, lightning {lightning.__version__}"
    lines = [
        table(results, names),
        "",
        note_on_sigterm(results),
        f"seed {options.seed}, {versions}, {seconds:.0f} s with {options.workers} workers",
    ]
    lines += [
        f"{result['outcome']}: {result['fault']}, seed {result['seed']}: {result['reason']}"
        for result in results
        if result["outcome"] != "survived"
    ]
    return "\n".join(lines)
