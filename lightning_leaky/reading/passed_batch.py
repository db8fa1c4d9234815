"""A batch that has passed a path, as matrices without padding and repeats, and the segments of the path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightning_leaky.hooks.capture import Passage
from lightning_leaky.hooks.structures import all_tensors_of
from lightning_leaky.reading.layout import Layout, PaddingMask, real_positions
from lightning_leaky.reading.sample import PathSample, label_rows, labels_of, samples_of
from lightning_leaky.reading.sample_count import row_levels

Matrices: TypeAlias = tuple[list[Tensor], list[Tensor]]
"""A_{l−1} and A_l of each layer read."""


class Batch(NamedTuple):
    """What is known of a batch besides its representations.

    Attributes:
        data: The batch, which may hold a padding mask.
        fresh: Which samples are no repeats, see `Layout.rows`.
        targets: For the labels of pictures, if `data` has none.
        gradients: Filled with ∂C/∂θ by id of the parameter; ``None`` if they are not read.
    """

    data: Any = None
    fresh: Tensor | None = None
    targets: Any = None
    gradients: dict[int, Tensor] | None = None

    @property
    def length(self) -> int:
        """Number of samples, guessed before it passes: the rows of its first tensor."""
        return next((len(one) for one in all_tensors_of(self.data) if one.ndim), 0)


class PassedBatch:
    """Matrices of the layers read, the passes stacked.

    Raises:
        ValueError: If the batch lacks the named padding mask, or it does not fit.
    """

    def __init__(
        self,
        batch: Batch,
        passages: Sequence[Passage],
        segmentation: Segmentation,
        layout: Layout,
        padding_mask: PaddingMask,
    ) -> None:
        self.batch, self.passages, self.layout = batch, passages, layout
        self.layers = segmentation.layers
        self.segments = [segment for segment in segmentation.segments if segment]
        self._padding_mask, self._told = padding_mask, real_positions(batch.data, padding_mask)
        self.matrices = self._matrices(layout)
        self._places = list[Tensor]()

    def levels(self, numbers: Tensor, max_rows: int) -> list[Tensor]:
        """Return `row_levels` of each layer, one tensor for layers that are alike."""
        known = dict[tuple[Any, ...], Tensor]()
        each = [
            [self._levels(passage, index, numbers, max_rows, known) for passage in self.passages]
            for index in self.layers
        ]
        keys = [tuple(map(id, parts)) for parts in each]
        found = {key: torch.cat(parts) for key, parts in dict(zip(keys, each, strict=True)).items()}
        return [found[key] for key in keys]

    def _levels(
        self, passage: Passage, index: int, numbers: Tensor, max_rows: int, known: dict[tuple[Any, ...], Tensor]
    ) -> Tensor:
        tensor, real = passage.current[index], self._real(passage, index)
        key = (None if tensor is None else tensor.shape, id(real))
        if tensor is not None and key not in known:
            samples = self.layout.sample_of_rows(tensor, real, self.batch.fresh)
            known[key] = row_levels(samples, numbers, max_rows)
            self._places.append(samples)
        return known[key]

    def places_read(self) -> Tensor:
        """Return the places in the batch of the samples that have rows, once their `levels` are known."""
        return torch.bincount(torch.cat(self._places)).nonzero()[:, 0]

    def at_most(self, most: int) -> Matrices:
        """Return the matrices, limited to so many rows."""
        return self._matrices(self.layout.limited(max(1, most // len(self.passages))))

    def first(self) -> Matrices:
        """Return the matrices of the first pass."""
        return self._rows_of(self.passages[0], self.layout)

    def momenta(self, weight_decay: float) -> list[Tensor]:
        """Return B_l = −(1/λ) ∂C/∂A_l of each layer; NaN if no gradient came."""
        return _stacked([self._momenta_of(passage, weight_decay) for passage in self.passages])

    def samples(self, most: int, say: Callable[[str | None], None]) -> list[PathSample]:
        """Return a few rows of the first pass, one entry per segment; none, and `say` why, if that fails."""
        try:
            return self._samples(most)
        except Exception as error:
            say(f"No samples of a batch are kept for pictures: {error}")
            return []

    def _samples(self, most: int) -> list[PathSample]:
        layout, passage = self.layout.limited(most), self.passages[0]
        batch = self.batch.data if self.batch.targets is None else (self.batch.data, self.batch.targets)
        known, labels = labels_of(batch), dict[int, Tensor | None]()
        for index, number in zip(self.layers, self.segments, strict=True):
            taken = passage.previous[index]
            if number not in labels and taken is not None:  # the first layer of a segment
                labels[number] = label_rows(known, taken, layout, self._real(passage, index), self.batch.fresh)
        return samples_of(*self._rows_of(passage, layout), self.segments, labels)

    def num_samples(self) -> int:
        """Return the length of the batch axis of the first layer's output."""
        tensor = self.passages[0].current[self.layers[0]]
        return 0 if tensor is None else self.layout.num_samples(tensor)

    def numbers_of_samples(self) -> set[int]:
        """Return the lengths of the batch axes of the layers' outputs; none if all samples are fresh."""
        if self.batch.fresh is None:
            return set()
        current = (passage.current[index] for passage in self.passages for index in self.layers)
        return {self.layout.num_samples(tensor) for tensor in current if tensor is not None}

    def _matrices(self, layout: Layout) -> Matrices:
        parts = [self._rows_of(passage, layout) for passage in self.passages]
        return _stacked([previous for previous, _ in parts]), _stacked([current for _, current in parts])

    def _rows_of(self, passage: Passage, layout: Layout) -> Matrices:
        previous, current = (
            [self._rows(tensor, passage, index, layout) for index in self.layers if (tensor := side[index]) is not None]
            for side in (passage.previous, passage.current)
        )
        return previous, current

    def _rows(self, tensor: Tensor, passage: Passage, index: int, layout: Layout) -> Tensor:
        return layout.rows(tensor, self._real(passage, index), self.batch.fresh)

    def _momenta_of(self, passage: Passage, weight_decay: float) -> list[Tensor]:
        found = []
        for index in self.layers:
            gradient, like, real = passage.gradients[index], passage.current[index], self._real(passage, index)
            if gradient is not None:
                found.append(-self.layout.rows(gradient, real) / weight_decay)
            elif like is not None:
                found.append(torch.full_like(self.layout.rows(like, real), torch.nan))
        return found

    def _real(self, passage: Passage, index: int) -> Tensor | None:
        """Which positions are real: as the batch says, or else as the layer was told."""
        if self._padding_mask is None or (self._told is not None and not passage.was_nested):
            return self._told
        return passage.real[index]


