"""The K-norm in float32."""

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

# Largest ‖M‖²/γ over ‖M‖²_K, by which rounding grows. Energies then err by at most 3e-5 (`docs/readings.md`).
_MOST = 50.0


def products_in_float32(
    features: Sequence[Tensor],
    groups: Sequence[Sequence[Tensor]],
    moments: SecondMoments,
    k_norm: KNorm,
    has_cross: bool = True,
) -> Tensor:
    """All ``⟨M_i, M_j⟩_{K+γ}`` of several layers, shape (L, k, k), in float32, without checks; not the raw form.

    With G = σᵀσ and X_i = (G + γI)⁻¹ σᵀM_i they are ``⟨M_i − σX_i, M_j − σX_j⟩/γ + ⟨X_i, X_j⟩``. X is a minimum, so its
    error counts squared. This needs a second pass over the samples. A CPU skips it for layers whose second moments do
    not cancel; elsewhere this check would wait for the device.

    Args:
        features: σ(A) of each layer, shape (N, d).
        groups: The k matrices M_i of each, shape (N, w).
        moments: Second moments of all layers.
        k_norm: Which K-norm.
        has_cross: Whether to compute i ≠ j; else NaN.
    """
    factors, gammas = factor_of(moments.gram, k_norm)
    products = stable_from_factor(factors, gammas, moments, has_cross)
    for index in _cancelling(products, moments.inner / divisor_of(gammas, moments.inner)):
        group = groups[index]
        solved = torch.cholesky_solve(side_by_side(moments.cross[index]), factors[index])
        solutions = solved.chunk(len(group), dim=-1)
        rests = [torch.addmm(one, features[index], x, alpha=-1) for one, x in zip(group, solutions, strict=True)]
        outside, inside = inner_products(rests, has_cross), inner_products(solutions, has_cross)
        found = outside / divisor_of(gammas[index], outside) + inside
        products[index] = without_features(found, gammas[index])
    return products


def _cancelling(products: Tensor, greatest: Tensor) -> Sequence[int]:
    """Layers that lose digits in second moments."""
    if products.device.type != "cpu":
        return range(len(products))
    squares, most = (one.diagonal(dim1=-2, dim2=-1) for one in (products, greatest))
    return [index for index, loses in enumerate((most > _MOST * squares).any(-1).tolist()) if loses]
