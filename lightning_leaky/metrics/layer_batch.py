"""One layer's part of a batch: the matrices that everything is read from, formed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_leaky.functional.block_influence import turn_sums
from lightning_leaky.functional.moments import inner_product, row_product, summed_rows

FeatureMap: TypeAlias = Callable[[Tensor], Tensor]
"""From a representation A, shape (N, w), to its features σ(A), shape (N, d)."""

Matrices: TypeAlias = Sequence[Tensor] | Tensor
"""One matrix of shape (N, w) for each layer."""


@dataclass(frozen=True, eq=False)  # tensors have no truth value to compare by
class LayerBatch:
    """Matrices of one layer over the same N samples.

    Attributes:
        features: σ(A_{l−1}), shape (N, d).
        previous: A_{l−1}, shape (N, w).
        current: A_l, shape (N, w).
        step: A_l − A_{l−1} = ρ_l V_l, shape (N, w).
        step_size: ρ_l.
        momentum: B_l, shape (N, w); ``None`` where none is read.
    """

    features: Tensor
    previous: Tensor
    current: Tensor
    step: Tensor
    step_size: float
    momentum: Tensor | None = None

    @cached_property
    def _rows(self) -> tuple[Tensor, Tensor]:
        """‖A‖² and ‖ρV‖² of each sample."""
        return row_product(self.previous, self.previous), row_product(self.step, self.step)

    def inner(self, count: int, has_cross: bool) -> Tensor:
        """Inner products of the first of A and ρV, shape (count, count); 0 in place of that of both, if not wanted."""
        square, moved = map(summed_rows, self._rows)
        cross = inner_product(self.previous, self.step) if has_cross else torch.zeros_like(square)
        return torch.stack([square, cross, cross, moved]).reshape(2, 2)[:count, :count]

    @property
    def turns(self) -> Tensor:
        """How far the layer turns its samples, see `turn_sums`, shape (2,)."""
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
    """Form the matrices of a layer from what it took and returned; features in a dtype, the others as they come."""
    return LayerBatch(feature_map(previous.to(dtype)), previous, current, current - previous, step_size, momentum)


def velocity_scales(step_sizes: Tensor, count: int) -> Tensor:
    """What makes products of A and ρV those of A and V, shape (L, count, count), from ρ, shape (L,)."""
    scales = torch.stack([torch.ones_like(step_sizes), 1 / step_sizes], dim=-1)[:, :count]
    return scales[:, :, None] * scales[:, None, :]


def in_groups(numbers: range, bytes_each: int) -> Iterator[range]:
    """Yield runs of numbers of layers to work on together: of 64 MiB, or of one layer."""
    size = max(1, 2**26 // max(1, bytes_each))
    return (numbers[start : start + size] for start in range(0, len(numbers), size))


def check_layers(widths: Sequence[int], **matrices: Matrices) -> None:
    """Raise ValueError unless each sequence holds one (N, w) floating-point matrix for each layer, w its width.

    Values are not checked: a NaN belongs in the reading of its layer, not in a crash of the training it watches.
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