def _stacked(parts: Sequence[list[Tensor]]) -> list[Tensor]:
    return parts[0] if len(parts) == 1 else [torch.cat(rows) for rows in zip(*parts, strict=True)]


@dataclass(frozen=True)
class Segmentation:
    """Segments of a path: runs of layers that preserve the shape, with one width and any number of positions.

    Args:
        segments: The segment of each layer, counted from 1; 0 if the shape changes and the layer is not read.
        itemsizes: Bytes per entry of each, at least 4.
    """

    segments: tuple[int, ...]
    channels: tuple[int, ...]
    itemsizes: tuple[int, ...]

    @classmethod
    def unknown(cls, num_layers: int) -> Segmentation:
        """Before any batch has passed."""
        return cls(*[(0,) * num_layers] * 3)

    @classmethod
    def seen(cls, previous: Sequence[Tensor | None], current: Sequence[Tensor | None], layout: Layout) -> Segmentation:
        """From what the layers took and returned in one pass."""
        columns: list[tuple[int, int, int]] = []
        segment, before = 0, None
        for start, end in zip(previous, current, strict=True):
            if start is None or end is None or start.shape != end.shape:
                before = None
                columns.append((0, 0, 0))
                continue
            width = layout.width(end)
            segment += width != before
            before = width
            columns.append((segment, width, torch.promote_types(end.dtype, torch.float32).itemsize))
        return cls(*zip(*columns, strict=True))

    @classmethod
    def of(cls, table: Tensor) -> Segmentation:
        """From a `table`."""
        return cls(*map(tuple, table.tolist()))

    @property
    def table(self) -> Tensor:
        """All fields, shape (3, L): one tensor that processes can agree on."""
        return torch.tensor([self.segments, self.channels, self.itemsizes])

    @property
    def is_known(self) -> bool:
        """Whether there is a layer to read."""
        return any(self.segments)

    @property
    def layers(self) -> list[int]:
        """Indices of the layers read."""
        return [index for index, segment in enumerate(self.segments) if segment > 0]

    @property
    def widths(self) -> list[tuple[int, int]]:
        """Width and number of layers of each segment."""
        width_of = {segment: width for segment, width in zip(self.segments, self.channels, strict=True) if segment}
        return [(width, self.segments.count(segment)) for segment, width in width_of.items()]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the samples, in float32 at least."""
        return torch.float64 if 8 in self.itemsizes else torch.float32
