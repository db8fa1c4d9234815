"""The K-norm in float32, from all samples: by second moments where these keep their digits, and else by the rest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_leaky.functional.k_norm import (
    KNorm,
    divisor_of,
    factor_of,
    side_by_side,
    stable_from_factor,
    without_features,
)
from lightning_leaky.functional.moments import SecondMoments, inner_products

# ‖M‖²/γ over ‖M‖²_K: how many times rounding counts. At this number energies err by 3e-5 at most (`docs/readings.md`).
_MOST = 50.0


def products_in_float32(
    features: Sequence[Tensor],
    groups: Sequence[Sequence[Tensor]],
    moments: SecondMoments,
    k_norm: KNorm,
    has_cross: bool = True,
) -> Tensor:
    """All ``⟨M_i, M_j⟩_{K+γ}`` of several layers, in float32, without checks.

    With G = σᵀσ and X_i = (G + γI)⁻¹ σᵀM_i they are ``⟨M_i − σX_i, M_j − σX_j⟩/γ + ⟨X_i, X_j⟩``, a minimum over X: an
    error of X counts as its square. That takes a second pass over the samples. Second moments take none, and will do
    where their difference does not cancel. On a CPU each layer is looked at for that; elsewhere a look would wait for
    the device, and all are read as the minimum.

    Args:
        features: σ(A) of each layer, shape (N, d).
        groups: The k matrices M_i of each, shape (N, w).
        moments: Their second moments, of all layers.
        k_norm: Which K-norm; not the raw form.
        has_cross: Whether those of different matrices are wanted; else they are NaN.

    Returns:
        Shape (L, k, k), float64.
    """
    factors, gammas = factor_of(moments.gram, k_norm)
    products = stable_from_factor(factors, gammas, moments, has_cross)
    for index in _cancelling(products, moments.inner / divisor_of(gammas, moments.inner)):
        solutions = torch.cholesky_solve(side_by_side(moments.cross[index]), factors[index]).chunk(
            len(groups[index]), dim=-1
        )
        rests = [
            torch.addmm(matrix, features[index], solution, alpha=-1)
            for matrix, solution in zip(groups[index], solutions, strict=True)
        ]
        outside, inside = inner_products(rests, has_cross), inner_products(solutions, has_cross)
        found = outside / divisor_of(gammas[index], outside) + inside
        products[index] = without_features(found, gammas[index])
    return products


def _cancelling(products: Tensor, greatest: Tensor) -> Sequence[int]:
    """Which layers lose digits in second moments."""
    if products.device.type != "cpu":
        return range(len(products))
    squares, most = (one.diagonal(dim1=-2, dim2=-1) for one in (products, greatest))
    return [index for index, loses in enumerate((most > _MOST * squares).any(-1).tolist()) if loses]
