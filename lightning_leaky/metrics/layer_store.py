"""The layers of one width: their samples while these are few, their sums once they are many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lightning_leaky.metrics.accumulator import Accumulator
from lightning_leaky.metrics.base import gathered
from lightning_leaky.metrics.layer_batch import LayerBatch, Matrices, layer_batch
from lightning_leaky.metrics.recipe import Recipe, Weights
from lightning_leaky.metrics.sample_sums import sums_of_samples
from lightning_leaky.utilities.processes import num_processes

Form: TypeAlias = Literal["auto", "moments", "samples"]
"""How readings are accumulated, as second moments, as the samples themselves, or as whichever fits."""

# Everywhere: where a device has no float64, as MPS has none, sums and samples are on the CPU.
_WIDE = torch.float64


class LayerStore:
    """Accumulates L layers of one width.

    Args:
        num_layers: Number of layers L.
        width: Common width w of the representations.
        recipe: What to read, and how.
        form: ``"samples"`` keeps all samples, ``"moments"`` sums all, ``"auto"`` keeps samples while those of all
            processes are at most w.

    Attributes:
        step_sizes: ρ of the layers, shape (L,).
        device: Where sums and samples are.
        dtype: Dtype of the samples kept.
    """

    def __init__(self, num_layers: int, width: int, recipe: Recipe, form: Form) -> None:
        self.num_layers, self.width, self.recipe, self.form = num_layers, width, recipe, form
        self.step_sizes = torch.zeros(num_layers, dtype=torch.float64)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.is_summing = form == "moments"
        # Of each batch A_{l−1}, A_l and B_l of all layers, shape (N, 2 L or 3 L, w).
        self._kept: list[Tensor] = []
        self._accumulator: Accumulator | None = None

    @property
    def num_matrices(self) -> int:
        """How many matrices of a layer are kept."""
        return 3 if self.recipe.has_gradients else 2

    @property
    def samples_in_bytes(self) -> int:
        """Bytes of the samples kept so far on this process."""
        return sum(batch.nbytes for batch in self._kept)

    def update(self, groups: Sequence[Matrices]) -> None:
        """Add a batch: A_{l−1}, A_l and, where they are read, B_l of all layers."""
        if self._keeps({len(matrix) for matrix in groups[0]}):
            samples = torch.stack([matrix.detach().to(self.dtype) for group in groups for matrix in group], dim=1)
            samples[:, 2 * self.num_layers :] *= self.recipe.share(samples)
            self._kept.append(samples.to(self.device))
            return
        self.turn_to_sums()
        previous, current, *momenta = groups
        scaled = [
            [momentum.to(self.device, _WIDE) * self.recipe.share(momentum) for momentum in group] for group in momenta
        ]
        self._sums().add(self.step_sizes.tolist(), previous, current, *scaled)

    def values(
        self,
        weights: Weights = None,
        failures: dict[str, Exception] | None = None,
        parameters: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return every quantity by key, each of shape (L,), over the samples of all processes: a collective."""
        rho = self.step_sizes.to(self.device, _WIDE)
        given = {} if parameters is None else {"parameters": parameters.to(rho)}
        if self.is_summing:
            accumulator = self._sums()
            with accumulator.sync_context(dist_sync_fn=accumulator.dist_sync_fn):
                return self.recipe.values(accumulator.sums(weights) | given, rho, failures)
        samples = gathered(self._samples())
        each = [
            sums_of_samples(layer, self.recipe, None if weights is None else weights[index])
            for index, layer in enumerate(self._layers_of(samples))
        ]
        stacked = {name: torch.stack([one[name] for one in each]) for name in each[0]}
        return self.recipe.values(stacked | given, rho, failures)

    def turn_to_sums(self) -> None:
        """Sum the samples kept, and all that come until the next reset."""
        if not self.is_summing:
            self.is_summing = True
            if self._kept:
                samples = self._samples()
                groups = samples.reshape(len(samples), self.num_matrices, self.num_layers, self.width).movedim(0, 2)
                self._sums().add(self.step_sizes.tolist(), *groups)
            self._kept = []

    def reset(self) -> None:
        """Forget every batch."""
        self.is_summing = self.form == "moments"
        self._kept = []
        if self._accumulator is not None:
            self._accumulator.reset()

    def _keeps(self, rows: set[int]) -> bool:
        """Whether the samples of a batch are kept, with those before and as many of each other process."""
        total = num_processes() * (sum(map(len, self._kept)) + sum(rows))
        fits = not self.is_summing and len(rows) == 1 and total <= self.width
        return self.form == "samples" or fits

    def _sums(self) -> Accumulator:
        """The sums, on the device of the batches."""
        if self._accumulator is None:
            self._accumulator = Accumulator(self.num_layers, self.width, self.recipe)
        if self._accumulator.device != self.device:
            self._accumulator.to(self.device)
        return self._accumulator

    def _samples(self) -> Tensor:
        """All samples kept on this process."""
        if len(self._kept) == 1:
            return self._kept[0]
        empty = torch.zeros(0, self.num_matrices * self.num_layers, self.width, dtype=self.dtype, device=self.device)
        return torch.cat([empty, *self._kept])

    def _layers_of(self, samples: Tensor) -> Iterator[LayerBatch]:
        """Each layer over all samples, one at a time."""
        kept = samples.dtype if self.recipe.k_norm.bears_float32 else _WIDE
        feature_map, share = self.recipe.feature_map, self.recipe.share(samples)
        for index, rho in enumerate(self.step_sizes.tolist()):
            previous, current, *momenta = samples[:, index :: self.num_layers].unbind(1)
            momenta = [momentum.to(_WIDE) / share for momentum in momenta]
            yield layer_batch(feature_map, rho, _WIDE, previous.to(kept), current.to(kept), *momenta)


def check_form(form: Form) -> Form:
    """Return a form, or raise ValueError where it is none."""
    if form not in ("auto", "moments", "samples"):
        raise ValueError(f'`form` must be "auto", "moments" or "samples", got {form!r}.')
    return form
