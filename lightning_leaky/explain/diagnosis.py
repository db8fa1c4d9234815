"""What readings say in plain words: is there a bottleneck, which layers work, can it be trusted."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from lightning_leaky.explain.sentences import ranges, sentences_of
from lightning_leaky.functional import fewest_layers, layer_shares, path_median
from lightning_leaky.metrics.readings import Readings

Trust = Literal["unknown", "no", "partly", "yes"]

# Of the residual: at 0.1 the two forms of the Hamiltonian agree within the width of a chart's line, at 0.5 in sign.
_GOOD, _FAIR = 0.1, 0.5
# A bottleneck has at most half of the dimensions that the path begins with.
_NARROW = 0.5
# No dimension is left where all samples are one point: the soft count is then far below 1.
_COLLAPSED = 0.5
# Of a rank, with one decimal.
_NEARLY_ZERO = 0.05
# Half of a dimension: estimates of the rank that have crossed by less still round to the same count.
_CROSSED = 0.5
# Share of the work that the working layers do together; with a tenth of an equal share of the way a layer moves little.
_MOST, _LITTLE = 0.8, 0.1
# Samples for each dimension: with as many, two halves of Gaussian samples differ by a few per cent.
_ENOUGH = 5


@dataclass(frozen=True)
class Diagnosis:
    """Readings of one segment of a path, in plain words [ours].

    Attributes:
        first: Number of the segment's first layer; all layers are counted from 1 along the whole path.
        diverged: The first layer with a reading that is not finite; ``None`` where all are.
        leaks: Whether L̃ > 0.
        dimensions: Cost of identity of the first layer and the least one, the soft count of dimensions; NaN where it
            was not read.
        widest: The greatest one.
        narrowest: The layer that starts where it is least.
        rank_from_below: Median of −2H/L̃ along the path, by the momentum form where it was read; NaN where neither was.
        residual: Median criticality residual along the path, or that of any block; NaN where neither was read.
        work: Each layer's share of the kinetic energy of the path, ρ_l times kinetic energy, shape (L,); empty where it
            was not read, and zero where nothing moves.
        working: The fewest layers that do 80 % of the work, in order.
        moves_little: Layers with less than a tenth of an equal share of the path's length; without a leak, with less
            than a tenth of the median block influence. What such a layer is worth is measured by `ablate_path`.
        influences: Block influence of each layer, shape (L,); empty where it was not read.
        num_samples: How many samples were read, by the layer with the fewest; ``None`` where that is not known.
        disagreement: By how much the least cost of identity of two halves of the samples differs, as a share of it;
            NaN where halves were not read.
        width: Number of neurons; ``None`` where that is not known.

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
    widest: float = float("nan")
    influences: Tensor = field(default_factory=lambda: torch.zeros(0))
    num_samples: int | None = None
    disagreement: float = float("nan")
    width: int | None = None

    @property
    def trust(self) -> Trust:
        """Whether the Hamiltonian can be trusted; yes with a residual below 0.1, partly below 0.5."""
        return _trust(self.residual)

    @property
    def has_collapsed(self) -> bool:
        """Whether no dimension is left somewhere on a leaky path."""
        return self.leaks and self.dimensions[1] < _COLLAPSED

    @property
    def has_bottleneck(self) -> bool | None:
        """Whether the path narrows to half of the cost of identity that it begins with, or less.

        ``None`` is no verdict: the cost of identity was not read, or the training of a path that leaks is far from an
        optimum.
        """
        if self.dimensions[1] != self.dimensions[1] or (self.leaks and self.trust == "no"):
            return None
        return self.dimensions[1] <= _NARROW * self.dimensions[0]

    @property
    def has_enough_samples(self) -> bool | None:
        """Whether there are five samples for each dimension that was read; ``None`` where either is not known."""
        if self.num_samples is None or self.dimension_read != self.dimension_read:
            return None
        return self.num_samples >= _ENOUGH * self.dimension_read

    @property
    def counts_dimensions(self) -> bool:
        """Whether the cost of identity counts dimensions; above the width its features cannot express A."""
        return self.width is None or self.dimensions[1] <= self.width * (1 + 1e-6)

    @property
    def dimension_read(self) -> float:
        """Dimensions that the samples have to show, of the widest layer or, with a leak, of the narrowest."""
        greatest = self.dimensions[1] if self.leaks else self.widest
        return greatest if self.width is None else min(greatest, float(self.width))

    @property
    def rank_estimates(self) -> tuple[float, float] | None:
        """The two estimates of the rank of the bottleneck, the lower one first.

        As L̃ grows the median of −2H/L̃ comes from below and the least cost of identity from above. Where they have met,
        the discretisation may have them cross by a little. ``None`` is no estimate; `sentences` says why.
        """
        return _rank_estimates(self.rank_from_below, self.dimensions[1], self.residual)

    @property
    def sentences(self) -> tuple[str, ...]:
        """Answers to the four questions of a reader."""
        if self.diverged is not None:
            return (f"Diverged: readings are not finite from layer {self.diverged} on, and nothing can be said.",)
        return sentences_of(self)


