"""How much a block moves its samples: block influence, relative speed and distance, first-order score."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_leaky.functional._checks import check_matrices
from lightning_leaky.functional.features import given_features
from lightning_leaky.functional.k_norm import KNorm, inner_products_of
from lightning_leaky.functional.moments import row_product, summed_rows
from lightning_leaky.functional.step_sizes import distance_squares


def block_influence(previous: Tensor, current: Tensor) -> Tensor:
    """Block influence, one minus the mean cosine of a block's input and output (Men et al., arXiv 2403.03853).

    Args:
        previous: A_{l−1}, shape (..., N, w).
        current: A_l, shape (..., N, w).

    Returns:
        Shape (...), in [0, 2], float64; 0 if each sample keeps its direction.

    Raises:
        ValueError: If a tensor is not floating-point, finite and of its shape.

    Example:
        >>> block_influence(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [1.0, 0.0]]))
        tensor(0.5000, dtype=torch.float64)
    """
    start, end = check_matrices(previous=previous, current=current)
    step = end - start
    return block_influence_of(turn_sums(row_product(start, start), row_product(end, end), row_product(step, step)))


def turn_sums(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    """Sum over samples of 1 − cos(A_{l−1}, A_l), and their number, shape (..., 2), from squares of shape (..., N).

    It uses ‖A_l − A_{l−1}‖², because 1 − cos loses digits near 0. The error is rounding times the ratio of the lengths.
    """
    product, growth = (start * end).sqrt(), end.sqrt() - start.sqrt()
    turned = (step - growth.square()).clamp(min=0) / (2 * product)
    # A sample that stays 0 keeps its direction; one that starts or ends at 0 loses it.
    turned = torch.where(product == 0, (start != end).to(turned), turned)
    found = summed_rows(turned)
    return torch.stack([found, torch.full_like(found, start.shape[-1])], dim=-1)


def block_influence_of(sums: Tensor) -> Tensor:
    """Block influence from `turn_sums`."""
    return sums[..., 0] / sums[..., 1]


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


def first_order(gradient: Tensor, previous: Tensor, current: Tensor) -> Tensor:
    """First-order score ``Σ_i |⟨∂C/∂A_l, A_{l−1} − A_l⟩_i|`` of a block, i over samples [ours].

    Leaving a block out moves A_l to A_{l−1}, which changes the cost by about the sum without absolute values. With
    them, samples that gain do not hide samples that lose.

    Args:
        gradient: ∂C/∂A_l, shape (..., N, w).
        previous: A_{l−1}, shape (..., N, w).
        current: A_l, shape (..., N, w).

    Returns:
        Shape (...), in units of the cost, ≥ 0, float64.

    Raises:
        ValueError: If a tensor is not floating-point, finite and of its shape.

    Example:
        >>> gradient = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> first_order(gradient, torch.zeros(2, 2), torch.ones(2, 2))
        tensor(2., dtype=torch.float64)
    """
    return first_order_sums(*check_matrices(gradient=gradient, previous=previous, current=current))[..., 1]


def first_order_sums(gradient: Tensor, previous: Tensor, current: Tensor) -> Tensor:
    """Sums over samples of ⟨∂C/∂A_l, A_{l−1} − A_l⟩_i and of its absolute value, shape (..., 2), without checks."""
    each = torch.linalg.vecdot(gradient, previous - current)
    return torch.stack([each.sum(-1), each.abs().sum(-1)], dim=-1)
