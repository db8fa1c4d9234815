"""``python -m benchmarks.communication``: counts what processes exchange for a reading, beside what formulas say.

It starts gloo processes on this machine, counts the bytes that each of them hands to collectives and gets from them
during `compute()`, and fails where `benchmarks.traffic` says another number.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.environment import environment
from benchmarks.processes import on_processes
from benchmarks.tables import table
from benchmarks.traffic import FORMS, Reading, Traffic, agreement_traffic, samples_peak, summed
from lightning_leaky.functional import equidistant_step_sizes
from lightning_leaky.metrics import PathReader
from lightning_leaky.metrics.layer_store import Form
from lightning_leaky.paths.block_path import path_of
from lightning_leaky.reading.observer import PathObserver
from lightning_leaky.reading.settings import ReadingSettings


@dataclass(frozen=True)
class Case:
    """A reading to be taken, and how.

    Attributes:
        reading: Its sizes.
        form: The form to take.
        missing: Rows that the last process has fewer than the others.
        by_observer: Whether the core of `EnergyMonitor` reads a network, in place of a reader that is given states.
    """

    reading: Reading
    form: Form
    missing: int = 0
    by_observer: bool = False

    @property
    def predicted(self) -> Traffic:
        """What the formulas say."""
        traffic = FORMS[self.form](replace(self.reading, missing=self.missing))
        return agreement_traffic(self.reading) + traffic if self.by_observer else traffic

    def rows_of(self, rank: int) -> int:
        """Rows of one process."""
        return self.reading.rows - (self.missing if rank == self.reading.processes - 1 else 0)


@dataclass(frozen=True)
class Count:
    """What each process has counted for a case."""

    case: Case
    of_processes: tuple[Traffic, ...]

    def disagreements(self) -> list[str]:
        """What differs from the formula, in words."""
        return [
            f"{self.case}: process {rank} counted {traffic}, the formula says {self.case.predicted}"
            for rank, traffic in enumerate(self.of_processes)
            if traffic != self.case.predicted
        ]


QUICK_SHAPES = ((4, 3, 16), (48, 6, 96))
SHAPES = (*QUICK_SHAPES, (1, 1, 64), (33, 7, 24), (70, 4, 64))
"""Rows N of a process, L and w."""
GROWN = Case(Reading(processes=2, rows=64, num_layers=16, width=8192), "samples")
"""Whose memory is measured."""


def cases_of(processes: int, shapes: Sequence[tuple[int, int, int]]) -> list[Case]:
    """Every form at every shape: energies or all quantities, fewer rows on a process or none, by an observer."""
    cases = []
    for shape in shapes:
        plain, full = (Reading(processes, *shape, with_momenta=each, with_spectrum=each) for each in (False, True))
        for form in FORMS:
            cases += [Case(plain, form), Case(full, form, missing=1)]
            cases += [Case(plain, form, missing=shape[0]), Case(plain, form, by_observer=True)]
    return cases


class Tally(TorchDispatchMode):
    """Counts the collectives of this process, whoever calls them: all of them pass torch's dispatcher."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.traffic = Traffic()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Count a collective and do it."""
        if "c10d" in func.namespace:
            self.traffic += traffic_of_call(func.name(), args)
        return func(*args, **(kwargs or {}))


def traffic_of_call(name: str, arguments: tuple[Any, ...]) -> Traffic:
    """Traffic of one collective, by the tensors that it is called with; ValueError for one that no formula has."""
    if name == "c10d::barrier":
        return Traffic(1)
    if name == "c10d::allreduce_":
        return summed(num_bytes(arguments[0]))
    if name == "c10d::allgather_":
        return Traffic(1, given=num_bytes(arguments[1]), taken=num_bytes(arguments[0]))
    raise ValueError(f"A reading has called {name!r}, of which the formulas know nothing.")


def num_bytes(tensors: Any) -> int:
    """Bytes of tensors in lists of lists."""
    return tensors.nbytes if isinstance(tensors, Tensor) else sum(map(num_bytes, tensors))


