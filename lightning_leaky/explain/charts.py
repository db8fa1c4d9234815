"""The layout of TensorBoard's custom scalars, made from the records."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

from lightning_leaky.metrics.quantity import WORK, Quantity
from lightning_leaky.metrics.records import BOTTLENECK, QUANTITIES, STEP_SIZE, TRUST

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
