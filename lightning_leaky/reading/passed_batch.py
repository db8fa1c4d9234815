"""One batch that has passed the layers of a path: its representations as matrices, without padding and repeats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightning_leaky.hooks.capture import PathCapture
from lightning_leaky.reading.layout import Layout, PaddingMask, real_positions
from lightning_leaky.reading.sample import PathSample, label_rows, labels_of, samples_of
from lightning_leaky.reading.segmentation import Segmentation

Matrices: TypeAlias = tuple[list[Tensor], list[Tensor]]
"""A_{l−1} and A_l of each layer that is read."""


class Batch(NamedTuple):
    """What is known of a batch beside its representations.

    Attributes:
        data: What passes, to know its padding.
        fresh: Which of its samples are no repeats, see `Layout.rows`; ``None`` for all.
        targets: What belongs to it, where the batch is inputs alone; for the labels of pictures.
    """

    data: Any = None
    fresh: Tensor | None = None
    targets: Any = None


class PassedBatch:
    """Matrices of the layers that are read.

    Args:
        batch: The batch.
        capture: What passed.
        segmentation: Which layers are read.
        layout: How a representation becomes a matrix.
        masks: Where a batch says what is padding, for each layer of the path.
    """

    def __init__(
        self,
        batch: Batch,
        capture: PathCapture,
        segmentation: Segmentation,
        layout: Layout,
        masks: Sequence[PaddingMask],
    ) -> None:
        self.batch, self.capture, self.layout = batch, capture, layout
        self.layers = segmentation.layers
        self.segments = [segment for segment in segmentation.segments if segment]
        self._keeps = self._real_positions([masks[index] for index in self.layers])

    def matrices(self, layout: Layout | None = None) -> Matrices:
        """Return A_{l−1} and A_l of each layer, by another layout where one is given."""
        chosen = self.layout if layout is None else layout
        return self._rows(self.capture.previous, chosen), self._rows(self.capture.current, chosen)

    def momenta(self, weight_decay: float, like: Sequence[Tensor]) -> list[Tensor]:
        """Return B_l = −(1/λ) ∂C/∂A_l of each layer; NaN of the shape of a matrix where no gradient came."""
        gradients = [self.capture.gradients[index] for index in self.layers]
        return [
            torch.full_like(rows, torch.nan) if gradient is None else -self.layout.rows(gradient, keep) / weight_decay
            for rows, gradient, keep in zip(like, gradients, self._keeps, strict=True)
        ]

    def samples(self, most: int) -> list[PathSample]:
        """Return a few rows on their way, with their labels, one entry a segment."""
        layout = self.layout.limited(most)
        batch = self.batch.data if self.batch.targets is None else (self.batch.data, self.batch.targets)
        known, labels = labels_of(batch), dict[int, Tensor | None]()
        for index, number, keep in zip(self.layers, self.segments, self._keeps, strict=True):
            taken = self.capture.previous[index]
            if number not in labels and taken is not None:  # of the rows that a segment begins with
                labels[number] = label_rows(known, taken, layout, keep, self.batch.fresh)
        return samples_of(*self.matrices(layout), self.segments, labels)

    def numbers_of_samples(self) -> set[int]:
        """Return the lengths of the batch axes of what the layers returned; none where all samples are fresh."""
        if self.batch.fresh is None:
            return set()
        current = (self.capture.current[index] for index in self.layers)
        return {self.layout.num_samples(tensor) for tensor in current if tensor is not None}

    def _rows(self, tensors: Sequence[Tensor | None], layout: Layout) -> list[Tensor]:
        chosen = ((tensors[index], keep) for index, keep in zip(self.layers, self._keeps, strict=True))
        return [layout.rows(tensor, keep, self.batch.fresh) for tensor, keep in chosen if tensor is not None]

    def _real_positions(self, masks: list[PaddingMask]) -> list[Tensor | None]:
        """Which positions of each layer are real, by the batch or, where that does not say, by what it was told."""
        found = {mask: real_positions(self.batch.data, mask) for mask in dict.fromkeys(masks)}
        return [
            self.capture.real_positions(index)
            if self.capture.was_nested or (found[mask] is None and mask is not None)
            else found[mask]
            for index, mask in zip(self.layers, masks, strict=True)
        ]
