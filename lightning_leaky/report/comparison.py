"""Several runs side by side, from their logs or reports."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lightning_leaky.metrics.records import QUANTITIES, STEP_SIZE
from lightning_leaky.plotting import plot_along_path, svg
from lightning_leaky.plotting.style import new_figure
from lightning_leaky.report.html import render

_LAYER = re.compile(r"(?P<name>.+)/layer_(?P<number>\d+)$")
_RECORDS = {**QUANTITIES, STEP_SIZE.key: STEP_SIZE}
# A quantity of a monitor, whose `prefix` ends in no letter: as "decoder/".
_QUANTITY = re.compile(rf"(?P<prefix>(.*\W)?)(?P<where>(val_|test_)?)(?P<name>{'|'.join(_RECORDS)})$")
_WHERE = {"": "", "val_": ", validation data", "test_": ", test data"}
# The last readings again, beside the hyper-parameters.
_FINAL = re.compile(r"(^|\W)final_")
# What a logger adds for itself.
_NO_RESULTS = ("epoch", "step", "hp_metric")


@dataclass(frozen=True)
class Run:
    """The last numbers of a run.

    Attributes:
        name: Its folder or file.
        numbers: Last value by key: summaries, losses, metrics.
        layers: One number a layer by quantity.
    """

    name: str
    numbers: Mapping[str, float]
    layers: Mapping[str, list[float]]


def read_run(path: Path | str) -> Run:
    """Read the last numbers of a run.

    Args:
        path: A folder that a logger of TensorBoard or CSV wrote to, or the JSON of a report.

    Raises:
        ValueError: If nothing there can be read.
    """
    place = Path(path)
    if place.suffix == ".json" and place.is_file():
        return _of_report(place)
    if (place / "metrics.csv").is_file():
        return _of_numbers(str(path), _last_of_csv(place / "metrics.csv"))
    if place.is_dir() and any(place.glob("events.out.tfevents.*")):
        return _of_numbers(str(path), _last_of_events(place))
    raise ValueError(f"`run` must be a report's JSON or a folder with logs of TensorBoard or CSV, got {str(path)!r}.")


def _of_report(file: Path) -> Run:
    content = json.loads(file.read_text(encoding="utf-8"))
    if not {"summaries", "layers", "title"} <= set(content):
        raise ValueError(f"`run` must be a JSON of `lightning-leaky report`, got {str(file)!r} of another kind.")
    layers = {name: values for name, values in content["layers"].items() if name in _RECORDS}
    return Run(str(file), content["summaries"], layers)


def _last_of_csv(file: Path) -> Mapping[str, tuple[float, float]]:
    """Step and value of the last entry of each column."""
    last: dict[str, tuple[float, float]] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        for number, row in enumerate(csv.DictReader(lines)):
            step = float(row.get("step") or number)
            last |= {key: (step, float(value)) for key, value in row.items() if value}
    return last


def _last_of_events(folder: Path) -> Mapping[str, tuple[float, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # One of each is enough; 0 would keep all.
    events = EventAccumulator(str(folder), size_guidance={"images": 1, "histograms": 1, "tensors": 1, "scalars": 1})
    events.Reload()
    found = {key: events.Scalars(key)[-1] for key in events.Tags()["scalars"]}
    return {key: (float(event.step), float(event.value)) for key, event in found.items()}


def _of_numbers(name: str, last: Mapping[str, tuple[float, float]]) -> Run:
    """Layers of one quantity are those of its last step: others were there before, and were merged away."""
    layers: dict[str, dict[int, tuple[float, float]]] = {}
    numbers: dict[str, float] = {}
    for key, (step, value) in last.items():
        match = _LAYER.match(key)
        if match and _title(match["name"]):
            layers.setdefault(match["name"], {})[int(match["number"])] = (step, value)
        elif key not in _NO_RESULTS and not _FINAL.search(key):
            numbers[key] = value
    return Run(name, numbers, {quantity: _of_last_step(entries) for quantity, entries in layers.items()})


def _of_last_step(entries: Mapping[int, tuple[float, float]]) -> list[float]:
    latest = max(step for step, _ in entries.values())
    return [value for _, (step, value) in sorted(entries.items()) if step == latest]


def compare(runs: Sequence[Run]) -> str:
    """Lay runs side by side on one page of HTML: their last numbers in columns, their layers as lines.

    Args:
        runs: At least one run.

    Raises:
        ValueError: If there is none.
        ModuleNotFoundError: If matplotlib or jinja2 is missing.
    """
    if not runs:
        raise ValueError("`runs` must be at least one, got none.")
    figures = []
    for name in dict.fromkeys(name for run in runs for name in run.layers if _title(name)):
        curves = {
            f"{number}: {run.name}".replace("$", r"\$"): torch.tensor(_numbers(run.layers[name]))
            for number, run in enumerate(runs, start=1)
            if name in run.layers
        }
        figure = new_figure()
        _, axes = plot_along_path(curves, ylabel=_title(name), ax=figure.add_subplot())
        if all(bool((values > 0).all()) for values in curves.values()):
            axes.set_yscale("log")
        figures.append((f"{_title(name)}, at the end", svg(figure)))
    names = [run.name for run in runs]
    return render("comparison.html.j2", title="Runs side by side", names=names, rows=table_of(runs), figures=figures)


def table_of(runs: Sequence[Run]) -> list[list[str]]:
    """Rows of a table: a key, and what each run ended with."""
    keys = sorted({key for run in runs for key in run.numbers})
    return [[key, *(_written(run.numbers.get(key)) for run in runs)] for key in keys]


def _written(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _title(name: str) -> str:
    """Title of a quantity, of the monitor and the data set that the key names; nothing where it is none of ours."""
    found = _QUANTITY.match(name)
    return f"{found['prefix']}{_RECORDS[found['name']].title}{_WHERE[found['where']]}" if found else ""
