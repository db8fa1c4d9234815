"""Velocity, kinetic energy and path length."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_leaky.functional._checks import check_layers, check_matrices
from lightning_leaky.functional.features import given_features
from lightning_leaky.functional.k_norm import KNorm, inner_products_of
from lightning_leaky.functional.leaky_step import leak_scale
from lightning_leaky.functional.step_sizes import check_step_sizes

_DEFAULT = KNorm()


def velocity(previous: Tensor, current: Tensor, step_size: Tensor | float) -> Tensor:
    """Velocity ``V_l = (A_l − A_{l−1}) / ρ_l``.

    Computed from representations, because in float32 −L̃A + σ(A)Wᵀ cancels to noise on layers that hardly move.

    Args:
        previous: A_{l−1}, shape (..., N, w).
        current: A_l, shape (..., N, w).
        step_size: ρ_l > 0, a number or shape (...).

    Returns:
        Shape (..., N, w), float64.

    Raises:
        ValueError: If a tensor is not floating-point, finite and of its shape, or ρ_l ≤ 0.

    Example:
        >>> velocity(torch.tensor([[1.0]]), torch.tensor([[2.0]]), 0.5)
        tensor([[2.]], dtype=torch.float64)
    """
    wide_previous, wide_current = check_matrices(previous=previous, current=current)
    rho = torch.as_tensor(step_size, dtype=wide_current.dtype, device=wide_current.device)
    if not bool((rho > 0).all()):
        raise ValueError(f"`step_size` must be > 0, got {rho.tolist()}.")
    if rho.ndim and rho.shape != wide_current.shape[:-2]:
        raise ValueError(
            f"`step_size` must be a number or one per layer, got shape {tuple(rho.shape)} for {tuple(current.shape)}."
        )
    return (wide_current - wide_previous) / rho[..., None, None]


def kinetic_energy(
    representation: Tensor,
    velocity: Tensor,
    effective_depth: float,
    k_norm: KNorm = _DEFAULT,
    features: Tensor | None = None,
) -> Tensor:
    """Kinetic energy ``(1/(2L̃)) ‖∂_pA‖²_K`` (arXiv 2405.17573, section 1.3); at L̃ = 0, ``½ ‖∂_pA‖²_K``.

    Args:
        representation: A_{l−1}, shape (..., N, w).
        velocity: ∂_pA, as of `velocity`, shape (..., N, w).
        effective_depth: L̃ ≥ 0.
        k_norm: Which K-norm.
        features: σ(A), shape (..., N, d); ``[relu(A), 1]`` by default.

    Returns:
        Shape (...), an energy, ≥ 0, float64.

    Raises:
        ValueError: If a tensor is not floating-point, finite and of its shape, or L̃ < 0.

    Example:
        >>> A, V = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 5.0]])
        >>> kinetic_energy(A, V, effective_depth=0.5, k_norm=KNorm(gamma=4.0))
        tensor(2.5000, dtype=torch.float64)
    """
    wide, wide_velocity = check_matrices(representation=representation, velocity=velocity)
    products = inner_products_of(k_norm, given_features(wide, features), wide_velocity)
    return kinetic_energy_of(products[..., 0, 0], effective_depth)


def kinetic_energy_of(velocity_square: Tensor, effective_depth: float) -> Tensor:
    """Kinetic energy from ‖∂_pA‖²_K."""
    return 0.5 * leak_scale(effective_depth) * velocity_square


def path_length(
    representations: Tensor,
    velocities: Tensor,
    step_sizes: Tensor,
    k_norm: KNorm = _DEFAULT,
    features: Tensor | None = None,
) -> Tensor:
    """Path length ``ℓ = Σ_l ρ_l ‖V_l‖_K`` ≈ ``∫ ‖∂_pA‖_K dp`` (section 3).

    Args:
        representations: A_0, …, A_{L−1}, shape (L, N, w).
        velocities: V_1, …, V_L, shape (L, N, w).
        step_sizes: ρ, shape (L,), positive, summing to 1.
        k_norm: Which K-norm.
        features: σ(A), shape (..., N, d); ``[relu(A), 1]`` by default.

    Returns:
        A scalar, no unit.

    Raises:
        ValueError: If a tensor is not as described.

    Example:
        >>> A, V = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.0, 5.0]]])
        >>> path_length(A, V, torch.tensor([1.0]), KNorm(gamma=4.0))
        tensor(1.5811, dtype=torch.float64)
    """
    wide, wide_velocities = check_matrices(representations=representations, velocities=velocities)
    rho = check_step_sizes(step_sizes, num_layers=len(check_layers("representations", wide)))
    products = inner_products_of(k_norm, given_features(wide, features), wide_velocities)
    return path_length_of(speed_of(products[..., 0, 0]), rho.to(wide.device))


def speed_of(velocity_square: Tensor) -> Tensor:
    """Speed ‖∂_pA‖_K from its square; rounding below zero counts as zero."""
    return velocity_square.clamp(min=0).sqrt()


def path_length_of(speeds: Tensor, step_sizes: Tensor) -> Tensor:
    """Path length from ‖V_l‖_K."""
    return (step_sizes * speeds).sum(-1)
