"""Singular values and the stable rank."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_leaky.functional._checks import check_matrix

# Eigenvalues of AᵀA below this fraction of the largest are rounding noise, and would add w · 1e-8 to a nuclear norm.
_NOISE = 1e-13


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values of A_l or W_l, largest first (arXiv 2405.17573, Fig. 1b, 2b).

    Args:
        matrix: Shape (..., N, w) or (..., w, d).

    Returns:
        Shape (..., min(N, w)) or (..., min(w, d)), float64.

    Raises:
        ValueError: If the tensor is not floating-point, finite and of its shape.

    Example:
        >>> singular_values(torch.tensor([[0.0, 3.0], [4.0, 0.0]]))
        tensor([4., 3.], dtype=torch.float64)
    """
    values: Tensor = torch.linalg.svdvals(check_matrix("matrix", matrix))
    return values


def singular_values_from_moments(second_moment: Tensor) -> Tensor:
    """Singular values of A from AᵀA.

    Args:
        second_moment: AᵀA, shape (..., w, w).

    Returns:
        Shape (..., w), largest first; 0 below 3e-7 of the largest (rounding noise), NaN if the moment is not finite.

    Example:
        >>> singular_values_from_moments(torch.tensor([[16.0, 0.0], [0.0, 9.0]], dtype=torch.float64))
        tensor([4., 3.], dtype=torch.float64)
    """
    finite = torch.isfinite(second_moment).all(-1).all(-1)[..., None]
    eigenvalues = torch.linalg.eigvalsh(second_moment.masked_fill(~finite[..., None], 0.0)).flip(-1)
    kept = eigenvalues > _NOISE * eigenvalues[..., :1]
    values = torch.where(kept, torch.where(kept, eigenvalues, 1.0).sqrt(), 0.0)
    return torch.where(finite, values, torch.nan)


def stable_rank(representation: Tensor) -> Tensor:
    """Stable rank ``‖A‖²_* / ‖A‖²_F``: nuclear over Frobenius norm, squared (arXiv 2405.17573, Proposition 1).

    This is not ``‖A‖²_F / ‖A‖²_op``. It is at most rank A, and at most the raw cost of identity without constant column
    if σ(A) reproduces A.

    Args:
        representation: A, shape (..., N, w).

    Returns:
        Shape (...), no unit, between 1 and rank A; 0 for A = 0.

    Raises:
        ValueError: If the tensor is not floating-point, finite and of its shape.

    Example:
        >>> stable_rank(torch.eye(3))
        tensor(3., dtype=torch.float64)
    """
    return stable_rank_of(torch.linalg.svdvals(check_matrix("representation", representation)))


def singular_values_by_smaller_side(matrix: Tensor) -> Tensor:
    """Singular values of a finite matrix from AAᵀ or AᵀA, whichever is smaller; without checks."""
    rows, columns = matrix.shape[-2:]
    return singular_values_from_moments(matrix @ matrix.mT if rows <= columns else matrix.mT @ matrix)


def stable_rank_of(values: Tensor) -> Tensor:
    """Stable rank from singular values, largest first."""
    largest = values[..., :1]
    # Scaled, so that squares neither overflow nor vanish.
    scaled = values / torch.where(largest == 0, 1.0, largest)
    return scaled.sum(-1).square() / torch.where(largest[..., 0] == 0, 1.0, scaled.square().sum(-1))