def counted(rank: int, cases: Sequence[Case]) -> list[Traffic]:
    """What one process counts, by case."""
    found = []
    for case in cases:
        read, tally = observed(case, rank) if case.by_observer else filled(case, rank), Tally()
        with tally:
            read.compute()
        found.append(tally.traffic)
    return found


def filled(case: Case, rank: int) -> PathReader:
    """A reader that holds the synthetic states of one process."""
    size = case.reading
    reader = PathReader([(size.width, size.num_layers)], size.recipe, case.form)
    path = [torch.randn(case.rows_of(rank), size.width) for _ in range(size.num_layers + 1)]
    momenta = path[1:] if size.with_momenta else None
    reader.update(path[:-1], path[1:], equidistant_step_sizes(size.num_layers), momenta)
    return reader


@torch.no_grad()
def observed(case: Case, rank: int) -> PathObserver:
    """The core of `EnergyMonitor`, after one batch of a network of one process."""
    size = case.reading
    network = nn.Sequential(*(nn.Linear(size.width, size.width) for _ in range(size.num_layers)))
    settings = ReadingSettings(size.quantities, form=case.form, exact=True)
    observer = PathObserver(network, path_of(network, "*"), settings, strict=True).attach()
    observer.arm()
    network(torch.randn(case.rows_of(rank), size.width))
    observer.drain()
    return observer


def growth(rank: int, case: Case) -> float:
    """Bytes by which one reading makes a fresh process grow at most; NaN where the system does not say."""
    reader, statm = filled(case, rank), Path("/proc/self/statm")
    before = int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else math.nan
    reader.compute()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


def counts_on(processes: int, shapes: Sequence[tuple[int, int, int]]) -> list[Count]:
    """What each process counts, by case."""
    cases = cases_of(processes, shapes)
    by_case = zip(*on_processes(processes, counted, cases), strict=True)
    return [Count(case, of_processes) for case, of_processes in zip(cases, by_case, strict=True)]


def counts_table(counts: Sequence[Count]) -> str:
    """Every case: what the formula says, and what the first process has counted."""
    header = ["form", "by", "processes", "N", "fewer on the last", "L", "w", "momenta, rank"]
    pairs = ["collectives, predicted / counted", "bytes given", "bytes taken", "all processes agree"]
    rows = []
    for count in counts:
        case, size = count.case, count.case.reading
        said, first = asdict(case.predicted), asdict(count.of_processes[0])
        shape = [size.rows, case.missing, size.num_layers, size.width, "yes" if size.with_momenta else "no"]
        by, agree = "observer" if case.by_observer else "reader", not count.disagreements()
        numbers = [f"{said[name]} / {first[name]}" for name in said]
        rows.append([case.form, by, size.processes, *shape, *numbers, "yes" if agree else "no"])
    return table([*header, *pairs], rows)


def growth_line() -> str:
    """By how much a process grows in one reading: for information only, because allocators may keep more."""
    grown = max(on_processes(GROWN.reading.processes, growth, GROWN))
    return f"A process grows by {grown / samples_peak(GROWN.reading):.3f} times the peak of the formula."


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, and return the exit status: 1 if a process counted another number than the formulas say."""
    options = _parser().parse_args(arguments)
    numbers, shapes = ((2, 3, 4), QUICK_SHAPES) if options.quick else ((2, 3, 4, 8), SHAPES)
    where = environment(torch.device("cpu"))
    print("\n".join(f"- {name}: {value}" for name, value in where.items()), flush=True)
    counts = [count for processes in numbers for count in counts_on(processes, shapes)]
    wrong = [line for count in counts for line in count.disagreements()]
    notes = [] if options.quick else [growth_line()]
    print("", counts_table(counts), *notes, sep="\n\n", end="\n\n")
    print(f"{len(counts)} cases on {', '.join(map(str, numbers))} processes, {len(wrong)} disagreements.")
    print(*wrong, sep="\n", end="\n" if wrong else "", file=sys.stderr)
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        listed = [{**asdict(count), "predicted": asdict(count.case.predicted)} for count in counts]
        report = {"environment": where, "counts": listed, "notes": notes, "disagreements": wrong}
        options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.communication", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer sizes, and no more than 4 processes")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
