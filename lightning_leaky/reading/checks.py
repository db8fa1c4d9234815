"""What can be wrong with a batch that has passed a path."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_leaky.hooks.capture import Passage, PathCapture
from lightning_leaky.reading.layout import Layout, axes_told, default_axes, keys_of, other_axes
from lightning_leaky.reading.passed_batch import Segmentation
from lightning_leaky.utilities.data_parallel import DataParallelRank
from lightning_leaky.utilities.processes import num_processes


def check_passes(capture: PathCapture, names: Sequence[str]) -> None:
    """Raise ValueError if a layer did not run, cannot be read, or ran more often than another."""
    for index, complaint in capture.complaints().items():
        raise ValueError(f"layer {names[index]!r} {complaint}.")
    runs = capture.runs
    silent = [name for name, count in zip(names, runs, strict=True) if not count]
    if silent:
        raise ValueError(
            f"layers {silent} did not run in it (layer drop?). Batches in which all layers run are read; leave layers "
            "that never run, or that were compiled before they were watched, out of `layers`."
        )
    if len(set(runs)) > 1:
        often, seldom = names[runs.index(max(runs))], names[runs.index(min(runs))]
        raise ValueError(
            f"layer {often!r} ran {max(runs)} times in one step and {seldom!r} {min(runs)} times (shared weights, or "
            "layer drop in one of two passes?). Choose `layers` that run equally often."
        )


def check_widths(segmentation: Segmentation, passages: Sequence[Passage], layout: Layout, names: Sequence[str]) -> None:
    """Raise ValueError if a layer does not preserve the width of the first batch."""
    for passage, index in itertools.product(passages, segmentation.layers):
        start, end, width = passage.previous[index], passage.current[index], segmentation.channels[index]
        if start is not None and end is not None and (start.shape != end.shape or layout.width(end) != width):
            raise ValueError(
                f"layer {names[index]!r} maps {tuple(start.shape)} to {tuple(end.shape)}, and in the first batch it "
                f"preserved a width of {width}."
            )


def broken_path(
    segmentation: Segmentation, previous: Sequence[Tensor], current: Sequence[Tensor], names: Sequence[str]
) -> str | None:
    """Say where a layer does not take what the one before it in its segment returned."""
    segments = segmentation.segments
    for place, (before, after) in enumerate(itertools.pairwise(segmentation.layers), start=1):
        if segments[before] == segments[after]:
            passed, taken = current[place - 1], previous[place]
            is_same = passed.data_ptr() == taken.data_ptr() or (
                passed.shape == taken.shape and torch.allclose(passed.to(taken), taken, rtol=0, atol=0, equal_nan=True)
            )
            if not is_same:
                return (
                    f"Layers {names[before]!r} and {names[after]!r} are not on one path: what the second takes is not "
                    "what the first returned. Each layer's readings stand, those along the path (length, spread, rank) "
                    "do not. Choose `layers` that follow one another."
                )
    return None


def unknown_repeats(fresh: Tensor | None, numbers_of_samples: set[int]) -> str | None:
    """Say if repeated samples cannot be told in a representation."""
    if fresh is None or numbers_of_samples == {len(fresh)}:
        return None
    return (
        f"A batch has {len(fresh)} samples, of which a distributed sampler repeats some, and layers have "
        f"{sorted(numbers_of_samples)}: the repeats are read too. Say where the batch is, as in Layout('tnc')."
    )


def no_room() -> str:
    """Say that memory for some rows is lacking."""
    return (
        "Some samples are not read: those of all processes would take more than the memory that a monitor may take. "
        "Choose fewer with Layout(max_samples=...), or limit the batches."
    )


def layout_told(
    layout: Layout, layers: Sequence[nn.Module], passage: Passage, names: Sequence[str]
) -> tuple[Layout, str | None]:
    """Return the layout that the layers tell if none is given, and what to say if they do not."""
    passed = [(layer, one.shape) for layer, one in zip(layers, passage.current, strict=True) if one is not None]
    numbers_of_axes = {len(shape) for _, shape in passed}
    if layout.axes is not None or len(numbers_of_axes) != 1 or not 3 <= min(numbers_of_axes) <= 5:
        return layout, None
    axes = axes_told(passed)
    if axes is not None:
        return replace(layout, axes=axes), None
    shape = tuple(passed[0][1])
    taken, other = default_axes(len(shape)), other_axes(len(shape))
    return layout, (
        f"The modules in {names[0]!r} do not tell which axis of {shape} is the width. Its "
        f"{shape[taken.index('c')]} neurons are taken, Layout({taken!r}); say `layout` if that is wrong, as {other!r}."
    )


def ranks_doubt(model: nn.Module, ranks: DataParallelRank | None) -> str | None:
    """Say if a model's wrappers and parameters tell otherwise which processes have the same samples."""
    if num_processes() == 1:
        return None
    kinds = [(module, {cls.__name__ for cls in type(module).__mro__}) for module in model.modules()]
    placements: list[Any] = [getattr(one, "placements", ()) for one in model.parameters()]
    splits = max(sum(not one.is_replicate() for one in each) for each in [(), *placements])
    if ranks is None and splits > any("FSDPModule" in names for _, names in kinds):
        return (
            "Tensors are split over processes beside data parallelism, and `data_parallel` is None: each process "
            "counts samples as its own, and momenta may be wrong. Pass DataParallelRank.of_mesh(mesh[...])."
        )
    groups: list[Any] = [module for module, names in kinds if "DistributedDataParallel" in names]
    if ranks is not None and any(one.process_group.size() > ranks.size for one in groups):
        return (
            f"`data_parallel` has {ranks.size} ranks, and DDP gives other samples to more processes: momenta are "
            "wrong. Leave it out, or pass the dimension of the mesh that DDP has."
        )
    return None


def unused_mask(data: Any) -> str | None:
    """Say if the layers were not given a batch's padding mask."""
    if "attention_mask" not in keys_of(data):
        return None
    return (
        "The batch holds an `attention_mask`, which neither the layers nor a module around them is given by that name: "
        'padding is read. Say padding_mask="attention_mask" to leave it out, or None.'
    )


def noisy_layers(layers: Sequence[nn.Module], names: Sequence[str]) -> str | None:
    """Say which layers draw random numbers in training."""
    noisy = [
        name
        for name, layer in zip(names, layers, strict=True)
        if any(module.training and _drops(module) for module in layer.modules())
    ]
    if not noisy:
        return None
    return (
        f"{len(noisy)} layers, as {noisy[0]!r}, drop at random in training (dropout or drop path): training readings "
        "hold this noise, those of validation do not."
    )


def _drops(module: nn.Module) -> bool:
    # By name, because every package has its own drop path.
    rates = (getattr(module, name, 0.0) for name in ("p", "drop_prob", "drop_rate", "dropout"))
    is_known = "drop" in type(module).__name__.lower() or isinstance(module, nn.MultiheadAttention)
    return is_known and any(isinstance(rate, float) and rate > 0 for rate in rates)


def segments_note(segmentation: Segmentation, names: Sequence[str]) -> str | None:
    """Say where a path is split."""
    read, widths = segmentation.layers, segmentation.widths
    left_out = [name for index, name in enumerate(names) if index not in read]
    if not left_out and len(widths) == 1:
        return None
    parts = f", in {len(widths)} segments" if len(widths) > 1 else ""
    others = f"; left out: {', '.join(left_out)}" if left_out else ""
    return f"The shape changes along the path. Layers read: {len(read)}{parts}{others}."
