"""Several runs side by side, from their logs or reports."""

from __future__ import annotations

import csv
import json
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
from lightning_leaky.report.html import render

# Of several loaders Lightning's own end comes last.
_LOADER = r"(?P<loader>(/dataloader_idx_\d+)?)"
_LAYER = re.compile(rf"(?P<name>.+)/layer_(?P<number>\d+){_LOADER}$")
_RECORDS = {**QUANTITIES, STEP_SIZE.key: STEP_SIZE}
# A quantity of a monitor, whose `prefix` ends in no letter: as "decoder/".
_QUANTITY = re.compile(rf"(?P<prefix>(.*\W)?)(?P<where>(val_|test_)?)(?P<name>{'|'.join(_RECORDS)}){_LOADER}$")
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
        layers: One number a layer by quantity, the user's own too.
        report: What a report says beside its figures; ``None`` of a log.
    """

    name: str
    numbers: Mapping[str, float]
    layers: Mapping[str, list[float]]
    report: Mapping[str, Any] | None = None


def read_run(path: Path | str) -> Run:
    """Read the last numbers of a run.

    Args:
        path: A folder that a logger of TensorBoard or CSV wrote to, or the JSON of a report.

    Raises:
        ValueError: If nothing there can be read.
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
    wanted = "a report's JSON or a folder with logs of TensorBoard or CSV"
    raise ValueError(f"`run` must be {wanted}, got {str(path)!r}{reason}.")


def _of_report(file: Path) -> Run:
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not {"summaries", "layers", "quantities", "removal"} <= set(content):
        raise ValueError("it is of no `lightning-leaky report`, or of an older one; write it anew")
    layers = {name: content["layers"][name] for name in (STEP_SIZE.key, *content["quantities"])}
    return Run(str(file), content["summaries"], layers, content)


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
        if match := _LAYER.match(key):
            layers.setdefault(match["name"] + match["loader"], {})[int(match["number"])] = (step, value)
        elif key not in _NO_RESULTS and not _FINAL.search(key):
            numbers[key] = value
    found: dict[str, list[float]] = {}
    for quantity, entries in layers.items():
        latest = max(step for step, _ in entries.values())
        found[quantity] = [value for _, (step, value) in sorted(entries.items()) if step == latest]
    return Run(name, numbers, found)


def compare(runs: Sequence[Run]) -> str:
    """Lay runs side by side on one page of HTML: last numbers in columns, layers as lines; then what reports say.

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
        curves = {
            f"{number}: {run.name}".replace("$", r"\$"): torch.tensor(_numbers(run.layers[name]))
            for number, run in enumerate(runs, start=1)
            if name in run.layers
        }
        if name == STEP_SIZE.key and all(map(has_equal_steps, curves.values())):
            continue
        title = _title(name, runs)
        figure = new_figure()
        _, axes = plot_along_path(curves, ylabel=title, ax=figure.add_subplot())
        if all(bool((values > 0).all()) for values in curves.values()):
            axes.set_yscale("log")
        figures.append((f"{title}, at the end", svg(figure)))
    return render("comparison.html.j2", title="Runs side by side", runs=runs, rows=table_of(runs), figures=figures)


def table_of(runs: Sequence[Run]) -> list[list[str]]:
    """Rows of a table: a key, and what each run ended with."""
    keys = sorted({key for run in runs for key in run.numbers})
    ends = {key: [run.numbers.get(key) for run in runs] for key in keys}
    return [[key, *("–" if one is None else f"{one:.4g}" for one in row)] for key, row in ends.items()]


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _title(name: str, runs: Sequence[Run]) -> str:
    """Title of a quantity, of the monitor and the data set that the key names; the key itself where nothing tells."""
    told = [run.report["quantities"][name]["title"] for run in runs if run.report and name in run.report["quantities"]]
    found = _QUANTITY.match(name)
    if told or not found:
        return told[0] if told else name
    return f"{found['prefix']}{_RECORDS[found['name']].title}{_WHERE[found['where']]}{found['loader']}"
