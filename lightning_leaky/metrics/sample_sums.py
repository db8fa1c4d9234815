"""The same sums from the samples, factorised for several layers together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_leaky.functional.criticality import criticality_residual_of
from lightning_leaky.functional.k_norm import (
    KNorm,
    has_smaller_kernel,
    inner_products_of,
    inverse_roots,
    k_inner_products_from_moments,
    without_features,
)
from lightning_leaky.functional.moments import (
    SecondMoments,
    features_momentum_square_of,
    inner_product,
    inner_products,
    momentum_moments_of,
    split_moments,
)
from lightning_leaky.functional.movement import first_order_sums
from lightning_leaky.functional.single_precision import products_in_float32
from lightning_leaky.functional.spectrum import singular_values_by_smaller_side
from lightning_leaky.metrics.layer_batch import MOMENTUM_SUMS, LayerBatch, momentum_sums, velocity_scales
from lightning_leaky.metrics.recipe import Recipe, Weights

_WIDE = torch.float64  # samples from MPS are on the CPU


def sums_of_samples(layers: Sequence[LayerBatch], recipe: Recipe, weights: Weights = None) -> dict[str, Tensor]:
    """Fields of `Sums` of layers over one data set, by name: by N × N matrices if N ≤ w.

    Momenta are those of the loss over the whole data set.
    """
    each = [_sums_of(layer, recipe, None if weights is None else weights[at]) for at, layer in enumerate(layers)]
    found = {name: torch.stack([one[name] for one in each]) for name in each[0]}
    if recipe.num_matrices:
        found["products"] = _products(layers, recipe.num_matrices, recipe.k_norm, recipe.has_cross)
        step_sizes = found["products"].new_tensor([layer.step_size for layer in layers])
        found["products"] *= velocity_scales(step_sizes, recipe.num_matrices)
    return found


def _products(layers: Sequence[LayerBatch], count: int, k_norm: KNorm, has_cross: bool) -> Tensor:
    """⟨M_i, M_j⟩_K of the first `count` of A and ρV, shape (L, count, count)."""
    groups = [(layer.previous, layer.step)[:count] for layer in layers]
    features = [layer.features for layer in layers]
    if has_smaller_kernel(features[0], k_norm):
        number = len(features[0])
        kernels = features[0].new_empty(len(layers), number, number)
        for kernel, one in zip(kernels, features, strict=True):
            torch.mm(one, one.mT, out=kernel)
        inverses, gammas = inverse_roots(kernels, k_norm)
        inverses = inverses.to(layers[0].previous.dtype)
        halves = [[root @ matrix for matrix in group] for root, group in zip(inverses, groups, strict=True)]
        return without_features(torch.stack([inner_products(pair, has_cross) for pair in halves]), gammas)
    if k_norm.is_raw:
        pairs = zip(features, groups, strict=True)
        return torch.stack([inner_products_of(k_norm, one, *group) for one, group in pairs])
    moments = _moments(layers, groups, has_cross)
    if features[0].dtype == torch.float32:
        return products_in_float32(features, groups, moments, k_norm, has_cross)
    return k_inner_products_from_moments(moments, k_norm, has_cross)


def _moments(layers: Sequence[LayerBatch], groups: Sequence[Sequence[Tensor]], has_cross: bool) -> SecondMoments:
    count, width, size = len(groups[0]), layers[0].step.shape[-1], layers[0].features.shape[-1]
    products = layers[0].features.new_empty(len(layers), size, size + count * width)
    for place, layer, group in zip(products, layers, groups, strict=True):
        factors = [layer.features, *(matrix.to(layer.features) for matrix in group)]
        for factor, part in zip(factors, place.split([size] + count * [width], dim=-1), strict=True):
            torch.mm(layer.features.mT, factor, out=part)
    return split_moments(products, torch.stack([layer.inner(count, has_cross) for layer in layers]))


def _sums_of(layer: LayerBatch, recipe: Recipe, weight: Tensor | None) -> dict[str, Tensor]:
    """Sums of one layer without its K-norm products."""
    found = {} if not recipe.has_own else recipe.own_sums(layer.previous.to(_WIDE), layer.current.to(_WIDE))
    if recipe.has_turns:
        found["turns"] = layer.turns
    if recipe.has_spectrum:
        found["singular_values"] = singular_values_by_smaller_side(layer.previous.to(_WIDE))
    if layer.momentum is not None and recipe.has_first_order:
        ends = layer.previous.to(layer.momentum), layer.current.to(layer.momentum)
        found["first_order"] = first_order_sums(-layer.momentum, *ends)
    if layer.momentum is not None and recipe.has_momenta:
        found |= _momentum_sums(layer, layer.momentum, recipe, weight)
    return found


def _momentum_sums(layer: LayerBatch, momentum: Tensor, recipe: Recipe, weight: Tensor | None) -> dict[str, Tensor]:
    start = layer.previous.to(momentum)
    if weight is None:  # few samples form nothing of size d × w
        square = features_momentum_square_of(layer.features, momentum)
        products = square, inner_product(momentum, start), inner_product(momentum, momentum)
        return dict(zip(MOMENTUM_SUMS, products, strict=True))
    moments = momentum_moments_of(layer.features, start, momentum)
    residual = criticality_residual_of(weight.detach(), moments, recipe.effective_depth)
    return momentum_sums(moments) | {"residual": residual}
