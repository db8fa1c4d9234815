"""The answers of a diagnosis, in plain words."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_leaky.explain.diagnosis import Diagnosis


def sentences_of(found: Diagnosis) -> tuple[str, ...]:
    """Return whether there is a bottleneck, how narrow it is, which layers move most, and what can be trusted."""
    return _of_bottleneck(found), _of_rank(found), _of_work(found), _of_trust(found)


def _of_bottleneck(found: Diagnosis) -> str:
    start, least = found.dimensions
    if least != least:
        return "Bottleneck: not known, for the cost of identity was not read."
    if found.has_collapsed:
        return f"Bottleneck: the path has collapsed; before layer {found.narrowest} no dimension is left."
    seen = f"the cost of identity goes from {start:.1f} to {least:.1f}, before layer {found.narrowest}"
    if found.narrowest == found.first:
        seen = f"the cost of identity is least, {least:.1f}, at the start"
    if found.has_bottleneck is None:
        return f"Bottleneck: no verdict yet, training is far from an optimum; {seen}."
    return f"Bottleneck: {'yes' if found.has_bottleneck else 'no'}; {seen}."


def _of_rank(found: Diagnosis) -> str:
    below, above = found.rank_from_below, found.dimensions[1]
    if not found.leaks:
        return _of_dimension(found)
    if below != below or above != above:
        return "Rank: no estimate; it takes a Hamiltonian and the cost of identity."
    written = f"{round(below, 1) + 0.0:.1f} by −2H/L̃, {above:.1f} by the least cost of identity"  # no −0.0
    if found.rank_estimates is not None:
        return f"Rank: {written}."
    if found.trust == "no":
        return f"Rank: no estimate yet, training is far from an optimum; {written}."
    if below < 0:
        return f"Rank: no estimate, L̃ is too small for one; {written}."
    return f"Rank: no estimate, the two have crossed by too much; {written}."


def _of_dimension(found: Diagnosis) -> str:
    least = found.dimensions[1]
    if least != least:
        return "Dimension: not known, for the cost of identity was not read."
    if not found.counts_dimensions:
        return (
            f"Dimension: not counted; the cost of identity, {least:.1f} or more, is above the width of {found.width}. "
            'Its features cannot express the representation; features="linear" counts.'
        )
    differ = f"{found.disagreement:.0%}" if found.disagreement >= 0.01 else "less than 1%"
    halves = "" if found.disagreement != found.disagreement else f" (halves differ by {differ})"
    return f"Dimension: {least:.1f} at the narrowest layer, layer {found.narrowest}{halves}."


def _of_influence(found: Diagnosis) -> str:
    order = found.influences.argsort(descending=True, stable=True).tolist()
    if len(order) < 2:
        return f"Layers: one, with a block influence of {float(found.influences[0]):.2g}."
    if not bool(found.influences.any()):
        return "Layers: nothing moves."
    count = max(1, len(order) // 4)
    most, least = (tuple(sorted(found.first + index for index in part)) for part in (order[:count], order[-count:]))
    return (
        f"Layers: {ranges(most)} turn{_s(most)} the samples most, {ranges(least)} least (block influence "
        f"{float(found.influences.max()):.2g} and {float(found.influences.min()):.2g}){_little(found)}. `ablate_path` "
        "measures which can go."
    )


def _of_work(found: Diagnosis) -> str:
    if not found.leaks and len(found.influences):
        return _of_influence(found)
    if not len(found.work):
        return "Layers: not known, for the kinetic energy was not read."
    if found.has_collapsed:
        return "Layers: there is nothing left to work on."
    if not found.working:
        return "Layers: nothing moves."
    return f"Layers: 80% of the work is done in {ranges(found.working)}{_little(found)}."


def _little(found: Diagnosis) -> str:
    layers = found.moves_little
    return f"; {ranges(layers)} move{_s(layers)} little" if layers else ""


def _s(layers: tuple[int, ...]) -> str:
    """What a verb ends with."""
    return "s" if len(layers) == 1 else ""


def _of_trust(found: Diagnosis) -> str:
    residual = f"the median criticality residual is {found.residual:.2f}"
    if found.leaks:
        if found.trust != "unknown":
            verdict = {"no": "not yet, far from an optimum", "partly": "a first impression", "yes": "yes"}[found.trust]
            return f"Trust: {verdict}; {residual}."
        about_it = "" if found.rank_from_below != found.rank_from_below else ", so H says little"
        return f"Trust: {_samples(found)}; whether training is at an optimum was not read{about_it}."
    optimum = {"no": "far from an optimum", "partly": "near an optimum", "yes": "at an optimum"}
    told = f"; training is {optimum[found.trust]}, {residual}" if found.trust != "unknown" else ""
    return f"Trust: {_samples(found)}{told}."


def _samples(found: Diagnosis) -> str:
    """Whether there are enough samples."""
    if found.has_enough_samples is None:
        return "the energies are exact"
    if found.has_enough_samples:
        return f"{found.num_samples} samples are enough for {found.dimension_read:.0f} dimensions"
    return f"too few samples, {found.num_samples} for {found.dimension_read:.0f} dimensions"


def ranges(numbers: tuple[int, ...]) -> str:
    """Numbers of layers in order, as a reader writes them: ``layers 1–3, 7, 9–10``."""
    places = groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])  # the same along a run
    runs = [[number for _, number in run] for _, run in places]
    written = ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return f"layer{'s' if len(numbers) > 1 else ''} {written}"
