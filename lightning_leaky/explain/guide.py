"""What tags mean, made from the records."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from lightning_leaky.metrics.quantity import WORK, Quantity
from lightning_leaky.metrics.readings import Readings
from lightning_leaky.metrics.records import BOTTLENECK, QUANTITIES, STEP_SIZE, TRUST, records_at

TAGS_OF: dict[str, dict[str, str]] = {
    "EnergyMonitor": {
        "rank/lower": "Of two estimates of the rank the lower: median of −2H/L̃ and least cost of identity.",
        "rank/upper": "The upper. Both only where they are estimates; a median criticality residual is below 0.5 then.",
    },
    "ReadingGuide": {"final_*": "Summaries of the last training reading, beside the hyper-parameters in HParams."},
    "PathFigures": {
        "layers/*": "Figures of the layers, in Images; energies are of validation data where there are any, spectra, "
        "path and heat maps of training batches.",
        "layers/diagnosis": "The four answers in sentences, in Text, of validation data where there are any.",
    },
    "StepSizeAdapter": {"step_sizes": "Histogram of ρ over the layers."},
    "LayerRefiner": {
        "num_layers": "L, which the refiner changes.",
        "discretisation_error": "Σ_l ½ρ_l²‖∂²_pA‖_F/‖A_l‖_F, what its tolerance bounds.",
    },
}
"""Tags of no single quantity, by callback."""


def guide_page(
    quantities: Collection[Quantity],
    settings: Mapping[str, object],
    callbacks: Collection[str] = (),
    readings: Readings | None = None,
) -> str:
    """Markdown page on the tags and settings of a run; without readings, of a leaky path in one piece."""
    known = records_at(quantities, 1.0 if readings is None else readings.effective_depth)
    records = known.values()
    place = "/segment_*/" if readings is not None and len(readings.segments) > 1 else "/"
    rows = [(f"{record.key}/layer_*", record.label(), record.says) for record in records]
    for record in records:
        rows += [(f"{record.key}{place}{one.end}", f"summary of {record.title}", one.says) for one in record.summaries]
    has_rank = "cost_of_identity" in known and any(tag.endswith("/bottleneck_rank") for tag, _, _ in rows)
    rank = {tag.replace("/", place): says for tag, says in TAGS_OF["EnergyMonitor"].items()} if has_rank else {}
    tags = TAGS_OF | {"EnergyMonitor": rank}
    rows += [(tag, f"of {name}", says) for name in tags if name in callbacks for tag, says in tags[name].items()]
    told = {name: str(value).replace("|", r"\|") for name, value in settings.items()}
    return "\n".join(
        [
            "Layer l is read where it starts, at A_{l−1}. Tags with `val_` and `test_` are of such sets.",
            "",
            "| tag | what it is | what it says |",
            "| --- | --- | --- |",
            *(f"| `{tag}` | {what} | {says} |" for tag, what, says in rows),
            "",
            "| setting | value |",
            "| --- | --- |",
            *(f"| {name} | `{value}` |" for name, value in told.items()),
        ]
    )


def key_table(quantities: Iterable[Quantity], tags: Mapping[str, str]) -> str:
    """Table of log keys in reStructuredText."""
    rows = [("key", "unit", "meaning")]
    for record in quantities:
        rows.append((f"``{record.key}/layer_*``", record.unit, f"{record.formula}: {record.says}"))
        rows += [(f"``{record.key}/{one.end}``", one.unit, one.says) for one in record.summaries]
    rows += [(f"``{tag}``", "–", says) for tag, says in tags.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])


def with_key_table(docstring: str | None) -> str:
    """Put the table of keys in place of ``{keys}``."""
    table = key_table(QUANTITIES.values(), TAGS_OF["EnergyMonitor"])
    return (docstring or "").replace("{keys}", table.replace("\n", "\n    "))


_FORMS = {"hamiltonian": "momentum form", "energy_hamiltonian": "energy form"}

Charts: TypeAlias = dict[str, dict[str, list[Any]]]
"""Kind and tags of each chart, by category and title."""


def custom_charts(
    training: Sequence[Quantity], evaluation: Sequence[Quantity] = (), has_rank: bool = True, prefix: str = ""
) -> Charts:
    """Tags are regular expressions, because the number of layers may change; a rank needs a leak and one segment."""
    start = re.escape(prefix)
    layout: Charts = {BOTTLENECK: {}, TRUST: {}, WORK: {}}
    read = {record.key: record for record in training}
    forms = [key for key in _FORMS if key in read]
    if has_rank and forms and "cost_of_identity" in read:
        ends = [f"{prefix}rank/{end}" for end in ("lower", "lower", "upper")]  # line and band
        layout[BOTTLENECK]["rank, two estimates"] = ["Margin", ends]
    for record in training:
        layout.setdefault(record.category, {}).update(_chart_of_layers(record, start))
    # All tags of a chart, read or not: TensorBoard shows it twice if runs disagree on them.
    tags: dict[tuple[str, str], list[str]] = {}
    for record in (QUANTITIES | read).values():
        for summary in record.summaries:
            if summary.chart is not None:
                tags.setdefault(summary.chart, []).append(rf"^{start}{record.key}/(segment_\d+/)?{summary.end}$")
    for category, title in (one.chart for record in training for one in record.summaries if one.chart is not None):
        layout.setdefault(category, {})[title] = ["Multiline", tags[category, title]]
    if has_rank and forms:
        ends = [f"{prefix}{forms[0]}/bottleneck_rank{end}" for end in ("", "_min", "_max")]
        layout[TRUST][f"−2H/L̃ over the layers ({_FORMS[forms[0]]})"] = ["Margin", ends]
    for record in evaluation:
        layout.setdefault("On validation and test data", {}).update(_chart_of_layers(record, f"{start}(val|test)_"))
    return {category: charts for category, charts in layout.items() if charts}


def merged_charts(layouts: Mapping[str, Charts]) -> Charts:
    """Merge layouts by prefix, because TensorBoard shows only the last."""
    merged: Charts = {}
    for prefix, layout in layouts.items():
        for category, charts in layout.items():
            merged.setdefault(category, {}).update({f"{prefix}{title}": chart for title, chart in charts.items()})
    return merged


def summary_keys(quantities: Collection[Quantity], leaks: bool = True) -> list[str]:
    """Keys of summaries of a path in one piece."""
    return [
        f"{record.key}/{one.end}" for record in quantities for one in record.summaries if leaks or not one.needs_leak
    ]


def _chart_of_layers(record: Quantity, start: str) -> dict[str, list[Any]]:
    own = f"({start})?" if record is STEP_SIZE and start else start  # the adapter's prefix may differ
    return {f"{record.title}, each layer": ["Multiline", [f"^{own}{record.key}/layer_"]]}
