"""A few samples along a path, for pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_leaky.functional import principal_coordinate
from lightning_leaky.reading.layout import Layout

_LABEL_KEYS = ("labels", "label", "targets", "target", "y")


@dataclass(frozen=True, eq=False)  # tensors have no truth value to compare by
class PathSample:
    """Representations of a few samples along one segment of a path, on the CPU.

    Attributes:
        representations: A_0, …, A_L, shape (L + 1, N, w), in float32 at least.
        labels: One number per sample, shape (N,): its class, or its target along the direction in which targets vary
            most; ``None`` if the batch does not say.
        segment: Which segment, counted from 0.

    Example:
        >>> PathSample(torch.zeros(3, 7, 2), labels=torch.arange(7)).representations.shape
        torch.Size([3, 7, 2])
    """

    representations: Tensor
    labels: Tensor | None
    segment: int = 0


def labels_of(batch: Any) -> Tensor | None:
    """The `PathSample.labels` of a pair (inputs, targets), or of a dictionary."""
    targets = None
    if isinstance(batch, Mapping):
        targets = next((batch[key] for key in _LABEL_KEYS if key in batch), None)
    elif isinstance(batch, (tuple, list)) and len(batch) == 2:  # of three, any may be a mask
        targets = batch[1]
    if not isinstance(targets, Tensor) or targets.ndim not in (1, 2) or not targets.numel():
        return None
    targets = targets.detach().cpu()
    if targets.ndim == 1:
        return targets
    if not targets.is_floating_point() or not bool(torch.isfinite(targets).all()):
        return None
    return principal_coordinate(targets)


def label_rows(labels: Tensor | None, like: Tensor, layout: Layout, *keep: Tensor | None) -> Tensor | None:
    """Labels of the rows ``layout.rows(like, *keep)``, shape (N,)."""
    if labels is None or layout.num_samples(like) != len(labels):
        return None
    return labels[layout.sample_of_rows(like, *keep)]


def samples_of(
    previous: Sequence[Tensor],
    current: Sequence[Tensor],
    segments: Sequence[int],
    labels: Mapping[int, Tensor | None],
) -> list[PathSample]:
    """A_0, …, A_L of each segment whose layers have equally many rows; `labels` are by segment, from 1."""
    found = []
    for number in dict.fromkeys(segments):
        layers = [index for index, segment in enumerate(segments) if segment == number]
        path = [*(previous[index] for index in layers), current[layers[-1]]]
        if len({len(rows) for rows in path}) == 1:
            wide = torch.promote_types(path[0].dtype, torch.float32)
            stacked = torch.stack([rows.detach().to("cpu", wide) for rows in path])
            found.append(PathSample(stacked, labels.get(number), number - 1))
    return found
