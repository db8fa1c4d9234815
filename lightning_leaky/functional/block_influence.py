"""Block influence."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_leaky.functional._checks import check_matrices
from lightning_leaky.functional.moments import row_product, summed_rows


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
