"""One layer's part of a batch: the matrices that everything is read from, formed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

FeatureMap: TypeAlias = Callable[[Tensor], Tensor]
"""From a representation A, shape (N, w), to its features σ(A), shape (N, d)."""

Matrices: TypeAlias = Sequence[Tensor] | Tensor
"""One matrix of shape (N, w) for each layer."""


class LayerBatch(NamedTuple):
    """Matrices of one layer over the same N samples.

    Attributes:
        features: σ(A_{l−1}), shape (N, d).
        previous: A_{l−1}, shape (N, w).
        current: A_l, shape (N, w).
        velocity: V_l, shape (N, w).
        momentum: B_l, shape (N, w); ``None`` where none is read.
    """

    features: Tensor
    previous: Tensor
    current: Tensor
    velocity: Tensor
    momentum: Tensor | None = None


def layer_batch(
    feature_map: FeatureMap,
    step_size: float,
    dtype: torch.dtype,
    previous: Tensor,
    current: Tensor,
    momentum: Tensor | None = None,
) -> LayerBatch:
    """Form the matrices of a layer from what it took and returned; features in a dtype, the others as they come."""
    velocity = (current - previous) / step_size  # `velocity`, without its checks
    return LayerBatch(feature_map(previous.to(dtype)), previous, current, velocity, momentum)


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
