"""How the time of one reading grows with L, N and w, and its number of collectives with L and processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import linear_regression

from benchmarks.communication import Case, counted
from benchmarks.processes import on_processes
from benchmarks.readings import path_of, reading
from benchmarks.sizes import Settings, Size
from benchmarks.tables import Row, spread_of
from benchmarks.timing import in_turn
from benchmarks.traffic import Reading

TALL, WIDE = "more samples than neurons", "fewer samples than neurons"
GRIDS = {
    f"L, {TALL}": [Size("", 1000, 100, L, 3.5) for L in (5, 10, 20, 40)],
    f"N, {TALL}": [Size("", N, 100, 10, 3.5) for N in (500, 1000, 2000, 4000)],
    f"w, {TALL}": [Size("", 1000, w, 10, 3.5) for w in (50, 100, 200, 400)],
    f"L, {WIDE}": [Size("", 128, 512, L, 3.5) for L in (5, 10, 20, 40)],
    f"N, {WIDE}": [Size("", N, 1024, 5, 3.5) for N in (64, 128, 256, 512)],
    f"w, {WIDE}": [Size("", 128, w, 5, 3.5) for w in (256, 512, 1024, 2048)],
}
LENGTHS, PROCESSES = (5, 10, 20), (2, 4)


def run(settings: Settings) -> list[Row]:
    """Least-squares slopes of log time, and counted collectives."""
    return [*(_exponent(name, sizes, settings) for name, sizes in GRIDS.items()), _collectives()]


def _exponent(name: str, sizes: Sequence[Size], settings: Settings) -> Row:
    """Slope p of time ~ numberᵖ; a quick run leaves out the largest number."""
    used = sizes[:-1] if settings.quick else sizes
    calls = {str(number): reading(path_of(size, settings.device), size) for number, size in enumerate(used)}
    seconds = in_turn(calls, settings).values()
    field = {"L": "num_layers", "N": "samples", "w": "width"}[name[0]]
    logs = [math.log(getattr(size, field)) for size in used]
    slopes = [linear_regression(logs, list(map(math.log, one))).slope for one in zip(*seconds, strict=True)]
    first, last = (
        "N = {samples}, w = {width}, L = {num_layers}".format(**vars(size)) for size in used[:: len(used) - 1]
    )
    return Row(f"exponent of one reading in {name}", f"{first} to {last}", **spread_of(slopes))


def _collectives() -> Row:
    counts = [
        traffic.collectives
        for processes in PROCESSES
        for traffic in on_processes(processes, counted, [Case(Reading(processes, 32, L, 16), "auto") for L in LENGTHS])[
            0
        ]
    ]
    size = f"L = {', '.join(map(str, LENGTHS))}; {' and '.join(map(str, PROCESSES))} processes"
    measures = {"most collectives": float(max(counts))}
    spread = float(max(counts) - min(counts))
    return Row("collectives of one reading, most less fewest", size, value=spread, goal=0.0, measures=measures)
