"""Sums over samples from which every reading of a layer follows, whatever the number of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_leaky.functional._checks import check_matrices, working_dtype
from lightning_leaky.functional.features import Activation, features, features_beside


class SecondMoments(NamedTuple):
    """Second moments of features S = σ(A) and of k matrices M_i that share their rows.

    They are sums over samples, so those of a data set are the sum of those of its batches, in O(w²) memory.

    Attributes:
        gram: SᵀS, shape (..., d, d), with d = w + 1 (d = w without the constant column).
        cross: SᵀM_i, shape (..., k, d, w).
        inner: tr(M_iᵀ M_j), shape (..., k, k).
    """

    gram: Tensor
    cross: Tensor
    inner: Tensor


class MomentumMoments(NamedTuple):
    """Sums over samples that pair the momentum B with its representation A and features S = σ(A).

    Attributes:
        features_momentum: SᵀB, shape (..., d, w).
        momentum_representation: tr(BᵀA), shape (...).
        momentum_square: ‖B‖²_F, shape (...).
    """

    features_momentum: Tensor
    momentum_representation: Tensor
    momentum_square: Tensor


def second_moments(
    representation: Tensor,
    velocity: Tensor | None = None,
    activation: Activation = "relu",
    constant_column: bool = True,
) -> SecondMoments:
    """Second moments of a representation, and of its velocity where one is given.

    Args:
        representation: A, shape (..., N, w).
        velocity: ∂_pA, shape (..., N, w). With it, k = 2 and the matrices are (A, ∂_pA); without it, k = 1.
        activation: Entrywise nonlinearity of the features.
        constant_column: Whether the features end with a column of ones.

    Returns:
        The moments, in float64 (float32 on MPS).

    Raises:
        ValueError: If a tensor is not floating-point, finite and of shape (..., N, w), or the shapes differ.

    Example:
        >>> moments = second_moments(torch.tensor([[1.0, -1.0]]))
        >>> moments.gram.shape, moments.cross.shape, moments.inner.shape
        (torch.Size([3, 3]), torch.Size([1, 3, 2]), torch.Size([1, 1]))
    """
    matrices = check_matrices(representation=representation, **({} if velocity is None else {"velocity": velocity}))
    return moments_of(matrices, *features_beside(matrices, matrices[0], activation, constant_column))


def momentum_moments(
    representation: Tensor, momentum: Tensor, activation: Activation = "relu", constant_column: bool = True
) -> MomentumMoments:
    """Sums over samples that pair a momentum with its representation.

    Args:
        representation: A_{l-1}, shape (..., N, w).
        momentum: B_l = −(1/λ) ∂C/∂A_l, shape (..., N, w).
        activation: Entrywise nonlinearity of the features.
        constant_column: Whether the features end with a column of ones.

    Returns:
        The moments, in float64 (float32 on MPS).

    Raises:
        ValueError: If a tensor is not floating-point, finite and of shape (..., N, w), or the shapes differ.

    Example:
        >>> A, B = torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0, 0.0]])
        >>> momentum_moments(A, B).momentum_representation
        tensor(2., dtype=torch.float64)
    """
    wide, wide_momentum = check_matrices(representation=representation, momentum=momentum)
    return momentum_moments_of(features(wide, activation, constant_column), wide, wide_momentum)


def momentum_of(gradient: Tensor, weight_decay: float) -> Tensor:
    """Momentum ``B = −(1/λ) ∂C/∂A`` from the gradient of the cost (arXiv 2405.17573, section 2.1)."""
    return -gradient / weight_decay


def moments_of(matrices: Sequence[Tensor], feature_matrix: Tensor, beside: Tensor) -> SecondMoments:
    """Second moments of k matrices, each of shape (..., N, w), and what `features_beside` returns for them."""
    return split_moments(feature_matrix.mT @ beside, inner_products(matrices))


def split_moments(products: Tensor, inner: Tensor) -> SecondMoments:
    """Second moments from Sᵀ[S, M_1, …, M_k], shape (..., d, d + k w), and the tr(M_iᵀ M_j), shape (..., k, k)."""
    size = products.shape[-2]
    cross = torch.stack(products[..., size:].chunk(inner.shape[-1], dim=-1), dim=-3)
    return SecondMoments(gram=products[..., :size], cross=cross, inner=inner)


def momentum_moments_of(feature_matrix: Tensor, representation: Tensor, momentum: Tensor) -> MomentumMoments:
    """Momentum moments of (..., N, d) features and (..., N, w) representation and momentum, without checks."""
    return MomentumMoments(
        features_momentum=feature_matrix.mT @ momentum,
        momentum_representation=momentum_representation_of(representation, momentum),
        momentum_square=momentum_square_of(momentum),
    )


def momentum_representation_of(representation: Tensor, momentum: Tensor) -> Tensor:
    """tr(BᵀA), shape (...), without checks."""
    return inner_product(momentum, representation)


def momentum_square_of(momentum: Tensor) -> Tensor:
    """‖B‖²_F, shape (...), without checks."""
    return inner_product(momentum, momentum)


def features_momentum_square_of(feature_matrix: Tensor, momentum: Tensor) -> Tensor:
    """‖Bᵀσ(A)‖²_F, shape (...), without checks: from two N × N matrices where samples are fewer than features."""
    if feature_matrix.shape[-2] <= feature_matrix.shape[-1]:
        return ((feature_matrix @ feature_matrix.mT) * (momentum @ momentum.mT)).sum((-2, -1)).clamp(min=0)
    return (feature_matrix.mT @ momentum).square().sum((-2, -1))


def inner_products(matrices: Sequence[Tensor]) -> Tensor:
    """Frobenius inner products tr(M_iᵀ M_j), shape (..., k, k), of k matrices, each of shape (..., N, w)."""
    indices = range(len(matrices))
    pairs = {(i, j): inner_product(matrices[i], matrices[j]) for i in indices for j in range(i + 1)}
    rows = [torch.stack([pairs[max(i, j), min(i, j)] for j in indices], dim=-1) for i in indices]
    return torch.stack(rows, dim=-2)


def inner_product(matrix: Tensor, other: Tensor) -> Tensor:
    """Frobenius inner product tr(MᵀO), shape (...), in the working dtype, whatever that of the matrices."""
    dtype = working_dtype(matrix.device)
    if matrix.dtype == dtype:
        found: Tensor = torch.linalg.vecdot(matrix.flatten(-2), other.flatten(-2))  # BLAS: nothing is written out
        return found
    # Over all of float32 matrices BLAS would lose digits; over one row it does not.
    by_row: Tensor = torch.linalg.vecdot(matrix, other)
    return by_row.sum(-1, dtype=dtype)
