"""One layer's matrices of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_leaky.functional.moments import MomentumMoments, inner_product, row_product, summed_rows
from lightning_leaky.functional.movement import turn_sums

FeatureMap: TypeAlias = Callable[[Tensor], Tensor]
"""From A, shape (N, w), to its features σ(A), shape (N, d)."""

Matrices: TypeAlias = Sequence[Tensor] | Tensor
"""One (N, w) matrix per layer."""

MOMENTUM_SUMS = ("features_momentum_square", "momentum_representation", "momentum_square")


@dataclass(frozen=True, eq=False)  # tensors have no truth value
class LayerBatch:
    """σ(A_{l−1}), A_{l−1}, A_l, A_l − A_{l−1} = ρ_l V_l, ρ_l and B_l of one layer over the same samples."""

    features: Tensor
    previous: Tensor
    current: Tensor
    step: Tensor
    step_size: float
    momentum: Tensor | None = None

    @cached_property
    def _rows(self) -> tuple[Tensor, Tensor]:
        """‖A‖² and ‖ρV‖² per sample."""
        return row_product(self.previous, self.previous), row_product(self.step, self.step)

    def inner(self, count: int, has_cross: bool) -> Tensor:
        """Inner products of the first `count` of A and ρV, shape (count, count); 0 for a cross term not needed."""
        square, moved = map(summed_rows, self._rows)
        cross = inner_product(self.previous, self.step) if has_cross else torch.zeros_like(square)
        return torch.stack([square, cross, cross, moved]).reshape(2, 2)[:count, :count]

    @property
    def turns(self) -> Tensor:
        """`turn_sums` of the layer, shape (2,)."""
        square, moved = self._rows
        return turn_sums(square, row_product(self.current, self.current), moved)


def layer_batch(
    feature_map: FeatureMap,
    step_size: float,
    dtype: torch.dtype,
    previous: Tensor,
    current: Tensor,
    momentum: Tensor | None = None,
) -> LayerBatch:
    """Form the matrices of a layer, features in `dtype`, the others as they come."""
    return LayerBatch(feature_map(previous.to(dtype)), previous, current, current - previous, step_size, momentum)


def momentum_sums(moments: MomentumMoments) -> dict[str, Tensor]:
    """Momentum fields of `Sums`."""
    square = inner_product(moments.features_momentum, moments.features_momentum)
    return dict(zip(MOMENTUM_SUMS, (square, *moments[1:]), strict=True))


def velocity_scales(step_sizes: Tensor, count: int) -> Tensor:
    """Factors from products of A and ρV to those of A and V, shape (L, count, count)."""
    scales = torch.stack([torch.ones_like(step_sizes), 1 / step_sizes], dim=-1)[:, :count]
    return scales[:, :, None] * scales[:, None, :]


def in_groups(numbers: range, bytes_each: int) -> Iterator[range]:
    """Yield runs of layers of at most 64 MiB, or of one layer."""
    size = max(1, 2**26 // max(1, bytes_each))
    return (numbers[start : start + size] for start in range(0, len(numbers), size))


def check_layers(widths: Sequence[int], **matrices: Matrices) -> None:
    """Raise ValueError unless each sequence holds one (N, w) floating-point matrix per layer.

    A NaN passes, because it must not crash training.
    """
    first = next(iter(matrices.values()))
    for name, sequence in matrices.items():
        if len(sequence) != len(widths):
            raise ValueError(f"`{name}` must hold one matrix for each of {len(widths)} layers, got {len(sequence)}.")
        for index, (matrix, like, width) in enumerate(zip(sequence, first, widths, strict=True)):
            rows = len(like) if isinstance(like, Tensor) and like.ndim else 0
            if not isinstance(matrix, Tensor):
                raise ValueError(f"`{name}[{index}]` must be a torch.Tensor, got {type(matrix).__name__}.")
            if not matrix.is_floating_point() or matrix.shape != (rows, width):
                raise ValueError(
                    f"`{name}[{index}]` must be a floating-point tensor of shape ({rows}, {width}), got {matrix.dtype} "
                    f"of shape {tuple(matrix.shape)}; samples in rows, all matrices of a layer over the same samples, "
                    "all layers of one width."
                )


def most_rows(max_rows: int | None, widths: Sequence[tuple[int, int]], memory: int) -> int | None:
    """Return how many rows to keep: `max_rows`, or as many as fit into `memory` bytes; ``None`` for all."""
    if max_rows is None:
        return None
    width = max(widths)[0]
    if max_rows <= width:
        raise ValueError(
            f"`max_rows` must be at least w + 1 = {width + 1}, got {max_rows!r}: fewer rows than features fit whatever "
            "they are. Raise it, leave it out, or say exact=True."
        )
    return min(max_rows, room_for_rows(widths, memory))


def room_for_rows(widths: Sequence[tuple[int, int]], memory: int) -> int:
    """Return how many rows of two float32 matrices per layer fit."""
    return max(1, memory // sum(8 * width * length for width, length in widths))
