"""How far a block turns its representation."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_leaky.functional._checks import check_matrices
from lightning_leaky.functional.moments import row_product, summed_rows


def block_influence(previous: Tensor, current: Tensor) -> Tensor:
    """Block influence, one minus the mean cosine of input and output of a block (Men et al., arXiv 2403.03853).

    Args:
        previous: A_{l−1}, shape (..., N, w).
        current: A_l, shape (..., N, w).

    Returns:
        Shape (...), in [0, 2], float64; 0 where each sample keeps its direction.

    Raises:
        ValueError: If a tensor is not floating-point, finite and of shape (..., N, w), or the shapes differ.

    Example:
        >>> block_influence(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [1.0, 0.0]]))
        tensor(0.5000, dtype=torch.float64)
    """
    start, end = check_matrices(previous=previous, current=current)
    step = end - start
    return block_influence_of(turn_sums(row_product(start, start), row_product(end, end), row_product(step, step)))


def turn_sums(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    """Sum over samples of 1 − cos(A_{l−1}, A_l), and their number: shape (..., 2), in the working dtype.

    As ``(‖D‖² − (‖A_l‖ − ‖A_{l−1}‖)²) / (2 ‖A_{l−1}‖ ‖A_l‖)`` with the step D = A_l − A_{l−1}: one minus a cosine near
    one would lose its digits. It errs by the rounding of a number times the ratio of the two lengths.

    Args:
        start: ‖A_{l−1}‖² of each sample, shape (..., N).
        end: ‖A_l‖² likewise.
        step: ‖D‖² likewise.
    """
    product, growth = (start * end).sqrt(), end.sqrt() - start.sqrt()
    turned = (step - growth.square()).clamp(min=0) / (2 * product)
    # A sample that is 0 and stays so has kept its direction; one that begins or ends at 0 has lost it.
    turned = torch.where(product == 0, (start != end).to(turned), turned)
    found = summed_rows(turned)
    return torch.stack([found, torch.full_like(found, start.shape[-1])], dim=-1)


def block_influence_of(sums: Tensor) -> Tensor:
    """Block influence from `turn_sums`."""
    return sums[..., 0] / sums[..., 1]
