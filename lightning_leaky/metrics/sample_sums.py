"""The same sums from the samples themselves: for widths whose second moments would not fit."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_leaky.functional.criticality import criticality_residual_of
from lightning_leaky.functional.first_order import first_order_sums
from lightning_leaky.functional.k_norm import inner_products_of
from lightning_leaky.functional.moments import (
    features_momentum_square_of,
    inner_product,
    momentum_moments_of,
)
from lightning_leaky.functional.spectrum import singular_values_by_smaller_side
from lightning_leaky.metrics.layer_batch import LayerBatch
from lightning_leaky.metrics.recipe import Recipe


def sums_of_samples(layer: LayerBatch, recipe: Recipe, weight: Tensor | None = None) -> dict[str, Tensor]:
    """What `Sums` holds of one layer, by name, from all samples: by N × N matrices where N ≤ w.

    Half of the work on float32 samples is done in float32: the energies err by about 1e-7, where a float32 forward pass
    moves them by 1e-7 to 2e-5.

    Args:
        layer: The layer over the whole data set; its momentum is that of the loss over all of it.
        recipe: What to read, and how.
        weight: The weight W_l, for the residual.
    """
    wide = layer.features.dtype
    finite = torch.isfinite(layer.velocity.sum(dtype=wide))
    features, start, end, moved = layer[:4]
    if finite.device.type != "cpu" or not finite:  # elsewhere than on a CPU a look would wait for the device
        # LAPACK raises on NaN: a diverged layer is read through zeros and masked.
        features, start, end, moved = (torch.where(finite, matrix, 0) for matrix in layer[:4])
    found = recipe.own_sums(start.to(wide), end.to(wide)) if recipe.has_own else {}
    if recipe.num_matrices:
        found["products"] = inner_products_of(recipe.k_norm, features, *(start, moved)[: recipe.num_matrices])
    if recipe.has_spectrum:
        found["singular_values"] = singular_values_by_smaller_side(start.to(wide))
    found = {name: torch.where(finite, value, torch.nan) for name, value in found.items()}
    if layer.momentum is not None and recipe.has_first_order:
        found["first_order"] = first_order_sums(-layer.momentum, layer.previous.to(wide), layer.current.to(wide))
    if layer.momentum is not None and recipe.has_momenta:
        found |= _momentum_sums(layer, layer.momentum, recipe, weight)
    return found


def _momentum_sums(layer: LayerBatch, momentum: Tensor, recipe: Recipe, weight: Tensor | None) -> dict[str, Tensor]:
    start = layer.previous.to(momentum)
    if weight is None:  # then nothing of size d × w is formed where samples are few
        return {
            "features_momentum_square": features_momentum_square_of(layer.features, momentum),
            "momentum_representation": inner_product(momentum, start),
            "momentum_square": inner_product(momentum, momentum),
        }
    moments = momentum_moments_of(layer.features, start, momentum)
    return {
        "features_momentum_square": inner_product(moments.features_momentum, moments.features_momentum),
        "momentum_representation": moments.momentum_representation,
        "momentum_square": moments.momentum_square,
        "residual": criticality_residual_of(weight.detach(), moments, recipe.effective_depth),
    }
