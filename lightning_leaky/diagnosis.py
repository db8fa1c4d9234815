"""What readings say in plain words: is there a bottleneck, which layers work, can it be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_leaky.metrics.path_reader import Readings

Trust = Literal["unknown", "no", "partly", "yes"]

# Of the residual: at 0.1 the two forms of the Hamiltonian agree within the width of a chart's line, at 0.5 in sign.
_GOOD, _FAIR = 0.1, 0.5
# A bottleneck has at most half of the dimensions that the path begins with.
_NARROW = 0.5
# No dimension is left where all samples are one point: the soft count is then far below 1.
_COLLAPSED = 0.5
# Share of the work that the working layers do together; a layer is idle with a tenth of an equal share of the way.
_MOST, _IDLE = 0.8, 0.1


@dataclass(frozen=True)
class Diagnosis:
    """Readings of one segment of a path, in plain words [ours].

    Attributes:
        least_dimensions: Least cost of identity over the layers, the soft count of dimensions; bounds the bottleneck's
            rank from above. NaN where it was not read.
        narrowest: The layer that starts there, counted from 1.
        rank_from_below: Median of −2H/L̃, by the momentum form where it was read; NaN where neither was.
        has_bottleneck: Whether the least cost of identity is at most half of the first layer's; ``None`` where it was
            not read, and without a leak, where the theory of bottlenecks says nothing.
        has_collapsed: Whether no dimension is left somewhere on a leaky path.
        residual: Median criticality residual; NaN where it was not read.
        trust: Whether the Hamiltonian can be trusted, by that residual: below 0.1 yes, below 0.5 partly.
        work: Each layer's share of the kinetic energy of the path, ρ_l times kinetic energy, shape (L,); empty where it
            was not read.
        working: The fewest layers that do 80 % of the work, counted from 1, in order.
        idle: Layers with less than a tenth of an equal share of the path's length, counted from 1, in order.
    """

    least_dimensions: float
    narrowest: int
    rank_from_below: float
    has_bottleneck: bool | None
    has_collapsed: bool
    residual: float
    trust: Trust
    work: Tensor
    working: tuple[int, ...]
    idle: tuple[int, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        """Answers to the four questions of a reader."""
        return (self._of_bottleneck(), self._of_rank(), self._of_work(), self._of_trust())

    def _of_bottleneck(self) -> str:
        if self.least_dimensions != self.least_dimensions:
            return "Bottleneck: not known, for the cost of identity was not read."
        if self.has_bottleneck is None:
            return (
                f"Bottleneck: not judged without a leak (L̃ = 0); the cost of identity is least, "
                f"{self.least_dimensions:.1f}, before layer {self.narrowest}."
            )
        if self.has_collapsed:
            return f"Bottleneck: the path has collapsed; before layer {self.narrowest} no dimension is left."
        found = f"the cost of identity is least, {self.least_dimensions:.1f}, before layer {self.narrowest}"
        return f"Bottleneck: {'yes' if self.has_bottleneck else 'no'}; {found}."

    def _of_rank(self) -> str:
        if self.rank_from_below != self.rank_from_below:
            return "Rank: no estimate, for no Hamiltonian was read, or there is no leak (L̃ = 0)."
        below = round(self.rank_from_below, 1) + 0.0  # no −0.0
        above = f"{self.least_dimensions:.1f} (least cost of identity, from above)"
        return f"Rank: between {below:.1f} (−2H/L̃, from below) and {above}."

    def _of_work(self) -> str:
        if not len(self.work):
            return "Layers: not known, for the kinetic energy was not read."
        if self.has_collapsed:
            return "Layers: there is nothing left to work on."
        idle = f"idle: {ranges(self.idle)}" if self.idle else "none is idle"
        return f"Layers: {_MOST:.0%} of the work is done in {ranges(self.working)}; {idle}."

    def _of_trust(self) -> str:
        return (
            "Trust: "
            + {
                "unknown": "the energies are exact; that training is at an optimum was not read, so H says little.",
                "no": f"not yet, far from an optimum; the median criticality residual is {self.residual:.2f}.",
                "partly": f"a first impression; the median criticality residual is {self.residual:.2f}.",
                "yes": f"yes; the median criticality residual is {self.residual:.2f}.",
            }[self.trust]
        )


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
        Bottleneck: yes; the cost of identity is least, 2.0, before layer 2.
        Rank: no estimate, for no Hamiltonian was read, or there is no leak (L̃ = 0).
        Layers: 80% of the work is done in layer 1; idle: layer 2.
        Trust: the energies are exact; that training is at an optimum was not read, so H says little.
    """
    return [_diagnose(part) for part in readings.split()]


def _diagnose(part: Readings) -> Diagnosis:
    dimensions = part.quantities.get("cost_of_identity", torch.zeros(0))
    residual = _median(part.quantities.get("criticality_residual"))
    least, narrowest = (float(dimensions.min()), int(dimensions.argmin()) + 1) if len(dimensions) else (float("nan"), 0)
    form = "hamiltonian" if "hamiltonian" in part.quantities else "energy_hamiltonian"
    rank = part.summaries().get(f"{form}/bottleneck_rank", torch.tensor(float("nan")))
    work, way = _shares(part)
    leaks = part.effective_depth > 0
    return Diagnosis(
        least_dimensions=least,
        narrowest=narrowest,
        rank_from_below=float(rank),
        has_bottleneck=bool(least <= _NARROW * float(dimensions[0])) if len(dimensions) and leaks else None,
        has_collapsed=leaks and least < _COLLAPSED,
        residual=residual,
        trust=_trust(residual),
        work=work,
        working=_fewest(work, _MOST),
        idle=tuple(index + 1 for index in (way < _IDLE / max(1, len(way))).nonzero().flatten().tolist()),
    )


def _median(values: Tensor | None) -> float:
    return float("nan") if values is None else float(values.quantile(0.5))


def _trust(residual: float) -> Trust:
    if residual != residual:
        return "unknown"
    return "yes" if residual < _GOOD else "partly" if residual < _FAIR else "no"


def _shares(part: Readings) -> tuple[Tensor, Tensor]:
    """Each layer's share of the path's kinetic energy, and of its length, whose speed is the root of it."""
    kinetic = part.quantities.get("kinetic_energy", torch.zeros(0))
    if not len(kinetic):
        return kinetic, kinetic
    work, way = part.step_sizes * kinetic, part.step_sizes * kinetic.clamp(min=0).sqrt()
    return work / work.sum(), way / way.sum()


def _fewest(shares: Tensor, most: float) -> tuple[int, ...]:
    """The fewest entries that make up so much of all, counted from 1, in order."""
    order = shares.argsort(descending=True)
    count = int((shares[order].cumsum(0) < most).sum()) + 1
    return tuple(sorted(int(index) + 1 for index in order[:count]))


def ranges(numbers: tuple[int, ...]) -> str:
    """Numbers of layers in order, as a reader writes them.

    Example:
        >>> ranges((1, 2, 3, 7, 9, 10))
        'layers 1–3, 7, 9–10'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    written = ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return f"layer{'s' if len(numbers) > 1 else ''} {written}"
