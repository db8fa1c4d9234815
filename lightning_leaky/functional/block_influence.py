"""How far a block turns its representation."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_leaky.functional._checks import check_matrices


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
    return block_influence_of(cosine_sums(*check_matrices(previous=previous, current=current)))


def cosine_sums(previous: Tensor, current: Tensor) -> Tensor:
    """Sum of the cosines over samples, and their number: shape (..., 2) from two tensors of shape (..., N, w)."""
    lengths = [torch.linalg.vector_norm(matrix, dim=-1) for matrix in (previous, current)]
    product = lengths[0] * lengths[1]
    cosines = torch.linalg.vecdot(previous, current) / product
    # A sample that is 0 and stays so has kept its direction; one that begins or ends at 0 has lost it.
    cosines = torch.where(product == 0, (lengths[0] == lengths[1]).to(cosines), cosines)
    total = cosines.sum(-1)
    return torch.stack([total, torch.full_like(total, cosines.shape[-1])], dim=-1)


def block_influence_of(sums: Tensor) -> Tensor:
    """Block influence from `cosine_sums`."""
    return 1 - sums[..., 0] / sums[..., 1]
