"""Layers of one width, as samples or as sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lightning_leaky.metrics.accumulator import Accumulator
from lightning_leaky.metrics.base import gathered
from lightning_leaky.metrics.layer_batch import LayerBatch, Matrices, in_groups, layer_batch
from lightning_leaky.metrics.recipe import Recipe, Weights
from lightning_leaky.metrics.sample_sums import sums_of_samples
from lightning_leaky.utilities.precision import ieee_products
from lightning_leaky.utilities.processes import num_processes, own_share, summed

Form: TypeAlias = Literal["auto", "moments", "samples"]

NUM_LEVELS = 201
"""Levels of rows; thinning drops the lowest."""

_WIDE = torch.float64  # sums and samples from MPS are on the CPU


class LayerStore:
    """Accumulates L layers of width w; with ``"auto"`` as samples while those of all processes are at most w."""

    def __init__(self, num_layers: int, width: int, recipe: Recipe, form: Form) -> None:
        self.num_layers, self.width, self.recipe, self.form = num_layers, width, recipe, form
        self.step_sizes = torch.zeros(num_layers, dtype=torch.float64)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.is_summing = form == "moments"
        # A_{l−1}, A_l and B_l of all layers, each of shape (N, w), per batch.
        self._kept: list[Sequence[Tensor]] = []
        self._levels: list[Sequence[Tensor]] = []  # of their rows, if some are dropped
        self.counts = torch.zeros(num_layers, NUM_LEVELS, dtype=torch.int64)
        self._accumulator: Accumulator | None = None

    @property
    def num_matrices(self) -> int:
        """Matrices kept per layer."""
        return 3 if self.recipe.has_gradients else 2

    @property
    def samples_in_bytes(self) -> int:
        """Bytes of the samples on this process."""
        return sum(matrix.nbytes for batch in self._kept for matrix in batch)

    @ieee_products()
    def update(
        self,
        groups: Sequence[Matrices],
        is_last: bool = False,
        levels: Sequence[Tensor] | None = None,
        level: int = 0,
    ) -> None:
        """Add a batch: A_{l−1}, A_l and, if they are read, B_l of all layers.

        If it `is_last`, `values` follows at once and nothing can overwrite the matrices. With `levels` of rows, shape
        (N,) per layer, only those of `level` or above are kept.
        """
        rows = {len(matrix) for matrix in groups[0]}
        if self._keeps(rows, is_last):
            kept = [matrix.detach() for group in groups for matrix in group]
            share = self.recipe.share(kept[0])
            kept[2 * self.num_layers :] = [share * momentum for momentum in kept[2 * self.num_layers :]]
            if levels is not None:
                kept, levels = _of_level(kept, levels, level)
                kept = [matrix.to(self.device, self.dtype) for matrix in kept]
                self._levels.append(levels)
                self.counts += _histograms(levels)
            # Without a copy, layers are converted one at a time when they are read.
            elif not is_last or num_processes() > 1 or any(matrix.device != self.device for matrix in kept):
                kept = list(torch.stack([matrix.to(self.dtype) for matrix in kept]).to(self.device))
            self._kept.append(kept)
            return
        self.turn_to_sums()
        previous, current, *momenta = groups
        scaled = [
            [momentum.to(self.device, _WIDE) * self.recipe.share(momentum) for momentum in group] for group in momenta
        ]
        self._sums().add(self.step_sizes.tolist(), previous, current, *scaled)

    @ieee_products()
    def values(
        self,
        weights: Weights = None,
        failures: dict[str, Exception] | None = None,
        parameters: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return every quantity by key, over all processes: a collective."""
        rho = self.step_sizes.to(self.device, _WIDE)
        given = {} if parameters is None else {"parameters": parameters.to(rho)}
        own = own_share(self.num_layers)
        if self.is_summing:
            accumulator = self._sums()
            with accumulator.sync_context(dist_sync_fn=accumulator.dist_sync_fn):
                sums = self._of_all(partial(accumulator.sums, layers=own), own, self.width, weights, failures)
        else:
            samples = self._gathered()
            num_values = min(len(samples[0]), self.width)
            sums = self._of_all(partial(self._sums_of, samples, own), own, num_values, weights, failures)
        return self.recipe.values(sums | given, rho, failures)

    def thin(self, level: int) -> None:
        """Keep only rows of a level or above."""
        self.counts[:, :level] = 0
        pairs = [_of_level(*pair, level) for pair in zip(self._kept, self._levels, strict=True)]
        self._kept, self._levels = [kept for kept, _ in pairs], [levels for _, levels in pairs]

    def scale_momenta(self, factor: float) -> None:
        """Multiply the momenta of all batches so far."""
        if factor == 1:
            return
        number = 2 * self.num_layers
        self._kept = [[*kept[:number], *(factor * momentum for momentum in kept[number:])] for kept in self._kept]
        if self._accumulator is not None:
            self._accumulator.scale_momenta(factor)

    def turn_to_sums(self) -> None:
        """Sum the samples kept, and all until the next reset."""
        if not self.is_summing:
            self.is_summing = True
            for batch in self._kept:
                groups = [batch[start : start + self.num_layers] for start in range(0, len(batch), self.num_layers)]
                self._sums().add(self.step_sizes.tolist(), *groups)
            self._kept = []

    def reset(self) -> None:
        """Forget every batch."""
        self.is_summing = self.form == "moments"
        self._kept, self._levels = [], []
        self.counts.zero_()
        if self._accumulator is not None:
            self._accumulator.reset()

    def _keeps(self, rows: set[int], is_last: bool) -> bool:
        """Whether the samples of a batch fit, if each other process keeps as many.

        A last batch that is alone is neither copied nor exchanged: it always fits.
        """
        is_alone = is_last and not self._kept and num_processes() == 1
        total = num_processes() * (sum(len(batch[0]) for batch in self._kept) + sum(rows))
        fits = not self.is_summing and len(rows) == 1 and (is_alone or total <= self.width)
        return self.form == "samples" or fits

    def _sums(self) -> Accumulator:
        """The accumulator, on the device of the batches."""
        if self._accumulator is None:
            self._accumulator = Accumulator(self.num_layers, self.width, self.recipe)
        if self._accumulator.device != self.device:
            self._accumulator.to(self.device)
        return self._accumulator

    def _gathered(self) -> Sequence[Tensor]:
        if num_processes() == 1 and len(self._kept) == 1:
            return self._kept[0]
        empty = torch.zeros(0, self.width, dtype=self.dtype, device=self.device)
        number = self.num_matrices * self.num_layers
        if num_processes() == 1:
            return [torch.cat(parts) for parts in zip([empty] * number, *self._kept, strict=True)]
        rows = [torch.stack(list(batch), dim=1) for batch in self._kept]
        return gathered(torch.cat([empty[:, None].expand(0, number, self.width), *rows])).unbind(1)

    def _of_all(
        self,
        compute: Callable[[Weights], dict[str, Tensor]],
        own: slice,
        num_values: int,
        weights: Weights,
        failures: dict[str, Exception] | None,
    ) -> dict[str, Tensor]:
        """Fields of `Sums` of all layers, each computed by one process: a small collective."""
        if num_processes() == 1:
            return compute(weights)
        indices = range(self.num_layers)[own]
        shapes = self.recipe.sum_shapes(self.width, num_values, weights is not None)
        sizes = [math.prod(shape) for shape in shapes.values()]
        table = torch.zeros(self.num_layers, sum(sizes), dtype=_WIDE, device=self.device)
        # Every process reads each weight, because a sharded one is gathered.
        asked = None if weights is None else ((index, weights[index]) for index in range(self.num_layers))
        known = None if asked is None else [weight for index, weight in asked if index in indices]
        try:
            if indices:
                found = compute(known)
                table[own] = torch.cat([found[name].reshape(len(indices), -1) for name in shapes], dim=1)
        except Exception as error:
            table[own] = torch.nan
            if failures is not None:
                failures["all"] = error
        columns = zip(shapes, torch.split(summed(table), sizes, dim=1), strict=True)
        return {name: column.reshape(-1, *shapes[name]) for name, column in columns}

    def _sums_of(self, samples: Sequence[Tensor], own: slice, weights: Weights) -> dict[str, Tensor]:
        """Fields of `Sums` of some layers, from all samples."""
        indices = range(self.num_layers)[own]
        # Layers with different numbers of rows are read one by one.
        bytes_each = 3 * samples[0].nbytes if len({len(matrix) for matrix in samples}) == 1 else 2**26
        parts = [
            sums_of_samples(
                [self._layer(samples, indices[place]) for place in group],
                self.recipe,
                None if weights is None else weights[group.start : group.stop],
            )
            for group in in_groups(range(len(indices)), bytes_each)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _layer(self, samples: Sequence[Tensor], index: int) -> LayerBatch:
        dtype = self.recipe.dtype(self.dtype)
        # N × N kernels bear float32; differences of sums do not.
        is_kernel = len(samples[0]) <= self.width and self.recipe.k_norm.bears_float32(1e-6)
        kept = self.dtype if is_kernel else dtype
        previous, current, *momenta = samples[index :: self.num_layers]
        momenta = [momentum.to(dtype) / self.recipe.share(momentum) for momentum in momenta]
        ends = previous.to(kept), current.to(kept)
        return layer_batch(self.recipe.feature_map, self.step_sizes.tolist()[index], dtype, *ends, *momenta)


def _of_level(matrices: Sequence[Tensor], levels: Sequence[Tensor], level: int) -> tuple[list[Tensor], list[Tensor]]:
    """Copies of the rows of a level or above, and their levels."""
    # Layers share levels and matrices: each is cut once.
    places = {id(one): (one >= level).nonzero()[:, 0] for one in levels}
    kept = {id(one): one[places[id(one)]] for one in levels}
    places = {key: rows.to(matrices[0].device, non_blocking=True) for key, rows in places.items()}
    found, copies = list[Tensor](), dict[tuple[object, ...], Tensor]()
    for index, matrix in enumerate(matrices):
        rows = id(levels[index % len(levels)])
        key = matrix.data_ptr(), matrix.dtype, matrix.shape, matrix.stride(), rows
        if key not in copies:
            copies[key] = matrix.index_select(0, places[rows])
        found.append(copies[key])
    return found, [kept[id(one)] for one in levels]


def _histograms(levels: Sequence[Tensor]) -> Tensor:
    """Rows of each layer at each level, shape (L, `NUM_LEVELS`)."""
    known = {id(one): torch.bincount(one, minlength=NUM_LEVELS) for one in levels}
    return torch.stack([known[id(one)] for one in levels])


def check_form(form: Form) -> Form:
    """Return a known form, or raise ValueError."""
    if form not in ("auto", "moments", "samples"):
        raise ValueError(f'`form` must be "auto", "moments" or "samples", got {form!r}.')
    return form
