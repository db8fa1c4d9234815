"""Rules of adapting step-sizes: how fast each layer changes, from sums over samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lightning_leaky.functional._checks import check_non_negative, implements, widen
from lightning_leaky.functional.step_sizes import distance_squares, relative_distances_of


class StepSizeRule(Protocol):
    """How fast each layer changes; the step-sizes become inverse to it (`adaptive_step_sizes`).

    What a rule knows of a layer are sums over samples, so that micro-batches and processes add up. Any object with
    these two methods is a rule.

    Example:
        >>> class Distance:
        ...     def sums(self, previous, current):
        ...         return (current - previous).square().sum()[None]
        ...
        ...     def distances(self, sums, step_sizes, effective_depth):
        ...         return sums[:, 0].sqrt() / step_sizes
        >>> rule = resolve_rule(Distance())
    """

    def sums(self, previous: Tensor, current: Tensor) -> Tensor:
        """Sums over samples of one layer, of any shape, from A_{l−1} and A_l: shape (N, w), float64, no padding."""

    def distances(self, sums: Tensor, step_sizes: Tensor, effective_depth: float) -> Tensor:
        """c_l ≥ 0, change per unit of p, shape (L,), from the sums of all layers, shape (L, ...), and their ρ."""


@dataclass(frozen=True)
class RelativeDistanceRule:
    """The paper's rule, ``c_l = ‖A_l − A_{l−1}‖_F / (ρ_l ‖A_l‖_F)`` (arXiv 2405.17573, section 4).

    Example:
        >>> rule = RelativeDistanceRule()
        >>> sums = rule.sums(torch.tensor([[1.0]]), torch.tensor([[2.0]]))
        >>> rule.distances(sums[None], torch.tensor([1.0]), effective_depth=1.0)
        tensor([0.5000], dtype=torch.float64)
    """

    def sums(self, previous: Tensor, current: Tensor) -> Tensor:
        """‖A_l − A_{l−1}‖² and ‖A_l‖²."""
        return distance_squares(previous, current)

    def distances(self, sums: Tensor, step_sizes: Tensor, effective_depth: float) -> Tensor:
        """Relative distances per unit of p."""
        return relative_distances_of(sums.mT, step_sizes)


@dataclass(frozen=True)
class SwitchesRule:
    """Our rule: the share of the activations that a layer switches on or off, per unit of p, and a floor.

    ``c_l = s_l/ρ_l + floor · mean_k(s_k/ρ_k)``, where s_l is the share of the entries of A that change sign in layer l.
    Between two layers in which no sign changes ReLU is one and the same linear map, and they could be one layer; where
    many change, nonlinearity is used. The floor keeps layers without a switch from taking the whole path. It was chosen
    among some thirty ideas on validation data (`docs/step_sizes.md`).

    Args:
        floor: Added to each layer, in units of the mean over the layers.

    Raises:
        ValueError: If the floor is negative or not finite.

    Example:
        >>> rule = SwitchesRule(floor=0.0)
        >>> sums = rule.sums(torch.tensor([[1.0, 2.0, -1.0, 3.0]]), torch.tensor([[-1.0, 2.0, -1.0, 3.0]]))
        >>> rule.distances(sums[None], torch.tensor([0.5]), effective_depth=1.0)
        tensor([0.5000], dtype=torch.float64)
    """

    floor: float = 0.1

    def __post_init__(self) -> None:
        check_non_negative("floor", self.floor)

    def sums(self, previous: Tensor, current: Tensor) -> Tensor:
        """Number of entries that change sign (0 counts as off), and of all entries."""
        switched = widen(((previous > 0) != (current > 0)).sum())
        # NaN where the layer has diverged: comparisons would not say so, and the hook leaves such a mesh alone.
        return torch.stack([switched, torch.full_like(switched, current.numel())]) + 0 * widen(current).sum()

    def distances(self, sums: Tensor, step_sizes: Tensor, effective_depth: float) -> Tensor:
        """Shares per unit of p, plus the floor."""
        rates = sums[:, 0] / sums[:, 1] / step_sizes.to(sums)
        return rates + self.floor * rates.mean()


RULES: dict[str, StepSizeRule] = {"relative_distance": RelativeDistanceRule(), "switches": SwitchesRule()}
"""The named rules."""


def resolve_rule(rule: str | StepSizeRule) -> StepSizeRule:
    """Return the rule that a name stands for.

    Args:
        rule: ``"relative_distance"`` (the paper's), ``"switches"`` (ours), or any `StepSizeRule`.

    Raises:
        ValueError: If the name is not known, or the object is no rule.

    Example:
        >>> resolve_rule("relative_distance")
        RelativeDistanceRule()
    """
    if isinstance(rule, str) and rule in RULES:
        return RULES[rule]
    if isinstance(rule, (str, type)) or not implements(rule, StepSizeRule):
        raise ValueError(
            f"`rule` must be one of {sorted(RULES)} or an object with `sums` and `distances`, got {rule!r}."
        )
    return rule
