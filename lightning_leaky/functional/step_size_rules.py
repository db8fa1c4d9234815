"""Rules of adapting step-sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lightning_leaky.functional._checks import check_non_negative, check_positive, implements, widen
from lightning_leaky.functional.features import Activation, features, resolve_features
from lightning_leaky.functional.k_norm import KNorm, k_inner_products_from_moments
from lightning_leaky.functional.moments import feature_products, inner_products, split_moments
from lightning_leaky.functional.movement import relative_speed_of
from lightning_leaky.functional.step_sizes import distance_squares, relative_distances_of


class StepSizeRule(Protocol):
    """How fast each layer changes; the step-sizes become inverse to it (`adaptive_step_sizes`).

    Any object with these two methods is a rule. Micro-batches and processes add up its sums.

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
        """Sums over samples of one layer, of any shape, from A_{l−1} and A_l: shape (N, w), no padding.

        Inputs are float32 at least. Sum in float64 what must not lose digits.
        """

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
    """The share of activations that a layer switches on or off, per unit of p, and a floor [ours].

    ``c_l = s_l/ρ_l + floor · mean_k(s_k/ρ_k)``, where s_l is the share of the entries of A that change sign in layer l.
    Without sign changes ReLU is one linear map, and layers could merge; many changes use its nonlinearity. The floor
    keeps layers without a switch from taking the whole path. `docs/step_sizes.md` compares the rules.

    Args:
        floor: Added to each layer, in units of the mean over the layers.

    Raises:
        ValueError: If the floor is negative or not finite.

    Example:
        >>> rule = SwitchesRule(floor=0.0)
        >>> sums = rule.sums(torch.tensor([[1.0, 2.0]]), torch.tensor([[-1.0, 2.0]]))
        >>> rule.distances(sums[None], torch.tensor([1.0]), effective_depth=1.0)
        tensor([0.5000], dtype=torch.float64)
    """

    floor: float = 0.1

    def __post_init__(self) -> None:
        check_non_negative("floor", self.floor)

    def sums(self, previous: Tensor, current: Tensor) -> Tensor:
        """Number of entries that change sign (0 is off), and of all entries."""
        switched = widen(((previous > 0) != (current > 0)).sum())
        # Comparisons hide NaN, but the hook must see that a layer has diverged.
        return torch.stack([switched, torch.full_like(switched, current.numel())]) + 0 * current.sum()

    def distances(self, sums: Tensor, step_sizes: Tensor, effective_depth: float) -> Tensor:
        """Shares per unit of p, plus the floor."""
        rates = sums[:, 0] / sums[:, 1] / step_sizes.to(sums)
        return rates + self.floor * rates.mean()


@dataclass(frozen=True)
class RelativeSpeedRule:
    """The relative distance in the K-norm, ``c_l = ‖V_l‖_K / ‖A_{l−1}‖_K`` [ours]; see `relative_speed`.

    It sums second moments, ``8 (d² + 2dw)`` bytes per layer.

    Args:
        gamma_rel: γ0 of the stabiliser γ = γ0 ‖K‖_op.
        features: σ(A), as of `resolve_features`; ``"linear"`` suits blocks without a leak.
    """

    gamma_rel: float = 1e-3
    features: Activation = "relu"

    def __post_init__(self) -> None:
        check_positive("gamma_rel", self.gamma_rel)
        resolve_features(self.features)

    def sums(self, previous: Tensor, current: Tensor) -> Tensor:
        """Second moments of A and its step."""
        start, moved = widen(previous), widen(current) - widen(previous)
        products = feature_products(features(start, self.features), [start, moved])
        row = products.new_zeros(1, products.shape[-1])
        row[0, :4] = inner_products([start, moved]).flatten()
        return torch.cat([products, row])

    def distances(self, sums: Tensor, step_sizes: Tensor, effective_depth: float) -> Tensor:
        """Relative speeds per unit of p."""
        moments = split_moments(sums[..., :-1, :], sums[..., -1, :4].reshape(-1, 2, 2))
        products = k_inner_products_from_moments(moments, KNorm(gamma_rel=self.gamma_rel))
        return relative_speed_of(products) / step_sizes.to(products)


RULES: dict[str, StepSizeRule] = {
    "relative_distance": RelativeDistanceRule(),
    "switches": SwitchesRule(),
    "relative_speed": RelativeSpeedRule(),
}
"""The named rules."""


def resolve_rule(rule: str | StepSizeRule) -> StepSizeRule:
    """Return a named rule.

    Args:
        rule: ``"relative_distance"`` (the paper's), ``"switches"`` or ``"relative_speed"`` (ours), or any
            `StepSizeRule`.

    Raises:
        ValueError: If the name is not known, or the object is not a rule.

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
