"""The report on one network: readings, figures and what they mean, as HTML without a network and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from torch import nn

from lightning_leaky.explain.diagnosis import paragraphs, work_of_layers
from lightning_leaky.explain.figures import figures_of
from lightning_leaky.explain.shown import has_equal_steps
from lightning_leaky.metrics.readings import Readings
from lightning_leaky.metrics.records import records_at
from lightning_leaky.paths.leaky_path import leaky_paths
from lightning_leaky.plotting import plot_along_path, svg
from lightning_leaky.reading.measure import measure_path, sample_path
from lightning_leaky.reading.sample import PathSample
from lightning_leaky.report.html import render
from lightning_leaky.report.removal import BlockRemoval, measure_removal, plot_removal

# True with and without a leak.
_CAPTIONS = {
    "energies": "Energies along the path: kinetic energy is how much a layer works.",
    "singular_values_of_A": "Singular values of the representations of a few samples: which directions grow, and which "
    "are given up.",
    "path": "The way of a few samples through the layers, in the two leading directions of the path: a dot for each "
    "layer where there are at most 29, and a black one for the last.",
}
_OF_PATH = ("layers", "effective_depth", "layout", "padding_mask", "state")


@dataclass(frozen=True)
class Report:
    """What a report says, before it is written.

    Attributes:
        title: Name of the network.
        readings: Of every layer, over the whole data.
        samples: A few samples on their way, one entry a segment.
        facts: What else a reader wants to know, by name: class, data, sizes.
        removal: What leaving blocks out costs; ``None`` where it was not measured.
    """

    title: str
    readings: Readings
    samples: list[PathSample]
    facts: Mapping[str, Any]
    removal: BlockRemoval | None = None


def report_on(
    model: nn.Module,
    batches: Iterable[Any],
    title: str,
    facts: Mapping[str, Any] | None = None,
    removal_batches: int = 0,
    **settings: Any,
) -> Report:
    """Read a network over a data set and gather a report.

    Args:
        model: Any network.
        batches: As of `measure_path`; they are gone through once, and the first one shows a few samples on their way.
        title: Name of the network.
        facts: What else to say, by name.
        removal_batches: On how many of the first batches to measure what leaving blocks out costs, see
            `measure_removal`; it takes a cost.
        **settings: As of `measure_path`: `cost` and `weight_decay` for the momentum readings, `layers` where the
            network has no leaky path.

    Raises:
        ValueError: As `measure_path` does.

    Example:
        >>> import torch
        >>> from lightning_leaky import LeakyResNet
        >>> network = LeakyResNet(3, 3, width=8, num_layers=4, effective_depth=2.0)
        >>> report = report_on(network, [torch.eye(3)], "three points")
        >>> len(report.samples[0].representations)
        5
    """
    remaining = iter(batches)
    first = list(islice(remaining, max(1, removal_batches)))
    readings = measure_path(model, chain(first, remaining), **settings)
    of_path = {name: settings[name] for name in _OF_PATH if name in settings}
    samples, cost = sample_path(model, first[0], **of_path), settings.get("cost")
    removal, facts = None, dict(facts or {})
    if cost is not None and removal_batches:
        try:
            removal = measure_removal(model, first, cost, readings, **of_path)
        except ValueError as error:  # the readings stand without it
            facts["removal of blocks"] = f"not measured: {error}"
    found: dict[str, Any] = {"layers": len(readings.step_sizes), "effective depth L̃": readings.effective_depth}
    if has_equal_steps(readings.step_sizes):
        found["step-size ρ of each layer"] = f"{float(readings.step_sizes[0]):.4g}"
    found |= {"mode of the network": "evaluation, without dropout", **facts}
    return Report(title, readings, samples, found, removal)


def content_of(report: Report) -> dict[str, Any]:
    """Everything that a report says in numbers and words; what is not finite is ``None``."""
    readings = report.readings
    records = records_at(readings.records.values(), readings.effective_depth)
    says = {f"{key}/{one.end}": one.says for key, record in records.items() for one in record.summaries}
    places = {key: f"{key.split('/')[0]}/{key.split('/')[-1]}" for key in readings.summaries()}
    meanings = {key: says[place] for key, place in places.items() if place in says}
    shares, little = zip(*work_of_layers(readings), strict=True)
    content = {
        "format": 3,
        "title": report.title,
        "facts": dict(report.facts),
        "summaries": {key: float(readings.summaries()[key]) for key in meanings},
        "meanings": meanings,
        "layers": {
            "name": list(readings.names),
            "step_size": readings.step_sizes.tolist(),
            "position": readings.positions.tolist(),
            "share_of_work": list(shares),
            "moves_little": list(little),
            **{name: readings[name].tolist() for name in records},
        },
        "segments": list(readings.segments),
        "diagnosis": paragraphs(readings) + ([] if report.removal is None else [report.removal.sentence]),
        "removal": None if report.removal is None else report.removal.content(readings),
        "quantities": {
            name: {"title": record.title, "label": record.label(), "says": record.says}
            for name, record in records.items()
        },
    }
    return dict(_finite(content))


def as_json(report: Report) -> str:
    """`content_of` a report as JSON."""
    return json.dumps(content_of(report), ensure_ascii=False, indent=1, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def as_html(report: Report) -> str:
    """The report as one HTML file, figures and style inside: it opens without a network.

    Raises:
        ModuleNotFoundError: If matplotlib or jinja2 is missing.
    """
    figures = [(caption, svg(figure)) for caption, figure in figures_with_captions(report)]
    return render("report.html.j2", title=report.title, report=content_of(report), figures=figures)


def figures_with_captions(report: Report) -> Iterable[tuple[str, Any]]:
    """Each figure with its caption."""
    readings = report.readings
    records = records_at(readings.records.values(), readings.effective_depth)
    part = " Of the longest segment." if len(readings.segments) > 1 else ""
    for name, figure in figures_of(readings, report.samples):
        yield _CAPTIONS[name] + ("" if name == "energies" else part), figure
    for name in ("cost_of_identity", "criticality_residual"):
        record = records.get(name)
        if record is not None:
            figure, axes = plot_along_path({name: readings[name]}, readings.positions, record.title)
            if name == "cost_of_identity":
                axes.set_yscale("log")
            else:
                axes.set_ylim(bottom=0)
            yield f"{record.title.capitalize()}. {record.says}", figure
    if report.removal is not None:
        yield (
            "What the network costs without some of its blocks, in the order of a score.",
            plot_removal(report.removal),
        )


def name_of(model: nn.Module) -> str:
    """What a reader calls a network: the class of the module, and of its path where that is another."""
    inner = {type(path).__name__ for path in leaky_paths(model).values()} - {type(model).__name__}
    return type(model).__name__ + (f" with {', '.join(sorted(inner))}" if inner else "")
