"""What readings say in plain words."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from lightning_leaky.explain.shown import ranges, who
from lightning_leaky.functional import fewest_layers, layer_shares, path_median
from lightning_leaky.metrics.readings import Readings


@dataclass(frozen=True)
class Diagnosis:
    """Readings of one segment of a path, in plain words [ours].

    What was not read is NaN, ``None`` or empty.

    Attributes:
        first: The segment's first layer, counted from 1 along the whole path.
        diverged: First layer with a reading that is not finite.
        leaks: Whether L̃ > 0.
        dimensions: Cost of identity, the soft count of dimensions, of the first layer and the least.
        widest: The greatest.
        narrowest: The layer that starts where it is least.
        rank_from_below: Median of −2H/L̃ along the path, by the momentum form if it was read.
        residual: Median criticality residual along the path, or that of any block.
        work: Each layer's share of the path's kinetic energy, ρ_l times its own, shape (L,); zero if nothing moves.
        working: The fewest layers that do 80 % of the work.
        moves_little: Layers with less than a tenth of an equal share of the path's length or, without a leak, of the
            median block influence; `ablate_path` measures their worth.
        influences: Block influences, shape (L,).
        num_samples: Fewest samples read of a layer.
        rows: The same in words, with the data set's size if not all were read.
        disagreement: Relative difference of the least cost of identity between two halves of the samples.
        width: Number of neurons.

    Example:
        >>> readings = Readings({"cost_of_identity": torch.tensor([9.0, 2.0])}, torch.tensor([0.5, 0.5]), 2.0)
        >>> diagnose(readings)[0].has_bottleneck
        True
    """

    first: int
    diverged: int | None
    leaks: bool
    dimensions: tuple[float, float]
    narrowest: int
    rank_from_below: float
    residual: float
    work: Tensor
    working: tuple[int, ...]
    moves_little: tuple[int, ...]
    widest: float = math.nan
    influences: Tensor = field(default_factory=lambda: torch.zeros(0))
    num_samples: int | None = None
    rows: str = ""
    disagreement: float = math.nan
    width: int | None = None

    @property
    def trust(self) -> Literal["unknown", "no", "partly", "yes"]:
        """Whether to trust the Hamiltonian; yes if the residual is below 0.1, partly below 0.5."""
        if self.residual != self.residual:
            return "unknown"
        # At 0.1 both forms of the Hamiltonian agree within a chart's line, at 0.5 in sign.
        return "yes" if self.residual < 0.1 else "partly" if self.residual < 0.5 else "no"

    @property
    def has_collapsed(self) -> bool:
        """Whether a leaky path has no dimension left."""
        return self.leaks and self.dimensions[1] < 0.5  # far below 1

    @property
    def has_bottleneck(self) -> bool | None:
        """Whether the cost of identity halves; ``None`` if unread, or a leaky path is far from an optimum."""
        if self.dimensions[1] != self.dimensions[1] or (self.leaks and self.trust == "no"):
            return None
        return self.dimensions[1] <= self.dimensions[0] / 2

    @property
    def has_enough_samples(self) -> bool | None:
        """Whether there are five samples per dimension, if known."""
        if self.num_samples is None or self.dimension_read != self.dimension_read:
            return None
        return self.num_samples >= 5 * self.dimension_read  # halves of Gaussian samples then differ by few per cent

    @property
    def counts_dimensions(self) -> bool:
        """Whether the cost of identity counts dimensions; above the width it cannot."""
        return self.width is None or self.dimensions[1] <= self.width * (1 + 1e-6)

    @property
    def dimension_read(self) -> float:
        """Dimensions of the widest layer or, with a leak, the narrowest."""
        greatest = self.dimensions[1] if self.leaks else self.widest
        return greatest if self.width is None else min(greatest, float(self.width))

    @property
    def rank_estimates(self) -> tuple[float, float] | None:
        """Two estimates of the bottleneck rank, the lower first; if ``None``, `sentences` says why.

        As L̃ grows, the median of −2H/L̃ comes from below, the least cost of identity from above; discretisation may let
        them cross.
        """
        below, above = self.rank_from_below, self.dimensions[1]
        # −0.05 is written as zero; half a dimension rounds to the same count.
        is_one = self.trust != "no" and -0.05 <= below <= above + 0.5
        return (min(below, above), max(below, above)) if is_one else None

    @property
    def sentences(self) -> tuple[str, ...]:
        """Bottleneck, rank or dimension, layers and trust, one sentence each."""
        if self.diverged is not None:
            return (f"Diverged: readings are not finite from layer {self.diverged} on, and nothing can be said.",)
        of_size = _of_rank if self.leaks else _of_dimension
        return _of_bottleneck(self), of_size(self), _of_work(self), _of_trust(self)


def diagnose(readings: Readings) -> list[Diagnosis]:
    """Say what readings mean, segment by segment.

    Args:
        readings: Costs of identity, energies, block influences and residuals count.

    Returns:
        One diagnosis per segment.

    Example:
        >>> quantities = {"cost_of_identity": torch.tensor([9.0, 2.0]), "kinetic_energy": torch.tensor([5.0, 0.001])}
        >>> for sentence in diagnose(Readings(quantities, torch.tensor([0.5, 0.5]), effective_depth=2.0))[0].sentences:
        ...     print(sentence)
        Bottleneck: yes; the cost of identity goes from 9.0 to 2.0, before layer 2.
        Rank: no estimate; it takes a Hamiltonian and the cost of identity.
        Layers: 80% of the work is done in layer 1; layer 2 moves little.
        Trust: the energies are exact; whether training is at an optimum was not read.
    """
    parts = readings.split()
    firsts = accumulate((len(part.step_sizes) for part in parts), initial=1)
    return [_diagnose(part, first) for part, first in zip(parts, firsts, strict=False)]


def paragraphs(readings: Readings, source: str = "") -> list[str]:
    """All sentences, with lines for the source and for each of several segments."""
    found = [f"Read of {source}."] if source else []
    for index, part in enumerate(diagnose(readings)):
        if len(readings.segments) > 1:
            found.append(f"Segment {index + 1}, {ranges(range(part.first, part.first + readings.segments[index]))}:")
        found += part.sentences
    return found


def rank_scalars(readings: Readings, prefix: str = "") -> dict[str, Tensor]:
    """Rank estimates by log key, if any."""
    found = {}
    for number, part in enumerate(diagnose(readings), start=1):
        place = f"segment_{number}/" if len(readings.segments) > 1 else ""
        for end, rank in zip(("lower", "upper"), part.rank_estimates or (), strict=False):
            found[f"{prefix}rank/{place}{end}"] = torch.tensor(rank, dtype=torch.float64)
    return found


def _diagnose(part: Readings, first: int) -> Diagnosis:
    read, leaks = part.quantities, part.effective_depth > 0
    costs = read.get("cost_of_identity", torch.full((1,), math.nan))
    kinetic, influences = (read.get(name, torch.zeros(0)) for name in ("kinetic_energy", "block_influence"))
    residuals = read.get("criticality_residual", read.get("pontryagin_residual"))
    work, length = layer_shares(kinetic, part.step_sizes[: len(kinetic)])
    little = length < 0.1 / max(1, len(length))
    if not leaks and len(influences):
        little = influences < 0.1 * influences.median()
    # Any way from zeros, as a decoder's queries, is infinitely long.
    checked = [values for name, values in read.items() if name != "relative_speed"]
    broken = (~torch.stack(checked).isfinite()).any(0).nonzero().flatten().tolist() if checked else []
    halves = [float(half["cost_of_identity"].min()) for half in part.halves if "cost_of_identity" in half]
    form = "hamiltonian" if "hamiltonian" in read else "energy_hamiltonian"
    return Diagnosis(
        first=first,
        diverged=first + broken[0] if broken else None,
        leaks=leaks,
        dimensions=(float(costs[0]), float(costs.min())),
        narrowest=first + int(costs.argmin()),
        rank_from_below=float(part.summaries().get(f"{form}/bottleneck_rank", math.nan)),
        residual=math.nan if residuals is None else float(path_median(residuals, part.step_sizes)),
        work=work,
        working=tuple(first + index for index in fewest_layers(work, 0.8)),
        moves_little=tuple(first + index for index in little.nonzero().flatten().tolist()),
        widest=float(costs.max()),
        influences=influences,
        num_samples=min(part.num_samples, default=None),
        rows=part.rows_read(),
        disagreement=abs(halves[0] - halves[1]) / max(sum(halves) / 2, 1e-12) if len(halves) == 2 else math.nan,
        width=part.widths[0] if part.widths else None,
    )


def _of_bottleneck(found: Diagnosis) -> str:
    start, least = found.dimensions
    if least != least:
        return "Bottleneck: not known, for the cost of identity was not read."
    if found.has_collapsed:
        return f"Bottleneck: the path has collapsed; before layer {found.narrowest} no dimension is left."
    seen = f"goes from {start:.1f} to {least:.1f}, before layer {found.narrowest}"
    if found.narrowest == found.first:
        seen = f"is least, {least:.1f}, at the start"
    told = {None: "no verdict yet, training is far from an optimum", False: "no", True: "yes"}[found.has_bottleneck]
    return f"Bottleneck: {told}; the cost of identity {seen}."


def _of_rank(found: Diagnosis) -> str:
    below, above = found.rank_from_below, found.dimensions[1]
    if below != below or above != above:
        return "Rank: no estimate; it takes a Hamiltonian and the cost of identity."
    written = f"{round(below, 1) + 0.0:.1f} by −2H/L̃, {above:.1f} by the least cost of identity"  # no −0.0
    if found.rank_estimates is not None:
        return f"Rank: {written}."
    if found.trust == "no":
        return f"Rank: no estimate yet, training is far from an optimum; {written}."
    why = "L̃ is too small for one" if below < 0 else "the two have crossed by too much"
    return f"Rank: no estimate, {why}; {written}."


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
    numbers = " and ".join(f"{float(one):.2g}" for one in (found.influences.max(), found.influences.min()))
    told = f"{who(most, 'turn')} the samples most, {ranges(least)} least (block influence {numbers}){_little(found)}"
    return f"Layers: {told}. `ablate_path` measures which can go."


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
    return f"; {who(found.moves_little, 'move')} little" if found.moves_little else ""


def _of_trust(found: Diagnosis) -> str:
    residual = f"the median criticality residual is {found.residual:.2f}"
    if found.leaks and found.trust != "unknown":
        verdict = {"no": "not yet, far from an optimum", "partly": "a first impression", "yes": "yes"}[found.trust]
        return f"Trust: {verdict}; {residual}."
    told = "the energies are exact"
    if found.has_enough_samples is not None:
        amount = "enough" if found.has_enough_samples else "too few"
        told = f"{found.rows} are {amount} for {found.dimension_read:.0f} dimensions"
    if found.leaks:
        about_it = "" if found.rank_from_below != found.rank_from_below else ", so H says little"
        told += f"; whether training is at an optimum was not read{about_it}"
    elif found.trust != "unknown":
        place = {"no": "far from", "partly": "near", "yes": "at"}[found.trust]
        told += f"; training is {place} an optimum, {residual}"
    return f"Trust: {told}."
