"""Sums over samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_leaky.functional._checks import check_matrices, working_dtype
from lightning_leaky.functional.features import given_features


class SecondMoments(NamedTuple):
    """Second moments of features S = σ(A) and of k matrices M_i: sums over samples, in O(w²) memory.

    Attributes:
        gram: SᵀS, shape (..., d, d), with d = w + 1 (d = w without the constant column).
        cross: SᵀM_i, shape (..., k, d, w).
        inner: tr(M_iᵀ M_j), shape (..., k, k).
    """

    gram: Tensor
    cross: Tensor
    inner: Tensor


class MomentumMoments(NamedTuple):
    """Sums over samples of momentum B, representation A and features S = σ(A).

    Attributes:
        features_momentum: SᵀB, shape (..., d, w).
        momentum_representation: tr(BᵀA), shape (...).
        momentum_square: ‖B‖²_F, shape (...).
    """

    features_momentum: Tensor
    momentum_representation: Tensor
    momentum_square: Tensor


def second_moments(
    representation: Tensor, velocity: Tensor | None = None, features: Tensor | None = None
) -> SecondMoments:
    """Second moments of a representation, and of its velocity if given.

    Args:
        representation: A, shape (..., N, w).
        velocity: ∂_pA, shape (..., N, w). With it the matrices are (A, ∂_pA), else A alone.
        features: σ(A), shape (..., N, d); ``[relu(A), 1]`` by default.

    Returns:
        The moments, in float64 (float32 on MPS).

    Raises:
        ValueError: If a tensor is not floating-point, finite and of its shape.

    Example:
        >>> second_moments(torch.tensor([[1.0, -1.0]])).cross.shape
        torch.Size([1, 3, 2])
    """
    matrices = check_matrices(representation=representation, **({} if velocity is None else {"velocity": velocity}))
    return moments_of(given_features(matrices[0], features), matrices)


def momentum_moments(representation: Tensor, momentum: Tensor, features: Tensor | None = None) -> MomentumMoments:
    """Sums over samples of a momentum and its representation.

    Args:
        representation: A_{l-1}, shape (..., N, w).
        momentum: B_l = −(1/λ) ∂C/∂A_l, shape (..., N, w).
        features: σ(A), shape (..., N, d); ``[relu(A), 1]`` by default.

    Returns:
        The moments, in float64 (float32 on MPS).

    Raises:
        ValueError: If a tensor is not floating-point, finite and of its shape.

    Example:
        >>> A, B = torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0, 0.0]])
        >>> momentum_moments(A, B).momentum_representation
        tensor(2., dtype=torch.float64)
    """
    wide, wide_momentum = check_matrices(representation=representation, momentum=momentum)
    return momentum_moments_of(given_features(wide, features), wide, wide_momentum)


def moments_of(feature_matrix: Tensor, matrices: Sequence[Tensor]) -> SecondMoments:
    """Second moments of features and matrices, without checks."""
    return split_moments(feature_products(feature_matrix, matrices), inner_products(matrices))


def feature_products(feature_matrix: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Sᵀ[S, M_1, …, M_k], shape (..., d, d + k w)."""
    # Concatenated after the products, because copying the factors takes longer.
    return torch.cat([feature_matrix.mT @ matrix for matrix in (feature_matrix, *matrices)], dim=-1)


def split_moments(products: Tensor, inner: Tensor) -> SecondMoments:
    """Second moments from `feature_products` and `inner_products`."""
    size = products.shape[-2]
    cross = torch.unflatten(products[..., size:], -1, (inner.shape[-1], -1)).movedim(-2, -3)
    return SecondMoments(gram=products[..., :size], cross=cross, inner=inner)


def momentum_moments_of(feature_matrix: Tensor, representation: Tensor, momentum: Tensor) -> MomentumMoments:
    """`momentum_moments` without checks."""
    return MomentumMoments(
        features_momentum=feature_matrix.mT @ momentum,
        momentum_representation=inner_product(momentum, representation),
        momentum_square=inner_product(momentum, momentum),
    )


def features_momentum_square_of(feature_matrix: Tensor, momentum: Tensor) -> Tensor:
    """‖Bᵀσ(A)‖²_F, shape (...), without checks; from two N × N matrices if samples are fewer than features."""
    if feature_matrix.shape[-2] <= feature_matrix.shape[-1]:
        products = (feature_matrix @ feature_matrix.mT) * (momentum @ momentum.mT)
        return summed_rows(products.sum(-1)).clamp(min=0)
    return summed_rows((feature_matrix.mT @ momentum).square().sum(-1))


def inner_products(matrices: Sequence[Tensor], has_cross: bool = True) -> Tensor:
    """Frobenius inner products tr(M_iᵀ M_j), shape (..., k, k); without `has_cross` NaN for i ≠ j, to save time."""
    return _of_pairs(inner_product, matrices, has_cross)


def entry_products(matrices: Sequence[Tensor], has_cross: bool = True) -> Tensor:
    """`inner_products` summed in the working dtype throughout, because one row may outweigh all others."""
    return _of_pairs(_entry_product, matrices, has_cross)


def _entry_product(matrix: Tensor, other: Tensor) -> Tensor:
    if matrix.dtype == torch.float64:
        return inner_product(matrix, other)
    if matrix is other:
        size: Tensor = torch.linalg.vector_norm(matrix, dim=(-2, -1), dtype=working_dtype(matrix.device))
        return size.square()
    return summed_rows(matrix * other, (-2, -1))


def inner_product(matrix: Tensor, other: Tensor) -> Tensor:
    """Frobenius inner product tr(MᵀO), shape (...), in the working dtype."""
    if matrix.dtype == torch.float64:
        found: Tensor = torch.linalg.vecdot(matrix.flatten(-2), other.flatten(-2))  # BLAS, without a temporary
        return found
    # BLAS would lose digits over float32 matrices, but not over one row.
    return summed_rows(row_product(matrix, other))


def row_product(matrix: Tensor, other: Tensor) -> Tensor:
    """Inner products of the rows of two matrices, shape (..., N)."""
    if matrix is other and matrix.dtype == torch.float32:  # twice as fast, with one more rounding
        length: Tensor = torch.linalg.vector_norm(matrix, dim=-1)
        return length.square()
    product: Tensor = torch.linalg.vecdot(matrix, other)
    return product


def summed_rows(values: Tensor, dim: int | tuple[int, ...] = -1) -> Tensor:
    """Sum over samples, in the working dtype."""
    return values.sum(dim, dtype=working_dtype(values.device))


def _of_pairs(
    product: Callable[[Tensor, Tensor], Tensor], matrices: Sequence[Tensor], has_cross: bool = True
) -> Tensor:
    """A symmetric product of each pair of matrices, in two new last dimensions."""
    indices = range(len(matrices))
    pairs = {(i, j): product(matrices[i], matrices[j]) for i in indices for j in range(i + 1) if has_cross or i == j}
    unknown = torch.full_like(pairs[0, 0], torch.nan)
    rows = [torch.stack([pairs.get((max(i, j), min(i, j)), unknown) for j in indices], dim=-1) for i in indices]
    return torch.stack(rows, dim=-2)
