"""The report on one network: readings, figures and what they mean, as HTML without a network and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from torch import nn

from lightning_leaky.explain.diagnosis import Diagnosis, diagnose, paragraphs, work_of_layers
from lightning_leaky.explain.figures import figures_of
from lightning_leaky.metrics.readings import Readings
from lightning_leaky.paths.leaky_path import leaky_paths
from lightning_leaky.plotting import plot_along_path, svg
from lightning_leaky.reading.measure import measure_path, sample_path
from lightning_leaky.reading.sample import PathSample
from lightning_leaky.report.html import render

_CAPTIONS = {
    "energies": "Energies along the path. In a bottleneck kinetic energy is large near the two ends only.",
    "singular_values_of_A": "Singular values of the representations of a few samples: those that stay are the "
    "bottleneck's dimensions.",
    "path": "The way of a few samples through the layers, in the two leading directions of the path; a dot is a layer, "
    "a black one the last.",
}
_OF_PATH = ("layers", "effective_depth", "layout", "padding_mask")


@dataclass(frozen=True)
class Report:
    """What a report says, before it is written.

    Attributes:
        title: Name of the network.
        readings: Of every layer, over the whole data.
        samples: A few samples on their way, one entry a segment.
        facts: What else a reader wants to know, by name: class, data, sizes.
    """

    title: str
    readings: Readings
    samples: list[PathSample]
    facts: Mapping[str, Any]

    @property
    def diagnoses(self) -> list[Diagnosis]:
        """What the readings mean, segment by segment."""
        return diagnose(self.readings)


def report_on(
    model: nn.Module, batches: Iterable[Any], title: str, facts: Mapping[str, Any] | None = None, **settings: Any
) -> Report:
    """Read a network over a data set and gather a report.

    Args:
        model: Any network.
        batches: As of `measure_path`; they are gone through once, and the first one shows a few samples on their way.
        title: Name of the network.
        facts: What else to say, by name.
        **settings: As of `measure_path`: `cost` and `weight_decay` for the momentum readings, `layers` where the
            network has no leaky path.

    Raises:
        ValueError: As `measure_path` does.

    Example:
        >>> from lightning_leaky import LeakyResNet
        >>> network = LeakyResNet(3, 3, width=8, num_layers=4, effective_depth=2.0)
        >>> report = report_on(network, [torch.eye(3)], "three points")
        >>> len(report.samples[0].representations)
        5
    """
    remaining = iter(batches)
    first = list(islice(remaining, 1))
    readings = measure_path(model, chain(first, remaining), **settings)
    of_path = {name: settings[name] for name in _OF_PATH if name in settings}
    samples = sample_path(model, first[0], **of_path)
    found = {"layers": len(readings.step_sizes), "effective depth L̃": readings.effective_depth, **(facts or {})}
    return Report(title, readings, samples, found)


def as_json(report: Report) -> str:
    """Everything that a report says in numbers and words, as JSON; what is not finite is ``null``."""
    readings = report.readings
    content = {
        "format": 1,
        "title": report.title,
        "facts": dict(report.facts),
        "summaries": {key: float(value) for key, value in readings.summaries().items()},
        "layers": {
            "name": list(readings.names),
            "step_size": readings.step_sizes.tolist(),
            "position": readings.positions.tolist(),
            **{name: values.tolist() for name, values in readings.quantities.items()},
        },
        "segments": list(readings.segments),
        "diagnosis": paragraphs(readings),
    }
    return json.dumps(_finite(content), ensure_ascii=False, indent=1, allow_nan=False)


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
    readings = report.readings
    records = readings.records
    says = {f"{key}/{one.end}": one.says for key, record in records.items() for one in record.summaries}
    return render(
        "report.html.j2",
        title=report.title,
        facts=report.facts,
        sentences=paragraphs(readings),
        rows=_rows(readings),
        records=list(records.values()),
        summaries=[
            (key, f"{float(value):.4g}", says[f"{key.split('/')[0]}/{key.split('/')[-1]}"])
            for key, value in readings.summaries().items()
        ],
        figures=[(caption, svg(figure)) for caption, figure in _figures(report)],
    )


def _rows(readings: Readings) -> list[dict[str, Any]]:
    """One row a layer: its number, name, step-size, place, share of the work, whether it is idle, and quantities."""
    return [
        {
            "number": layer + 1,
            "name": readings.names[layer] if readings.names else "",
            "step_size": f"{readings.step_sizes[layer]:.4f}",
            "position": f"{readings.positions[layer]:.3f}",
            "work": _finite(work),
            "is_idle": is_idle,
            "values": [f"{readings[name][layer]:.4g}" for name in readings.records],
        }
        for layer, (work, is_idle) in enumerate(work_of_layers(readings))
    ]


def _figures(report: Report) -> Iterable[tuple[str, Any]]:
    """Each figure with its caption."""
    readings = report.readings
    for name, figure in figures_of(readings, report.samples):
        yield _CAPTIONS[name], figure
    for name in ("cost_of_identity", "criticality_residual"):
        record = readings.records.get(name)
        if record is not None:
            figure, axes = plot_along_path({name: readings[name]}, readings.positions, record.title)
            if name == "cost_of_identity":
                axes.set_yscale("log")
            else:
                axes.set_ylim(bottom=0)
            yield f"{record.title.capitalize()}. {record.says}", figure


def name_of(model: nn.Module) -> str:
    """What a reader calls a network: the class of the module, and of its path where that is another."""
    inner = {type(path).__name__ for path in leaky_paths(model).values()} - {type(model).__name__}
    return type(model).__name__ + (f" with {', '.join(sorted(inner))}" if inner else "")
