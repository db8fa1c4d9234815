"""Runs side by side."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightning_leaky.explain.shown import has_equal_steps
from lightning_leaky.metrics.records import QUANTITIES, STEP_SIZE
from lightning_leaky.plotting import plot_along_path, svg
from lightning_leaky.plotting.style import new_figure
from lightning_leaky.report.page import render

# Lightning adds this for several loaders.
_LOADER = r"(/dataloader_idx_\d+|)$"
_LAYER = re.compile(rf"(.+)/layer_(\d+){_LOADER}")
_RECORDS = {**QUANTITIES, STEP_SIZE.key: STEP_SIZE}
# A monitor's `prefix` ends in no letter.
_QUANTITY = re.compile(rf"(?<!\w)(val_|test_|)({'|'.join(_RECORDS)}){_LOADER}")
_WHERE = {"": "", "val_": ", validation data", "test_": ", test data"}
_NO_RESULT = re.compile(r"(epoch|step|hp_metric)$|(.*\W)?final_")


@dataclass(frozen=True)
class Run:
    """The last numbers of a run.

    Attributes:
        name: Its folder or file.
        numbers: Last value by key: summaries, losses, metrics.
        layers: One number per layer by quantity.
        report: A report's content; ``None`` for a log.
    """

    name: str
    numbers: Mapping[str, float]
    layers: Mapping[str, list[float]]
    report: Mapping[str, Any] | None = None


def read_run(path: Path | str) -> Run:
    """Read the last numbers of a run.

    Args:
        path: A folder of a TensorBoard or CSV logger, or a report's JSON.

    Raises:
        ValueError: If it cannot be read.
    """
    place = Path(path)
    try:
        if place.suffix == ".json" and place.is_file():
            return _of_report(place)
        if (place / "metrics.csv").is_file():
            return _of_numbers(str(path), _last_of_csv(place / "metrics.csv"))
        if place.is_dir() and any(place.glob("events.out.tfevents.*")):
            return _of_numbers(str(path), _last_of_events(place))
        reason = ""
    except (OSError, ValueError) as error:
        reason = f": {error}"
    raise ValueError(
        f"`run` must be a report's JSON or a folder with logs of TensorBoard or CSV, got {str(path)!r}{reason}."
    )


def _of_report(file: Path) -> Run:
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not {"summaries", "layers", "quantities", "removal"} <= set(content):
        raise ValueError("it is of no `lightning-leaky report`, or of an older one; write it anew")
    layers = {name: content["layers"][name] for name in (STEP_SIZE.key, *content["quantities"])}
    return Run(str(file), content["summaries"], layers, content)


def _last_of_csv(file: Path) -> dict[str, tuple[float, float]]:
    """Last step and value by key."""
    last: dict[str, tuple[float, float]] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        for number, row in enumerate(csv.DictReader(lines)):
            step = float(row.get("step") or number)
            last |= {key: (step, float(value)) for key, value in row.items() if value}
    return last


def _last_of_events(folder: Path) -> dict[str, tuple[float, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # 0 would keep all.
    sizes = dict.fromkeys(("images", "histograms", "tensors", "scalars"), 1)
    events = EventAccumulator(str(folder), size_guidance=sizes).Reload()
    last = ((key, events.Scalars(key)[-1]) for key in events.Tags()["scalars"])
    return {key: (float(event.step), float(event.value)) for key, event in last}


def _of_numbers(name: str, last: dict[str, tuple[float, float]]) -> Run:
    """Keep layers of a quantity's last step; others were merged."""
    numbers: dict[str, float] = {}
    layers: dict[str, dict[int, tuple[float, float]]] = {}
    for key, (step, value) in last.items():
        if match := _LAYER.match(key):
            layers.setdefault(match[1] + match[3], {})[int(match[2])] = (step, value)
        elif not _NO_RESULT.match(key):
            numbers[key] = value
    found = {}
    for quantity, entries in layers.items():
        latest, _ = max(entries.values())
        found[quantity] = [value for _, (step, value) in sorted(entries.items()) if step == latest]
    return Run(name, numbers, found)


def compare(runs: Sequence[Run]) -> str:
    """Show runs side by side on one HTML page: last numbers, curves over layers, the reports' words.

    Args:
        runs: At least one run.

    Raises:
        ValueError: If there is none.
        ModuleNotFoundError: If matplotlib or jinja2 is missing.
    """
    if not runs:
        raise ValueError("`runs` must be at least one, got none.")
    figures = []
    for name in dict.fromkeys(name for run in runs for name in run.layers):
        curves = {}
        for number, run in enumerate(runs, start=1):
            if name in run.layers:
                values = [math.nan if one is None else one for one in run.layers[name]]
                curves[f"{number}: {run.name}".replace("$", r"\$")] = torch.tensor(values)
        if name == STEP_SIZE.key and all(map(has_equal_steps, curves.values())):
            continue
        title, figure = _title(name, runs), new_figure()
        _, axes = plot_along_path(curves, ylabel=title, ax=figure.add_subplot())
        if all(bool((curve > 0).all()) for curve in curves.values()):
            axes.set_yscale("log")
        figures.append((f"{title}, at the end", svg(figure)))
    return render("comparison.html.j2", title="Runs side by side", runs=runs, rows=table_of(runs), figures=figures)


def table_of(runs: Sequence[Run]) -> list[list[str]]:
    """Rows of a key and each run's value."""
    rows = {key: [run.numbers.get(key) for run in runs] for key in sorted({key for run in runs for key in run.numbers})}
    return [[key, *("–" if one is None else f"{one:.4g}" for one in row)] for key, row in rows.items()]


def _title(name: str, runs: Sequence[Run]) -> str:
    for run in runs:
        if run.report and name in run.report["quantities"]:
            return str(run.report["quantities"][name]["title"])
    return _QUANTITY.sub(lambda found: f"{_RECORDS[found[2]].title}{_WHERE[found[1]]}{found[3]}", name)
