"""The Lagrangian and its cross term."""

from __future__ import annotations

from torch import Tensor

from lightning_leaky.functional._checks import check_matrices
from lightning_leaky.functional.features import given_features
from lightning_leaky.functional.k_norm import KNorm, inner_products_of
from lightning_leaky.functional.leaky_step import leak_scale

_DEFAULT = KNorm()


def cross_term(
    representation: Tensor, velocity: Tensor, k_norm: KNorm = _DEFAULT, features: Tensor | None = None
) -> Tensor:
    """Cross term ``⟨∂_pA, A⟩_K`` of the Lagrangian (arXiv 2405.17573, section 1.3).

    Args:
        representation: A, shape (..., N, w).
        velocity: ∂_pA, shape (..., N, w).
        k_norm: Which K-norm.
        features: σ(A), shape (..., N, d); ``[relu(A), 1]`` by default.

    Returns:
        Shape (...), of either sign, float64.

    Raises:
        ValueError: If a tensor is not floating-point, finite and of its shape.

    Example:
        >>> A, V = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 5.0]])
        >>> cross_term(A, V, KNorm(gamma=4.0))
        tensor(1., dtype=torch.float64)
    """
    wide, wide_velocity = check_matrices(representation=representation, velocity=velocity)
    return inner_products_of(k_norm, given_features(wide, features), wide, wide_velocity)[..., 0, 1]


def lagrangian(
    representation: Tensor,
    velocity: Tensor,
    effective_depth: float,
    k_norm: KNorm = _DEFAULT,
    features: Tensor | None = None,
) -> Tensor:
    """Lagrangian ``(L̃/2)‖A‖²_K + ⟨∂_pA, A⟩_K + (1/(2L̃))‖∂_pA‖²_K = (1/(2L̃))‖L̃A + ∂_pA‖²_K`` (section 1.3).

    It is the cost per unit of p, without λ, of the smallest weight that moves A at this velocity. At L̃ = 0 it is the
    kinetic energy.

    Args:
        representation: A, shape (..., N, w).
        velocity: ∂_pA, shape (..., N, w).
        effective_depth: L̃ ≥ 0.
        k_norm: Which K-norm.
        features: σ(A), shape (..., N, d); ``[relu(A), 1]`` by default.

    Returns:
        Shape (...), an energy, ≥ 0, float64.

    Raises:
        ValueError: If a tensor is not floating-point, finite and of its shape, or L̃ < 0.

    Example:
        >>> A, V = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 5.0]])
        >>> lagrangian(A, V, effective_depth=0.5, k_norm=KNorm(gamma=4.0))
        tensor(3.6250, dtype=torch.float64)
    """
    scale = leak_scale(effective_depth)
    wide, wide_velocity = check_matrices(representation=representation, velocity=velocity)
    weighed = effective_depth * wide + wide_velocity
    return 0.5 * scale * inner_products_of(k_norm, given_features(wide, features), weighed)[..., 0, 0]


def lagrangian_of(products: Tensor, effective_depth: float) -> Tensor:
    """Lagrangian from inner products of (A, ∂_pA), shape (..., 2, 2)."""
    square = effective_depth**2 * products[..., 0, 0] + 2 * effective_depth * products[..., 0, 1] + products[..., 1, 1]
    return 0.5 * leak_scale(effective_depth) * square
