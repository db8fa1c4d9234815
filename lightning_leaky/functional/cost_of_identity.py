"""Cost of identity and potential energy: what it costs a layer to keep its representation."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_leaky.functional._checks import check_matrices
from lightning_leaky.functional.k_norm import KNorm, inner_products_of, k_inner_products_from_moments
from lightning_leaky.functional.leak import leak_scale
from lightning_leaky.functional.moments import SecondMoments

_DEFAULT = KNorm()


def cost_of_identity(representation: Tensor, k_norm: KNorm = _DEFAULT) -> Tensor:
    """Cost of identity ``‖A‖²_K``: the least ‖W‖²_F with σ(A)Wᵀ = A (arXiv 2405.17573, section 1.2).

    A soft count of dimensions: without the constant column and with the raw form it equals rank A for non-negative A
    and is at least the stable rank of any A that its features reproduce (Proposition 1).

    Args:
        representation: A, shape (..., N, w), samples in rows.
        k_norm: Which K-norm; stable with γ = 1e-3 ‖K‖_op by default.

    Returns:
        Shape (...), no unit, ≥ 0, float64.

    Raises:
        ValueError: If `representation` is not floating-point, finite and of shape (..., N, w).

    Example:
        >>> cost_of_identity(torch.eye(3), KNorm(gamma=0.0, constant_column=False))
        tensor(3., dtype=torch.float64)
    """
    (wide,) = check_matrices(representation=representation)
    return inner_products_of(k_norm, wide, wide)[..., 0, 0]


def cost_of_identity_from_moments(moments: SecondMoments, k_norm: KNorm = _DEFAULT) -> Tensor:
    """Cost of identity from second moments; see `cost_of_identity`.

    Args:
        moments: Second moments whose first matrix is A.
        k_norm: Which K-norm.

    Returns:
        Shape (...).

    Example:
        >>> cost_of_identity_from_moments(second_moments(torch.tensor([[1.0, 2.0]])), KNorm(gamma=4.0))
        tensor(0.5000, dtype=torch.float64)
    """
    return k_inner_products_from_moments(moments, k_norm)[..., 0, 0]


def potential_energy(representation: Tensor, effective_depth: float, k_norm: KNorm = _DEFAULT) -> Tensor:
    """Potential energy ``−(L̃/2) ‖A‖²_K``, minus the cost of identity in units of energy (section 1.3).

    Args:
        representation: A, shape (..., N, w), samples in rows.
        effective_depth: L̃ ≥ 0.
        k_norm: Which K-norm.

    Returns:
        Shape (...), ≤ 0.

    Raises:
        ValueError: As `cost_of_identity`, or if L̃ is negative.

    Example:
        >>> potential_energy(torch.tensor([[1.0, 2.0]]), 7.0, KNorm(gamma=4.0))
        tensor(-1.7500, dtype=torch.float64)
    """
    return potential_energy_of(cost_of_identity(representation, k_norm), effective_depth)


def potential_energy_from_moments(moments: SecondMoments, effective_depth: float, k_norm: KNorm = _DEFAULT) -> Tensor:
    """Potential energy from second moments; see `potential_energy`.

    Args:
        moments: Second moments whose first matrix is A.
        effective_depth: L̃ ≥ 0.
        k_norm: Which K-norm.

    Returns:
        Shape (...).

    Example:
        >>> potential_energy_from_moments(second_moments(torch.tensor([[1.0, 2.0]])), 7.0, KNorm(gamma=4.0))
        tensor(-1.7500, dtype=torch.float64)
    """
    return potential_energy_of(cost_of_identity_from_moments(moments, k_norm), effective_depth)


def potential_energy_of(representation_square: Tensor, effective_depth: float) -> Tensor:
    """Potential energy from ‖A‖²_K."""
    if effective_depth == 0:  # also where the K-norm is infinite, for want of any feature
        return torch.zeros_like(representation_square)
    return -0.5 * leak_scale(effective_depth) * effective_depth**2 * representation_square
