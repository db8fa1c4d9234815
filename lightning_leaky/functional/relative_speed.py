"""Relative speed and relative distance."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_leaky.functional._checks import check_matrices
from lightning_leaky.functional.features import given_features
from lightning_leaky.functional.k_norm import KNorm, inner_products_of
from lightning_leaky.functional.step_sizes import distance_squares

_DEFAULT = KNorm()


def relative_speed(
    previous: Tensor, current: Tensor, k_norm: KNorm = _DEFAULT, features: Tensor | None = None
) -> Tensor:
    """Relative speed ``‖A_l − A_{l−1}‖_K / ‖A_{l−1}‖_K``, with K at A_{l−1} in both [ours].

    It is `relative_distance` in the K-norm, and tends to ``‖A_l − A_{l−1}‖_F / ‖A_{l−1}‖_F`` as γ grows.

    Args:
        previous: A_{l−1}, shape (..., N, w).
        current: A_l, shape (..., N, w).
        k_norm: Which K-norm.
        features: σ(A_{l−1}), shape (..., N, d); ``[relu(A), 1]`` by default.

    Returns:
        Shape (...), no unit, ≥ 0, float64; 0 if nothing moves.

    Raises:
        ValueError: If a tensor is not floating-point, finite and of its shape.

    Example:
        >>> relative_speed(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 5.0]]))
        tensor(0.2000, dtype=torch.float64)
    """
    start, end = check_matrices(previous=previous, current=current)
    return relative_speed_of(inner_products_of(k_norm, given_features(start, features), start, end - start))


def relative_speed_of(products: Tensor, step_sizes: Tensor | float = 1.0) -> Tensor:
    """Relative speed from inner products of (A, V), shape (..., 2, 2)."""
    start, moved = products[..., 0, 0], products[..., 1, 1].clamp(min=0)
    return torch.where(moved == 0, moved, step_sizes * (moved / start).sqrt())


def relative_distance(previous: Tensor, current: Tensor) -> Tensor:
    """Relative distance ``‖A_l − A_{l−1}‖_F / ‖A_l‖_F`` (arXiv 2405.17573, section 4).

    Args:
        previous: A_{l−1}, shape (..., N, w).
        current: A_l, shape (..., N, w).

    Returns:
        Shape (...), no unit, ≥ 0, float64.

    Raises:
        ValueError: If a tensor is not floating-point, finite and of its shape.

    Example:
        >>> relative_distance(torch.tensor([[3.0, 3.0]]), torch.tensor([[3.0, 4.0]]))
        tensor(0.2000, dtype=torch.float64)
    """
    squares = distance_squares(*check_matrices(previous=previous, current=current))
    return (squares[0] / squares[1]).sqrt()
