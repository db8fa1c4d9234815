"""What can be wrong with a batch that has passed a path, in words."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_leaky.hooks.capture import PathCapture
from lightning_leaky.reading.segmentation import Segmentation


def check_passes(capture: PathCapture, names: Sequence[str]) -> None:
    """Raise ValueError where a layer was silent or cannot be read."""
    for index, complaint in capture.complaints().items():
        raise ValueError(f"layer {names[index]!r} {complaint}; choose other `layers`.")
    silent = [name for name, tensor in zip(names, capture.current, strict=True) if tensor is None]
    if silent:
        raise ValueError(
            f"layers {silent} did not run in it, or ran in code that was compiled before they were watched; leave them "
            "out of `layers`."
        )


def check_widths(
    segmentation: Segmentation, previous: Sequence[Tensor], current: Sequence[Tensor], names: Sequence[str]
) -> None:
    """Raise ValueError where a layer does not preserve the width that it had in the first batch."""
    for index, start, end in zip(segmentation.layers, previous, current, strict=True):
        width = segmentation.channels[index]
        if start.shape != end.shape or start.shape[-1] != width:
            raise ValueError(
                f"layer {names[index]!r} maps {tuple(start.shape)} to {tuple(end.shape)}, and in the first batch it "
                f"preserved a width of {width}."
            )


def broken_path(
    segmentation: Segmentation, previous: Sequence[Tensor], current: Sequence[Tensor], names: Sequence[str]
) -> str | None:
    """Say where a layer does not take what the one before it in its segment has returned; ``None`` if nowhere."""
    segments = segmentation.segments
    for place, (before, after) in enumerate(itertools.pairwise(segmentation.layers), start=1):
        if segments[before] == segments[after]:
            passed, taken = current[place - 1], previous[place]
            if passed.data_ptr() != taken.data_ptr() and not torch.equal(passed.to(taken), taken):
                return (
                    f"Layers {names[before]!r} and {names[after]!r} are not on one path: what the second takes is not "
                    "what the first returned. Each layer's readings stand, those along the path (length, spread, rank) "
                    "do not. Choose `layers` that follow one another."
                )
    return None


def unknown_repeats(fresh: Tensor | None, numbers_of_samples: set[int]) -> str | None:
    """Say where samples that repeat others cannot be told in a representation; ``None`` if nowhere."""
    if fresh is None or numbers_of_samples == {len(fresh)}:
        return None
    return (
        f"A batch has {len(fresh)} samples, of which a distributed sampler repeats some, and layers have "
        f"{sorted(numbers_of_samples)}: the repeats are read too. Say where the batch is, as in Layout('tnc')."
    )


def segments_note(segmentation: Segmentation, names: Sequence[str]) -> str | None:
    """Say, for a log, where a path is split; ``None`` where it is in one piece."""
    read, widths = segmentation.layers, segmentation.widths
    left_out = [name for index, name in enumerate(names) if index not in read]
    if not left_out and len(widths) == 1:
        return None
    return (
        f"The shape changes along the path: {len(read)} layers are read, in {len(widths)} segments"
        f"{f'; {left_out} are left out' if left_out else ''}."
    )
