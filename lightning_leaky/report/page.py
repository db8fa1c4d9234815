"""The report on one network, as HTML and JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from torch import nn

from lightning_leaky.explain.console import work_of_layers
from lightning_leaky.explain.diagnosis import paragraphs
from lightning_leaky.explain.figures import figures_of
from lightning_leaky.explain.shown import has_equal_steps
from lightning_leaky.metrics.readings import Readings
from lightning_leaky.metrics.records import records_at
from lightning_leaky.paths.leaky_path import leaky_paths
from lightning_leaky.plotting import plot_along_path, svg
from lightning_leaky.reading.measure import measure_path, sample_path
from lightning_leaky.reading.sample import PathSample
from lightning_leaky.report.removal import BlockRemoval, measure_removal, plot_removal

_CAPTIONS = {
    "energies": "Energies along the path: kinetic energy is how much a layer works.",
    "singular_values_of_A": "Singular values of the representations of a few samples: which directions grow or fade.",
    "path": "The way of a few samples through the layers, in the two leading directions of the path: a dot for each "
    "layer if there are at most 29, and a black one for the last.",
}
_OF_PATH = ("layers", "effective_depth", "layout", "padding_mask", "state")


@dataclass(frozen=True)
class Report:
    """The content of a report.

    Attributes:
        title: Name of the network.
        readings: Readings of every layer over the whole data.
        samples: A few samples, one entry per segment.
        facts: Other facts by name.
        removal: What leaving blocks out costs, if measured.
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
    """Read a network over a data set and make a report.

    Args:
        model: Any network.
        batches: As of `measure_path`, read once.
        title: Name of the network.
        facts: Other facts by name.
        removal_batches: Number of first batches to measure removal of blocks on, if there is a `cost`.
        **settings: As of `measure_path`.

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
    removal, said = None, dict(facts or {})
    if cost is not None and removal_batches:
        try:
            removal = measure_removal(model, first, cost, readings, **of_path)
        except ValueError as error:  # the readings stay
            said["removal of blocks"] = f"not measured: {error}"
    found: dict[str, Any] = {"layers": len(readings.step_sizes), "effective depth L̃": readings.effective_depth}
    if has_equal_steps(readings.step_sizes):
        found["step-size ρ of each layer"] = f"{float(readings.step_sizes[0]):.4g}"
    found["mode of the network"] = "evaluation, without dropout"
    return Report(title, readings, samples, found | said, removal)


def content_of(report: Report) -> dict[str, Any]:
    """Numbers and words of a report; non-finite numbers become ``None``."""
    readings = report.readings
    records = records_at(readings.records.values(), readings.effective_depth)
    says = {f"{key}/{one.end}": one.says for key, record in records.items() for one in record.summaries}
    summaries, removal = readings.summaries(), report.removal
    meanings = {key: says[place] for key in summaries if (place := re.sub("/.*/", "/", key)) in says}
    shares, little = work_of_layers(readings)
    content = {
        "format": 3,
        "title": report.title,
        "facts": dict(report.facts),
        "summaries": {key: float(summaries[key]) for key in meanings},
        "meanings": meanings,
        "layers": {
            "name": readings.names,
            "step_size": readings.step_sizes.tolist(),
            "position": readings.positions.tolist(),
            "share_of_work": shares,
            "moves_little": little,
            **{name: readings[name].tolist() for name in records},
        },
        "segments": readings.segments,
        "diagnosis": paragraphs(readings) + ([removal.sentence] if removal else []),
        "removal": removal.content(readings) if removal else None,
        "quantities": {
            name: {"title": record.title, "label": record.label(), "says": record.says}
            for name, record in records.items()
        },
    }
    return dict(json.loads(json.dumps(content, default=str), parse_constant=lambda name: None))


def as_json(report: Report) -> str:
    """Return a report as JSON, without figures."""
    return json.dumps(content_of(report), ensure_ascii=False, indent=1, allow_nan=False)


def as_html(report: Report) -> str:
    """Return the report as one HTML page, which opens offline.

    Raises:
        ModuleNotFoundError: If matplotlib or jinja2 is missing.
    """
    figures = [(caption, svg(figure)) for caption, figure in figures_with_captions(report)]
    return render("report.html.j2", title=report.title, report=content_of(report), figures=figures)


def figures_with_captions(report: Report) -> Iterable[tuple[str, Any]]:
    """Captions and figures."""
    readings = report.readings
    records = records_at(readings.records.values(), readings.effective_depth)
    for name, figure in figures_of(readings, report.samples):
        is_of_part = name != "energies" and len(readings.segments) > 1
        yield f"{_CAPTIONS[name]}{' Of the longest segment.' if is_of_part else ''}", figure
    for name, axis in (("cost_of_identity", {"yscale": "log"}), ("criticality_residual", {"ylim": (0, None)})):
        if name in records:
            title = records[name].title
            figure, axes = plot_along_path({name: readings[name]}, readings.positions, title)
            axes.set(**axis)
            yield f"{title.capitalize()}. {records[name].says}", figure
    if report.removal:
        caption = "What the network costs without some of its blocks, in the order of a score."
        yield caption, plot_removal(report.removal)


def render(template: str, **values: Any) -> str:
    """Fill a template with values; text is escaped."""
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Reports need jinja2: pip install 'lightning-leaky[report]'.") from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lightning_leaky", "report/templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return str(environment.get_template(template).render(**values))


def name_of(model: nn.Module) -> str:
    """A network's class, and its path's if that is another."""
    name = type(model).__name__
    inner = {type(path).__name__ for path in leaky_paths(model).values()} - {name}
    return name + (f" with {', '.join(sorted(inner))}" if inner else "")