def diagnose(readings: Readings) -> list[Diagnosis]:
    """Say what readings mean, segment by segment.

    Args:
        readings: Of any quantities; cost of identity, kinetic energy, a Hamiltonian and the criticality residual are
            looked at.

    Returns:
        One diagnosis a segment; one in all for a path in one piece.

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
    """All sentences, after what was read where that is told, with a line before those of each of several segments."""
    found = [f"Read of {source}."] if source else []
    parts = diagnose(readings)
    for number, part in enumerate(parts, start=1):
        if len(parts) > 1:
            layers = tuple(range(part.first, part.first + list(readings.segments)[number - 1]))
            found.append(f"Segment {number}, {ranges(layers)}:")
        found.extend(part.sentences)
    return found


def work_of_layers(readings: Readings) -> list[tuple[float, bool]]:
    """Of each layer its share of the work of its segment, NaN where that was not read, and whether it moves little."""
    found: list[tuple[float, bool]] = []
    for part, diagnosis in zip(readings.split(), diagnose(readings), strict=True):
        shares = diagnosis.work.tolist() or [float("nan")] * len(part.step_sizes)
        found += [
            (share, number in diagnosis.moves_little) for number, share in enumerate(shares, start=diagnosis.first)
        ]
    return found


def rank_scalars(readings: Readings, prefix: str = "") -> dict[str, Tensor]:
    """Estimates of the rank of each bottleneck by log key, ``rank/lower`` and ``rank/upper``, where there are any."""
    parts = readings.split()
    estimates = [_rank_estimates(_rank_from_below(part), float(_costs(part).min()), _residual(part)) for part in parts]
    return {
        f"{prefix}rank/{f'segment_{number}/' if len(parts) > 1 else ''}{end}": torch.tensor(rank, dtype=torch.float64)
        for number, found in enumerate(estimates, start=1)
        for end, rank in zip(("lower", "upper"), found or (), strict=False)
    }


def _diagnose(part: Readings, first: int) -> Diagnosis:
    costs = _costs(part)
    kinetic = part.quantities.get("kinetic_energy", torch.zeros(0))
    work, length = layer_shares(kinetic, part.step_sizes[: len(kinetic)])
    influences = part.quantities.get("block_influence", torch.zeros(0))
    if part.effective_depth > 0 or not len(influences):
        little = length < _LITTLE / max(1, len(length))
    else:
        little = influences < _LITTLE * influences.median()
    return Diagnosis(
        first=first,
        diverged=_first_broken(part, first),
        leaks=part.effective_depth > 0,
        dimensions=(float(costs[0]), float(costs.min())),
        narrowest=first + int(costs.argmin()),
        rank_from_below=_rank_from_below(part),
        residual=_residual(part),
        work=work,
        working=tuple(first + index for index in fewest_layers(work, _MOST)),
        moves_little=tuple(first + index for index in little.nonzero().flatten().tolist()),
        widest=float(costs.max()),
        influences=influences,
        num_samples=min(part.num_samples, default=None),
        disagreement=_disagreement(part),
        width=part.widths[0] if part.widths else None,
    )


def _first_broken(part: Readings, first: int) -> int | None:
    # From a state of zeros, as of a decoder's queries, any way is infinitely long.
    checked = [values for name, values in part.quantities.items() if name != "relative_speed"]
    broken = [index for values in checked for index in (~torch.isfinite(values)).nonzero().flatten()]
    return first + int(min(broken)) if broken else None


def _trust(residual: float) -> Trust:
    if residual != residual:
        return "unknown"
    return "yes" if residual < _GOOD else "partly" if residual < _FAIR else "no"


def _rank_estimates(below: float, above: float, residual: float) -> tuple[float, float] | None:
    is_one = _trust(residual) != "no" and -_NEARLY_ZERO <= below <= above + _CROSSED
    return (min(below, above), max(below, above)) if is_one else None


def _rank_from_below(part: Readings) -> float:
    form = "hamiltonian" if "hamiltonian" in part.quantities else "energy_hamiltonian"
    return float(part.summaries().get(f"{form}/bottleneck_rank", torch.nan))


def _costs(part: Readings) -> Tensor:
    return part.quantities.get("cost_of_identity", torch.full((1,), torch.nan))


def _disagreement(part: Readings) -> float:
    """Difference of the least cost of identity of two halves of the samples, as a share of their mean."""
    if len(part.halves) < 2 or "cost_of_identity" not in part.quantities:
        return float("nan")
    one, other = (float(half["cost_of_identity"].min()) for half in part.halves)
    return abs(one - other) / max((one + other) / 2, 1e-12)


def _residual(part: Readings) -> float:
    found = part.quantities.get("criticality_residual", part.quantities.get("pontryagin_residual"))
    return float("nan") if found is None else float(path_median(found, part.step_sizes))
