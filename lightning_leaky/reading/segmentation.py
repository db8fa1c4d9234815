"""Which layers of a path are read, and where a change of shape splits it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_leaky.reading.layout import Layout


@dataclass(frozen=True)
class Segmentation:
    """Segments of a path: runs of layers that preserve the shape of what passes through them, and share its width.

    The number of positions is left out, for it may be another in every batch.

    Args:
        table: Shape (3, L), whole numbers: the segment of each layer counted from 1 (0 where the shape changes, and
            nothing is read), its width, and the bytes of an entry. As one tensor it can be agreed on by processes.

    Example:
        >>> narrow, wide = torch.zeros(9, 4), torch.zeros(9, 8)
        >>> found = Segmentation.seen([narrow, narrow, wide], [narrow, wide, wide], Layout())
        >>> found.layers, found.widths
        ([0, 2], [(4, 1), (8, 1)])
    """

    table: Tensor

    @classmethod
    def unknown(cls, num_layers: int) -> Segmentation:
        """Return that of a path that no batch has passed."""
        return cls(torch.zeros(3, num_layers, dtype=torch.int64))

    @classmethod
    def seen(cls, previous: Sequence[Tensor | None], current: Sequence[Tensor | None], layout: Layout) -> Segmentation:
        """Return that of a path from what its layers took and returned."""
        table = cls.unknown(len(current)).table
        segment, before = 0, None
        for index, (start, end) in enumerate(zip(previous, current, strict=True)):
            if start is None or end is None or start.shape != end.shape:
                before = None
                continue
            width = layout.width(end)
            segment += width != before
            before = width
            entry = torch.promote_types(end.dtype, torch.float32).itemsize
            table[:, index] = torch.tensor([segment, width, entry])
        return cls(table)

    @property
    def is_known(self) -> bool:
        """Whether there is a layer to read."""
        return bool(self.table.any())

    @property
    def segments(self) -> list[int]:
        """Segment of each layer, 0 where it is not read."""
        return [int(segment) for segment in self.table[0]]

    @property
    def layers(self) -> list[int]:
        """The layers that are read."""
        return [index for index, segment in enumerate(self.segments) if segment > 0]

    @property
    def widths(self) -> list[tuple[int, int]]:
        """Width and number of layers of each segment."""
        width_of = {segment: int(width) for segment, width in zip(self.segments, self.table[1], strict=True) if segment}
        return [(width, self.segments.count(segment)) for segment, width in width_of.items()]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the samples, in float32 at least."""
        return torch.float64 if int(self.table[2].max()) == 8 else torch.float32
