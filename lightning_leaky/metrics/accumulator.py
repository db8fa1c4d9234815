"""Sums over samples, exact over batches and processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_leaky.functional._checks import working_dtype
from lightning_leaky.functional.criticality import criticality_residual_of
from lightning_leaky.functional.k_norm import k_inner_products_from_moments
from lightning_leaky.functional.moments import MomentumMoments, feature_products, momentum_moments_of, split_moments
from lightning_leaky.functional.movement import first_order_sums
from lightning_leaky.functional.spectrum import singular_values_from_moments
from lightning_leaky.metrics.base import SumMetric
from lightning_leaky.metrics.layer_batch import (
    LayerBatch,
    Matrices,
    in_groups,
    layer_batch,
    momentum_sums,
    velocity_scales,
)
from lightning_leaky.metrics.recipe import OWN, Recipe, Weights

_ALL = slice(None)


class Accumulator(SumMetric):
    """Sums the moments of L layers of width w, one state per kind: the number of collectives does not depend on L."""

    feature_products: Tensor
    inner: Tensor
    turns: Tensor
    second_moment: Tensor
    first_order: Tensor
    features_momentum: Tensor
    momentum_sums: Tensor

    def __init__(self, num_layers: int, width: int, recipe: Recipe, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name, value in (("num_layers", num_layers), ("width", width)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value!r}.")
        self.num_layers, self.width, self.recipe = num_layers, width, recipe
        for name, shape in recipe.state_shapes(width).items():
            self.add_sum(name, num_layers, *shape)

    def add(
        self, step_sizes: Sequence[float], previous: Matrices, current: Matrices, momenta: Matrices | None = None
    ) -> None:
        """Add a batch; `momenta` are B_l times `Recipe.share`."""
        wide = working_dtype(self.device)
        for index, rho in enumerate(step_sizes):  # one layer's copies exist at a time
            groups = (previous, current) if momenta is None else (previous, current, momenta)
            matrices = [group[index].detach().to(self.device, wide) for group in groups]
            self._add_layer(index, layer_batch(self.recipe.feature_map, rho, wide, *matrices))

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Add a batch, as `add` does."""
        self.add(*args, **kwargs)

    def compute(self) -> Any:
        """Return `sums`."""
        return self.sums()

    def _add_layer(self, index: int, layer: LayerBatch) -> None:
        if count := self.recipe.num_matrices:
            size = layer.features.shape[-1]
            products = feature_products(layer.features, (layer.previous, layer.step)[:count])
            products[:, size + self.width :] /= layer.step_size
            self.feature_products[index] += products
            scales = velocity_scales(self.inner.new_tensor([layer.step_size]), count)[0]
            self.inner[index] += scales * layer.inner(count, self.recipe.has_cross)
        if self.recipe.has_turns:
            self.turns[index] += layer.turns
        if self.recipe.has_spectrum:
            self.second_moment[index] += layer.previous.mT @ layer.previous
        if layer.momentum is not None:
            self._add_momentum(index, layer, layer.momentum)
        for name, own in self.recipe.own_sums(layer.previous, layer.current).items():
            getattr(self, name)[index] += own

    def _add_momentum(self, index: int, layer: LayerBatch, momentum: Tensor) -> None:
        # 0 for a sum: a MetricCollection merges metrics with equal states.
        count = len(momentum) if self.recipe.loss_reduction == "mean" else 0
        if self.recipe.has_first_order:
            self.first_order[index, :2] += first_order_sums(-momentum, layer.previous, layer.current)
            self.first_order[index, 2] += count
        if self.recipe.has_momenta:
            products, *scalars = momentum_moments_of(layer.features, layer.previous, momentum)
            self.features_momentum[index] += products
            self.momentum_sums[index, :2] += torch.stack(scalars)
            self.momentum_sums[index, 2] += count

    def scale_momenta(self, factor: float) -> None:
        """Multiply the momenta of all batches so far."""
        if self.recipe.has_first_order:
            self.first_order[:, :2] *= factor
        if self.recipe.has_momenta:
            self.features_momentum *= factor
            self.momentum_sums[:, :2] *= self.momentum_sums.new_tensor([factor, factor**2])

    def momentum_moments(self, layers: slice = _ALL) -> MomentumMoments:
        """Momentum moments of the data set."""
        inner, square, count = self.momentum_sums[layers].unbind(-1)
        total = self._total(count)
        products = self.features_momentum[layers] / total[:, None, None]
        return MomentumMoments(products, inner / total, square / total**2)

    def _total(self, count: Tensor) -> Tensor:
        """Number by which sums of gradients are divided to belong to the loss of the data set."""
        return count if self.recipe.loss_reduction == "mean" else torch.ones_like(count)

    def sums(self, weights: Weights = None, layers: slice = _ALL) -> dict[str, Tensor]:
        """Return the fields of `Sums` of some layers; their `weights` are for the residual."""
        found = {name: getattr(self, name)[layers] for name in self._defaults if name.startswith(OWN)}
        if self.recipe.has_turns:
            found["turns"] = self.turns[layers]
        if self.recipe.num_matrices:
            found["products"] = self._k_products(layers)
        if self.recipe.has_spectrum:
            found["singular_values"] = singular_values_from_moments(self.second_moment[layers])
        if self.recipe.has_first_order:
            found["first_order"] = self.first_order[layers, :2] / self._total(self.first_order[layers, 2:])
        if self.recipe.has_momenta:
            moments = self.momentum_moments(layers)
            found |= momentum_sums(moments)
            if weights is not None:
                found["residual"] = self._residuals(moments, weights)
        return found

    def _k_products(self, layers: slice) -> Tensor:
        """⟨M_i, M_j⟩_K, shape (…, k, k)."""
        products, inner, recipe = self.feature_products[layers], self.inner[layers], self.recipe
        parts = in_groups(range(len(products)), products[0].nbytes)
        moments = [split_moments(products[part.start : part.stop], inner[part.start : part.stop]) for part in parts]
        return torch.cat([k_inner_products_from_moments(one, recipe.k_norm, recipe.has_cross) for one in moments])

    def _residuals(self, moments: MomentumMoments, weights: Matrices) -> Tensor:
        each = enumerate(map(MomentumMoments, *moments))
        depth = self.recipe.effective_depth
        return torch.stack([criticality_residual_of(weights[index].detach(), layer, depth) for index, layer in each])
