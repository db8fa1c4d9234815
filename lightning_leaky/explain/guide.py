"""What tags mean, made from the records."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from lightning_leaky.metrics.quantity import Quantity
from lightning_leaky.metrics.readings import Readings
from lightning_leaky.metrics.records import QUANTITIES, records_at

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
