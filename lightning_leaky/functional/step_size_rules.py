"""Rules of adapting step-sizes: how fast each layer changes, from sums over samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lightning_leaky.functional._checks import check_non_negative, widen
from lightning_leaky.functional.features import Activation
from lightning_leaky.functional.k_norm import KNorm, k_inner_products_from_moments
from lightning_leaky.functional.kinetic_energy import speed_of
from lightning_leaky.functional.leak import leak_scale
from lightning_leaky.functional.moments import inner_product, split_moments
from lightning_leaky.functional.step_sizes import distance_squares, relative_distances_of


@runtime_checkable
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
        >>> isinstance(Distance(), StepSizeRule)
        True
    """

    def sums(self, previous: Tensor, current: Tensor) -> Tensor:
        """Sums over samples of one layer, of any shape, from A_{l−1} and A_l, each of shape (N, w), in float64."""

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
class KineticEnergyRule:
    """Our rule: the speed in the K-norm, ``c_l = ‖V_l‖_{K+γ}/L̃ + floor``, the square root of the kinetic energy.

    The K-norm asks how large a weight it takes to make the change: small directions count as much as large ones. The
    floor keeps layers that hardly move from taking the whole path. It costs a Gram matrix of the features of each
    layer, about as much as a training step of that layer.

    Args:
        gamma_rel: γ0 of the K-norm's stabiliser.
        floor: Added to each speed, in units of L̃.
        activation: Entrywise nonlinearity of the features.
        constant_column: Whether the features end with a column of ones.

    Example:
        >>> rule = KineticEnergyRule(gamma_rel=1.0, floor=0.0)
        >>> sums = rule.sums(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 5.0]]))
        >>> rule.distances(sums[None], torch.tensor([1.0]), effective_depth=1.0)  # √(9 / (6 + 6))
        tensor([0.8660], dtype=torch.float64)
    """

    gamma_rel: float = 1e-3
    floor: float = 0.1
    activation: Activation = "relu"
    constant_column: bool = True

    def __post_init__(self) -> None:
        check_non_negative("floor", self.floor)
        self._k_norm()  # complains of γ0

    def sums(self, previous: Tensor, current: Tensor) -> Tensor:
        """Sᵀ[S, Δ] for S = σ(A_{l−1}) and Δ = A_l − A_{l−1}, and below it a row that begins with ‖Δ‖²."""
        change = widen(current) - widen(previous)
        sigma, beside = self._k_norm().features_beside(widen(previous), [change])
        products = sigma.mT @ beside
        last = products.new_zeros(1, products.shape[1])
        last[0, 0] = inner_product(change, change)
        return torch.cat([products, last])

    def distances(self, sums: Tensor, step_sizes: Tensor, effective_depth: float) -> Tensor:
        """Speeds in units of L̃, plus the floor."""
        moments = split_moments(sums[:, :-1], sums[:, -1:, :1])
        change = k_inner_products_from_moments(moments, self._k_norm())[:, 0, 0]
        return speed_of(change) / step_sizes.to(change) * leak_scale(effective_depth) + self.floor

    def _k_norm(self) -> KNorm:
        return KNorm(gamma_rel=self.gamma_rel, activation=self.activation, constant_column=self.constant_column)


RULES: dict[str, Callable[[Activation, bool], StepSizeRule]] = {
    "relative_distance": lambda activation, constant_column: RelativeDistanceRule(),
    "kinetic_energy": lambda activation, constant_column: KineticEnergyRule(
        activation=activation, constant_column=constant_column
    ),
}
"""The named rules, made for the features of a network: their activation, and whether they have a constant column."""


def resolve_rule(
    rule: str | StepSizeRule, activation: Activation = "relu", constant_column: bool = True
) -> StepSizeRule:
    """Return the rule that a name stands for.

    Args:
        rule: ``"relative_distance"`` (the paper's), ``"kinetic_energy"``, or any `StepSizeRule`.
        activation: Entrywise nonlinearity of the network's features.
        constant_column: Whether they end with a column of ones.

    Raises:
        ValueError: If the name is not known, or the object is no rule.

    Example:
        >>> resolve_rule("relative_distance")
        RelativeDistanceRule()
    """
    if isinstance(rule, str) and rule in RULES:
        return RULES[rule](activation, constant_column)
    if isinstance(rule, (str, type)) or not isinstance(rule, StepSizeRule):
        raise ValueError(
            f"`rule` must be one of {sorted(RULES)} or an object with `sums` and `distances`, got {rule!r}."
        )
    return rule
