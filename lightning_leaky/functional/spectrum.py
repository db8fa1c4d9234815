"""Singular values of representations and weights, and the stable rank they give."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_leaky.functional._checks import check_matrix

# Eigenvalues of AᵀA carry rounding errors of about 1e-16 of the largest, its trace of w rows about w times that. What
# lies below this fraction is noise: counted, its square roots would add w · 1e-8 to a nuclear norm.
_NOISE = 1e-13


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values of a representation A_l or of a weight W_l, largest first (Fig. 1b, 2b of the paper).

    Args:
        matrix: Shape (..., N, w) or (..., w, d).

    Returns:
        Shape (..., min of the two), float64.

    Raises:
        ValueError: If `matrix` is not floating-point, finite and of two dimensions or more.

    Example:
        >>> singular_values(torch.tensor([[0.0, 3.0], [4.0, 0.0]]))
        tensor([4., 3.], dtype=torch.float64)
    """
    return _singular_values(check_matrix("matrix", matrix))


def singular_values_from_moments(second_moment: Tensor) -> Tensor:
    """Singular values of a representation from the sum over samples AᵀA.

    Args:
        second_moment: AᵀA, shape (..., w, w).

    Returns:
        Shape (..., w), largest first. Values below 3e-7 of the largest are rounding noise and read as 0. NaN where
        the moment is not finite.

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

    Not the other number of this name, ``‖A‖²_F / ‖A‖²_op``. At most rank A, and for an A that its features reproduce
    at most the raw cost of identity (no constant column).

    Args:
        representation: A, shape (..., N, w).

    Returns:
        Shape (...), no unit, between 1 and rank A; 0 for A = 0.

    Raises:
        ValueError: If `representation` is not floating-point, finite and of two dimensions or more.

    Example:
        >>> stable_rank(torch.eye(3))
        tensor(3., dtype=torch.float64)
    """
    return stable_rank_of(_singular_values(check_matrix("representation", representation)))


def singular_values_by_smaller_side(matrix: Tensor) -> Tensor:
    """Singular values of a finite matrix, shape (..., N, w), from AAᵀ or AᵀA, whichever is smaller; without checks."""
    rows, columns = matrix.shape[-2:]
    return singular_values_from_moments(matrix @ matrix.mT if rows <= columns else matrix.mT @ matrix)


def stable_rank_of(values: Tensor) -> Tensor:
    """Stable rank from singular values, largest first, shape (..., n)."""
    largest = values[..., :1]
    # Scaled by the largest value the squares neither overflow nor vanish.
    scaled = values / torch.where(largest == 0, 1.0, largest)
    return scaled.sum(-1).square() / torch.where(largest[..., 0] == 0, 1.0, scaled.square().sum(-1))


def _singular_values(matrix: Tensor) -> Tensor:
    values: Tensor = torch.linalg.svdvals(matrix)
    return values
