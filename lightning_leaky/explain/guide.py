"""What a board of charts needs to be read: a card for each quantity, the layout of charts, and a page of text."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from lightning_leaky.metrics.path_reader import QUANTITIES


@dataclass(frozen=True)
class Card:
    """What a quantity is, in two lines.

    Attributes:
        title: Its name, as a chart's title.
        formula: In plain text.
        unit: ``"energy"`` or ``"–"``.
        says: What a reader learns from it.
    """

    title: str
    formula: str
    unit: str
    says: str


CARDS: dict[str, Card] = {
    "cost_of_identity": Card(
        "cost of identity",
        "‖A‖²_K",
        "–",
        "Soft count of the dimensions in use where a layer starts; its least value nears the rank from above.",
    ),
    "kinetic_energy": Card(
        "kinetic energy",
        "‖∂_pA‖²_K / (2L̃)",
        "energy",
        "How much a layer works. Near 0 it is idle: the representation passes as it is.",
    ),
    "potential_energy": Card(
        "potential energy", "−(L̃/2) ‖A‖²_K", "energy", "The pull towards few dimensions: low where there are many."
    ),
    "cross_term": Card("cross term", "⟨∂_pA, A⟩_K", "–", "Above 0 the dimensions in use grow, below 0 they shrink."),
    "lagrangian": Card(
        "Lagrangian", "‖L̃A + ∂_pA‖²_K / (2L̃)", "energy", "Least cost in weight decay of the step, per unit of p."
    ),
    "energy_hamiltonian": Card(
        "Hamiltonian, energy form",
        "kinetic + potential energy",
        "energy",
        "Constant along the path of an optimum. Needs no loss, but feels the stabiliser γ.",
    ),
    "speed": Card("speed", "‖∂_pA‖_K", "–", "How fast the representation moves; its integral is the path's length."),
    "stable_rank": Card("stable rank", "‖A‖²_* / ‖A‖²_F", "–", "Dimensions, each weighed by its size."),
    "hamiltonian": Card(
        "Hamiltonian, momentum form",
        "(L̃/2) ‖Bᵀσ(A)‖² − L̃ tr(BᵀA)",
        "energy",
        "Constant along the path of an optimum. −2H/L̃ nears the rank of the bottleneck from below.",
    ),
    "criticality_residual": Card(
        "criticality residual",
        "‖W − L̃Bᵀσ(A)‖ / ‖W‖",
        "–",
        "Near 0 the Hamiltonian can be trusted, near 1 it says nothing yet: training is far from an optimum.",
    ),
    "momentum_norm": Card(
        "momentum", "‖B‖_F = ‖∂C/∂A‖_F / λ", "–", "How strongly the cost asks a representation to change."
    ),
    "features_momentum_norm": Card(
        "momentum of the features", "‖Bᵀσ(A)‖_F", "–", "What an optimal weight is made of: W = L̃Bᵀσ(A)."
    ),
    "step_size": Card("step-size", "ρ_l, summing to 1", "–", "A layer's share of the path: small where it moves fast."),
}
"""One card a quantity, by the first part of its log keys."""

_OF_A_HAMILTONIAN = {
    "bottleneck_rank": "Median of −2H/L̃ along the path: nears the rank of the bottleneck from below as L̃ grows.",
    "bottleneck_rank_min": "Least of −2H/L̃ over the layers.",
    "bottleneck_rank_max": "Greatest of −2H/L̃: far from the least, there are too few layers or training is no optimum.",
    "spread": "Greatest minus least H over the layers: 0 on an exact optimum of many layers.",
}
SUMMARIES: dict[str, dict[str, str]] = {
    "cost_of_identity": {"min": "Least over the layers: nears the rank of the bottleneck from above as L̃ grows."},
    "energy_hamiltonian": _OF_A_HAMILTONIAN,
    "speed": {"path_length": "Length of the path: integral of the speed over p."},
    "hamiltonian": _OF_A_HAMILTONIAN,
    "criticality_residual": {"max": "Greatest over the layers."},
}
"""What each summary of a quantity says, by the last part of its key."""

TAGS_OF: dict[str, dict[str, str]] = {
    "EnergyMonitor": {
        "rank/lower": "Of two estimates of the rank the lower: median of −2H/L̃ and least cost of identity.",
        "rank/upper": "The upper. Both only where they are estimates, with a median criticality residual below 0.5.",
        "final_*": "Summaries of the last training reading, beside the hyper-parameters in HParams.",
    },
    "PathFigures": {
        "layers/*": "Figures of the layers, in Images: energies, spectra, the path, and the history as heat maps.",
        "layers/diagnosis": "The four answers in sentences, in Text.",
    },
    "StepSizeAdapter": {"step_sizes": "Histogram of ρ over the layers."},
    "LayerRefiner": {
        "num_layers": "L, which the refiner changes.",
        "discretisation_error": "Σ_l ½ρ_l²‖∂²_pA‖_F/‖A_l‖_F, what its tolerance bounds.",
    },
}
"""Tags that are of no single quantity, by the callback that logs them."""

_FORMS = {"hamiltonian": "momentum form", "energy_hamiltonian": "energy form"}
_SEGMENT = r"(segment_\d+/)?"


def chart_layout(
    training: Collection[str], evaluation: Collection[str] = (), has_rank: bool = True, prefix: str = ""
) -> dict[str, dict[str, list[Any]]]:
    """Layout of TensorBoard's custom scalars: all layers of a quantity in one chart, two estimates of the rank.

    Tags are regular expressions, so that the number of layers may change.

    Args:
        training: Quantities of the training readings, as `EnergyMonitor` takes them; ``step_size`` too where it adapts.
        evaluation: Those of the validation and test readings.
        has_rank: Whether there is an estimate of the rank of the whole path: not without a leak, and not of a path in
            several segments.
        prefix: What the tags of a monitor begin with.

    Returns:
        What ``SummaryWriter.add_custom_scalars`` takes.

    Example:
        >>> list(chart_layout(["hamiltonian", "cost_of_identity"])["Is there a bottleneck?"])
        ['rank, two estimates', 'least cost of identity']
    """
    start = f"^{re.escape(prefix)}"
    first: dict[str, list[Any]] = {}
    trust: dict[str, list[Any]] = {}
    forms = [name for name in _FORMS if name in training]
    if "cost_of_identity" in training:
        if has_rank and forms:
            ends = [f"{prefix}rank/{end}" for end in ("lower", "lower", "upper")]  # the line, and the band above it
            first["rank, two estimates"] = ["Margin", ends]
        first["least cost of identity"] = ["Multiline", [rf"{start}cost_of_identity/{_SEGMENT}min$"]]
    if "criticality_residual" in training:
        trust["criticality residual, each layer"] = ["Multiline", [rf"{start}criticality_residual/layer_"]]
    if forms:
        trust["spread of the Hamiltonian"] = ["Multiline", [rf"{start}(energy_)?hamiltonian/{_SEGMENT}spread$"]]
        if has_rank:
            tags = [f"{prefix}{forms[0]}/bottleneck_rank{end}" for end in ("", "_min", "_max")]
            trust[f"−2H/L̃ over the layers ({_FORMS[forms[0]]})"] = ["Margin", tags]
    layout = {
        "Is there a bottleneck?": first,
        "Can the reading be trusted?": trust,
        "Which layers do the work?": _charts(training, start),
        "On validation and test data": _charts(evaluation, f"{start}(val|test)_"),
    }
    return {category: charts for category, charts in layout.items() if charts}


def _charts(quantities: Collection[str], start: str) -> dict[str, list[Any]]:
    """A chart with all layers for each quantity."""
    return {
        f"{card.title}, each layer": ["Multiline", [rf"{start}{name}/layer_"]]
        for name, card in CARDS.items()
        if name in quantities and name != "criticality_residual"
    }


def summary_keys(quantities: Collection[str], leaks: bool = True) -> list[str]:
    """Keys of the summaries of some quantities, of a path in one piece; without a leak there is no rank.

    Example:
        >>> summary_keys(["cost_of_identity"])
        ['cost_of_identity/min']
    """
    keys = [f"{name}/{end}" for name in SUMMARIES if name in quantities for end in SUMMARIES[name]]
    return [key for key in keys if leaks or "/bottleneck_rank" not in key]


def page(quantities: Collection[str], settings: Mapping[str, object], callbacks: Collection[str] = ()) -> str:
    """Markdown page that explains the tags of a run in two lines each, and states the settings.

    Args:
        quantities: What is read.
        settings: What it is read with, by name.
        callbacks: Names of the classes of the callbacks of the run; of ours the further tags are explained.

    Example:
        >>> print(page(["kinetic_energy"], {"gamma_rel": 0.001}).splitlines()[2])
        | tag | what it is | what it says |
    """
    known = [name for name in (*QUANTITIES, "step_size") if name in quantities]
    rows = [(f"`{name}/layer_*`", _what(CARDS[name]), CARDS[name].says) for name in known]
    rows += [
        (f"`{name}/{end}`", f"summary of {CARDS[name].title}", says)
        for name in known
        for end, says in SUMMARIES.get(name, {}).items()
    ]
    rows += [
        (f"`{tag}`", f"of {name}", says) for name in TAGS_OF if name in callbacks for tag, says in TAGS_OF[name].items()
    ]
    return "\n".join(
        [
            "Layer l is read where it starts, at A_{l−1}. Tags with `val_` and `test_` are of whole data sets. Of "
            "several segments each has its summary, as `cost_of_identity/segment_2/min`.",
            "",
            "| tag | what it is | what it says |",
            "| --- | --- | --- |",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
            "| setting | value |",
            "| --- | --- |",
            *(f"| {name} | `{_escaped(value)}` |" for name, value in settings.items()),
        ]
    )


def _escaped(value: object) -> str:
    return str(value).replace("|", "\\|")


def _what(card: Card) -> str:
    unit = "" if card.unit == "–" else f" ({card.unit})"
    return f"{card.title}: {card.formula}{unit}"
