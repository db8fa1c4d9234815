"""A study: settings, what is measured of each, and figures; run in processes, resumed from its CSV files."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

Rows = list[dict[str, Any]]
"""Rows of one table."""

RUNS = "runs"
"""Name of the table with one row a setting; the others refer to it by the column ``run``."""


@dataclass(frozen=True)
class Study:
    """What one page of `docs/paper.md` is made of.

    Args:
        name: On the command line, and of the folder of its results.
        settings: All settings, frozen dataclasses, in the order in which they are run; fewer and shorter if reduced.
        measure: Tables of one setting by name. That of `RUNS` has one row, of summaries.
        figures: Figures by name, from the tables of all settings.
        tables: Tables for a reader by name, likewise.
    """

    name: str
    settings: Callable[[bool], Sequence[Any]]
    measure: Callable[[Any], dict[str, Rows]]
    figures: Callable[[Mapping[str, pd.DataFrame]], dict[str, Figure]]
    tables: Callable[[Mapping[str, pd.DataFrame]], dict[str, pd.DataFrame]] = lambda _: {}


class Results:
    """Tables of a study as CSV files of a folder; each row names its run.

    Args:
        folder: Where the files are, or will be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tables = {file.stem: pd.read_csv(file) for file in sorted(folder.glob("*.csv"))}
        finished = self.finished()
        self.tables = {name: table[table["run"].isin(finished)] for name, table in self.tables.items()}

    def finished(self) -> set[str]:
        """Names of the runs that are complete: their summary is written last."""
        return set(self.tables[RUNS]["run"]) if RUNS in self.tables else set()

    def add(self, run: str, setting: Any, found: Mapping[str, Rows]) -> None:
        """Add the rows of one setting and write what has changed, the summary last."""
        for name, rows in sorted(found.items(), key=lambda item: item[0] == RUNS):
            of_setting = dataclasses.asdict(setting) if name == RUNS else {}
            added = pd.DataFrame([{"run": run, **of_setting, **row} for row in rows])
            known = [self.tables[name]] if name in self.tables else []
            self.tables[name] = pd.concat([*known, added], ignore_index=True)
            self._write(name)

    def _write(self, name: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"{name}.partial"
        self.tables[name].to_csv(partial, index=False, float_format="%.6g")
        os.replace(partial, self.folder / f"{name}.csv")  # a run that is killed leaves the old file whole


def layer_rows(columns: Mapping[str, torch.Tensor]) -> Rows:
    """One row a layer, counted from 1, from quantities of shape (L,)."""
    lists = {name: values.tolist() for name, values in columns.items()}
    return [
        {"layer": layer, **dict(zip(lists, values, strict=True))}
        for layer, values in enumerate(zip(*lists.values(), strict=True), start=1)
    ]


def name_of(setting: Any) -> str:
    """Name of a run: ten characters that stand for all values of its setting."""
    values = [f"{value:g}" if isinstance(value, float) else str(value) for value in vars(setting).values()]
    return hashlib.sha256("_".join(values).encode()).hexdigest()[:10]


def run(study: Study, folder: Path, reduced: bool, workers: int) -> Results:
    """Measure what has not been measured yet, several settings at a time, each on one thread."""
    results = Results(folder)
    wanted = {name_of(setting): setting for setting in study.settings(reduced)}
    missing = {name: setting for name, setting in wanted.items() if name not in results.finished()}
    progress = tqdm(_measured(study, missing, workers), study.name, len(wanted), initial=len(wanted) - len(missing))
    for name, found in progress:
        results.add(name, wanted[name], found)
    return results


def _measured(study: Study, settings: Mapping[str, Any], workers: int) -> Iterator[tuple[str, dict[str, Rows]]]:
    if workers <= 1:
        yield from ((name, study.measure(setting)) for name, setting in settings.items())
        return
    # One thread a process: small matrices gain more from a second run than from a second thread.
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        names = {pool.submit(study.measure, setting): name for name, setting in settings.items()}
        for future in as_completed(names):
            yield names[future], future.result()
