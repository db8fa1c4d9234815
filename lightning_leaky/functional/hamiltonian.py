"""The Hamiltonian and the bottleneck rank."""

from __future__ import annotations

from torch import Tensor

from lightning_leaky.functional._checks import check_matrices, check_positive
from lightning_leaky.functional.cost_of_identity import potential_energy_of
from lightning_leaky.functional.features import given_features
from lightning_leaky.functional.k_norm import KNorm, inner_products_of
from lightning_leaky.functional.kinetic_energy import kinetic_energy_of
from lightning_leaky.functional.leaky_step import leak_scale
from lightning_leaky.functional.moments import inner_product, momentum_moments

_DEFAULT = KNorm()


def hamiltonian(
    representation: Tensor, momentum: Tensor, effective_depth: float, features: Tensor | None = None
) -> Tensor:
    """Hamiltonian in momentum form, ``H = (L̃/2)‖Bᵀσ(A)‖²_F − L̃ tr(BᵀA)`` (arXiv 2405.17573, section 2.1).

    For a discrete net pair A_{l−1} with B_l = −(1/λ) ∂C/∂A_l: back-propagation is symplectic Euler for H in that
    pairing; A_l with B_l drifts more. At L̃ = 0 it is ``½‖Bᵀσ(A)‖²_F``.

    Args:
        representation: A_{l−1}, shape (..., N, w).
        momentum: B_l, shape (..., N, w).
        effective_depth: L̃ ≥ 0.
        features: σ(A), shape (..., N, d); ``[relu(A), 1]`` by default.

    Returns:
        Shape (...), an energy, of either sign, float64. Constant over the layers of an optimum.

    Raises:
        ValueError: If a tensor is not floating-point, finite and of its shape, or L̃ < 0.

    Example:
        >>> hamiltonian(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0]]), effective_depth=2.0)
        tensor(2., dtype=torch.float64)
    """
    moments = momentum_moments(representation, momentum, features)
    square = inner_product(moments.features_momentum, moments.features_momentum)
    return hamiltonian_of(square, moments.momentum_representation, effective_depth)


def hamiltonian_of(features_momentum_square: Tensor, momentum_representation: Tensor, effective_depth: float) -> Tensor:
    """Hamiltonian in momentum form from ‖Bᵀσ(A)‖²_F and tr(BᵀA)."""
    return 0.5 / leak_scale(effective_depth) * features_momentum_square - effective_depth * momentum_representation


def energy_hamiltonian(
    representation: Tensor,
    velocity: Tensor,
    effective_depth: float,
    k_norm: KNorm = _DEFAULT,
    features: Tensor | None = None,
) -> Tensor:
    """Hamiltonian in energy form, ``H_γ = (1/(2L̃))‖∂_pA‖²_K − (L̃/2)‖A‖²_K``: kinetic plus potential (section 2.2).

    It needs no loss and no weight decay, but depends on the stabiliser γ.

    Args:
        representation: A, shape (..., N, w).
        velocity: ∂_pA, shape (..., N, w).
        effective_depth: L̃ ≥ 0.
        k_norm: Which K-norm.
        features: σ(A), shape (..., N, d); ``[relu(A), 1]`` by default.

    Returns:
        Shape (...), an energy, of either sign, float64.

    Raises:
        ValueError: If a tensor is not floating-point, finite and of its shape, or L̃ < 0.

    Example:
        >>> A, V = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 5.0]])
        >>> energy_hamiltonian(A, V, effective_depth=0.5, k_norm=KNorm(gamma=4.0))
        tensor(2.3750, dtype=torch.float64)
    """
    wide, wide_velocity = check_matrices(representation=representation, velocity=velocity)
    products = inner_products_of(k_norm, given_features(wide, features), wide, wide_velocity)
    return energy_hamiltonian_of(products, effective_depth)


def energy_hamiltonian_of(products: Tensor, effective_depth: float) -> Tensor:
    """Hamiltonian in energy form from inner products of (A, ∂_pA), shape (..., 2, 2)."""
    kinetic = kinetic_energy_of(products[..., 1, 1], effective_depth)
    return kinetic + potential_energy_of(products[..., 0, 0], effective_depth)


def bottleneck_rank(hamiltonian: Tensor, effective_depth: float) -> Tensor:
    """Bottleneck-rank estimate ``−2H/L̃`` (section 2.2), which tends to k* from below as L̃ grows.

    Args:
        hamiltonian: H, any shape.
        effective_depth: L̃ > 0.

    Returns:
        The shape of `hamiltonian`, no unit.

    Raises:
        ValueError: If L̃ is not positive.

    Example:
        >>> bottleneck_rank(torch.tensor(-10.5), effective_depth=7.0)
        tensor(3.)
    """
    return rank_of(hamiltonian, check_positive("effective_depth", effective_depth))


def rank_of(hamiltonian: Tensor, effective_depth: float) -> Tensor:
    """−2H/L̃, without checks."""
    return -2 * hamiltonian / effective_depth


def hamiltonian_spread(hamiltonian: Tensor) -> Tensor:
    """Spread ``max_l H_l − min_l H_l`` of the Hamiltonian over the layers.

    Zero at an optimum of the continuous objective. Discretisation and unfinished training increase it; the criticality
    residual tells the two apart.

    Args:
        hamiltonian: H, shape (..., L).

    Returns:
        Shape (...), an energy, ≥ 0.

    Example:
        >>> hamiltonian_spread(torch.tensor([-3.0, -2.5, -2.0]))
        tensor(1.)
    """
    return hamiltonian.amax(-1) - hamiltonian.amin(-1)
