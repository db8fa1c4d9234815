"""The first-order score of a block."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_leaky.functional._checks import check_matrices


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
