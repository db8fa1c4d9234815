"""A few samples of a batch on their way through the layers, for pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_leaky.layout import Layout

_LABEL_KEYS = ("labels", "label", "targets", "target", "y")


@dataclass(frozen=True)
class PathSample:
    """Representations of a few samples along one segment of a path, on the CPU.

    Attributes:
        representations: A_0, …, A_L, shape (L + 1, N, w), in float32 at least.
        labels: One number a sample, shape (N,): its class, or its target along the direction in which the targets vary
            most. ``None`` where the batch does not say.
    """

    representations: Tensor
    labels: Tensor | None


def labels_of(batch: Any) -> Tensor | None:
    """One number for each sample of a batch: whole numbers for classes, others for targets; ``None`` where unknown.

    Args:
        batch: A pair (inputs, targets), or a dictionary with one of the keys ``labels``, ``label``, ``targets``,
            ``target`` and ``y``. Targets of several dimensions are projected to the one along which they vary most.

    Example:
        >>> labels_of((torch.zeros(2, 5), torch.tensor([3, 1])))
        tensor([3, 1])
    """
    targets = None
    if isinstance(batch, Mapping):
        targets = next((batch[key] for key in _LABEL_KEYS if key in batch), None)
    elif isinstance(batch, (tuple, list)) and len(batch) > 1:
        targets = batch[1]
    if not isinstance(targets, Tensor) or targets.ndim not in (1, 2) or not targets.numel():
        return None
    targets = targets.detach().cpu()
    if targets.ndim == 1:
        return targets
    centred = targets.to(torch.float64) - targets.to(torch.float64).mean(0)
    along: Tensor = centred @ torch.linalg.eigh(centred.mT @ centred).eigenvectors[:, -1]
    return along


def label_rows(labels: Tensor | None, like: Tensor, layout: Layout, *keep: Tensor | None) -> Tensor | None:
    """Labels of the rows of a representation, ``layout.rows(like, *keep)``, shape (N,): those of their samples.

    Args:
        labels: One number for each sample of the batch.
        like: A representation.
        layout: How it becomes a matrix.
        *keep: What `Layout.rows` takes beside it.
    """
    if labels is None or layout.num_samples(like) != len(labels):
        return None
    shape = [1] * like.ndim
    shape[layout.batch_axis(like)] = len(labels)
    spread = labels.to(torch.float64).reshape(shape).expand(like.shape)
    return layout.rows(spread, *(None if mask is None else mask.cpu() for mask in keep))[:, 0].to(labels.dtype)


def segments_of(previous: Sequence[Tensor], current: Sequence[Tensor], segments: Sequence[int]) -> list[Tensor]:
    """A_0, …, A_L of each segment, shape (L + 1, N, w), from what its layers took and returned.

    Args:
        previous: A_{l−1} of each layer, shape (N, w).
        current: A_l.
        segments: Number of the segment of each layer.
    """
    groups: dict[int, list[int]] = {}
    for index, segment in enumerate(segments):
        groups.setdefault(segment, []).append(index)
    return [
        torch.stack([*(previous[index] for index in group), current[group[-1]]]).detach().cpu()
        for group in groups.values()
    ]
