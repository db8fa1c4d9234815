"""Which layers of a path are read, and where it is split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_leaky.reading.layout import Layout


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
