"""Cost of identity and potential energy."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_leaky.functional._checks import check_matrices
from lightning_leaky.functional.features import given_features
from lightning_leaky.functional.k_norm import KNorm, inner_products_of
from lightning_leaky.functional.leaky_step import leak_scale

_DEFAULT = KNorm()


def cost_of_identity(representation: Tensor, k_norm: KNorm = _DEFAULT, features: Tensor | None = None) -> Tensor:
    """Cost of identity ``‖A‖²_K``: the least ‖W‖²_F with σ(A)Wᵀ = A (arXiv 2405.17573, section 1.2).

    A soft count of dimensions: the raw form without constant column is rank A for non-negative A, and at least the
    stable rank of any A that σ(A) reproduces (Proposition 1).

    Args:
        representation: A, shape (..., N, w).
        k_norm: Which K-norm; stable with γ = 1e-3 ‖K‖_op by default.
        features: σ(A), shape (..., N, d); ``[relu(A), 1]`` by default.

    Returns:
        Shape (...), no unit, ≥ 0, float64.

    Raises:
        ValueError: If the tensor is not floating-point, finite and of its shape.

    Example:
        >>> cost_of_identity(torch.eye(3), KNorm(gamma=0.0), features=torch.eye(3))
        tensor(3., dtype=torch.float64)
    """
    (wide,) = check_matrices(representation=representation)
    return inner_products_of(k_norm, given_features(wide, features), wide)[..., 0, 0]


def potential_energy(
    representation: Tensor, effective_depth: float, k_norm: KNorm = _DEFAULT, features: Tensor | None = None
) -> Tensor:
    """Potential energy ``−(L̃/2) ‖A‖²_K`` (section 1.3).

    Args:
        representation: A, shape (..., N, w).
        effective_depth: L̃ ≥ 0.
        k_norm: Which K-norm.
        features: σ(A), shape (..., N, d); ``[relu(A), 1]`` by default.

    Returns:
        Shape (...), an energy, ≤ 0.

    Raises:
        ValueError: As `cost_of_identity`, or if L̃ is negative.

    Example:
        >>> potential_energy(torch.tensor([[1.0, 2.0]]), 7.0, KNorm(gamma=4.0))
        tensor(-1.7500, dtype=torch.float64)
    """
    return potential_energy_of(cost_of_identity(representation, k_norm, features), effective_depth)


def potential_energy_of(representation_square: Tensor, effective_depth: float) -> Tensor:
    """Potential energy from ‖A‖²_K."""
    if effective_depth == 0:  # even if the K-norm is infinite
        return torch.zeros_like(representation_square)
    return -0.5 * leak_scale(effective_depth) * effective_depth**2 * representation_square
