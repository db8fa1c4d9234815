"""From a representation to a matrix: samples in rows, neurons in columns."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Size, Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from lightning_leaky.utilities.arguments import located

PaddingMask: TypeAlias = str | Callable[[Any], Any] | None
"""See `ReadingSettings`."""

GIVEN = "given"
"""See `lightning_leaky.hooks.padding`."""

# A batch may lack this key, because older configurations name it.
_ATTENTION_MASK = "attention_mask"

_DEFAULTS = {2: "nc", 3: "ntc", 4: "nchw", 5: "ncdhw"}


def default_axes(num_axes: int) -> str:
    """Return the axes of a representation if nothing tells."""
    return _DEFAULTS[num_axes]


@dataclass(frozen=True)
class Layout:
    """How the axes of a representation become samples and neurons (`docs/attach.md`).

    Every position is one sample: batch × tokens, batch × pixels.

    Args:
        axes: One letter per axis: ``n`` for the batch, ``c`` for the channels, any others for positions, as ``"tnc"``
            for (tokens, batch, width) or ``"nhwc"``. ``None`` is ``"nc"``, ``"ntc"``, ``"nchw"`` or ``"ncdhw"`` by the
            number of axes, or what the modules inside the layers tell (`lightning_leaky.reading.layout`). The memory
            format ``torch.channels_last`` changes no axes.
        per_sample: Whether to read the mean over the positions of each sample instead of the positions.
        max_samples: Rows per batch at most, thinned by a fixed stride (raised if it would fall on the same positions
            of all samples), without random numbers.

    Raises:
        ValueError: If the axes are not distinct letters with ``n`` and ``c``, or `max_samples` is below 1.

    Example:
        >>> Layout("nchw").rows(torch.zeros(2, 3, 4, 5)).shape
        torch.Size([40, 3])
    """

    axes: str | None = None
    per_sample: bool = False
    max_samples: int | None = None

    def __post_init__(self) -> None:
        if self.axes is not None and (
            not self.axes.isalpha() or len(set(self.axes)) != len(self.axes) or not {"n", "c"} <= set(self.axes)
        ):
            raise ValueError(
                f'`axes` must be distinct letters, "n" for the batch and "c" for the channels among them, as "tnc", '
                f"got {self.axes!r}."
            )
        if self.max_samples is not None and self.max_samples < 1:
            raise ValueError(f"`max_samples` must be at least 1, got {self.max_samples!r}.")

    @property
    def reads_all_positions(self) -> bool:
        """Whether every position is a row, so that gradients of rows are those of the representation."""
        return not self.per_sample and self.max_samples is None

    def limited(self, max_samples: int) -> Layout:
        """Return this layout with at most so many rows, and never more than before."""
        return replace(self, max_samples=min(max_samples, self.max_samples or max_samples))

    def width(self, tensor: Tensor) -> int:
        """Return the number of channels, or raise ValueError if the axes do not fit."""
        return tensor.shape[self.channel_axis(tensor)]

    def batch_axis(self, tensor: Tensor) -> int:
        """Return the index of the batch axis, or raise ValueError if the axes do not fit."""
        return self._axes(tensor).index("n")

    def channel_axis(self, tensor: Tensor) -> int:
        """Return the index of the channel axis, or raise ValueError if the axes do not fit."""
        return self._axes(tensor).index("c")

    def num_samples(self, tensor: Tensor) -> int:
        """Return the number of samples, or raise ValueError if the axes do not fit."""
        return tensor.shape[self.batch_axis(tensor)]

    def rows(self, tensor: Tensor, keep: Tensor | None = None, fresh: Tensor | None = None) -> Tensor:
        """Return a representation as a matrix, shape (N, w).

        Args:
            tensor: A representation.
            keep: Which positions are real, shape (batch, positions...), the batch always first; ``None`` for all.
                Padding has no row, and no part in a mean. A matrix takes it flattened if its rows are all positions,
                and else ignores it.
            fresh: Which samples of the batch are no repeats, shape (batch,); ``None`` for all. A repeat has no row. A
                tensor with another number of samples ignores it.

        Raises:
            ValueError: If the tensor does not have these axes, or `keep` is not of their sizes.
        """
        hidden = self._channels_last(tensor)
        if keep is not None and tensor.ndim == 2:  # positions are in the batch axis, or gone
            keep = keep.reshape(-1, 1) if keep.numel() == len(hidden) else None
        if keep is not None and keep.shape != hidden.shape[:-1]:
            raise ValueError(
                f"`padding_mask` must have shape {tuple(hidden.shape[:-1])}, one entry for each position, got "
                f"{tuple(keep.shape)}; pass None to read every position"
            )
        keep = None if keep is None else keep.to(hidden.device, torch.bool)
        if fresh is not None and len(fresh) == len(hidden):
            of_fresh = fresh.to(hidden.device).reshape(-1, *(1,) * (hidden.ndim - 2)).expand(hidden.shape[:-1])
            keep = of_fresh if keep is None else keep & of_fresh
        if self.per_sample:
            rows, positions = _means(hidden.flatten(1, -2), None if keep is None else keep.flatten(1)), 1
        else:
            rows = hidden.reshape(-1, hidden.shape[-1]) if keep is None else hidden[keep]
            positions = math.prod(hidden.shape[1:-1])
        most = self.max_samples
        return rows if most is None or len(rows) <= most else _thinned(rows, most, positions)

    def sample_of_rows(self, tensor: Tensor, *masks: Tensor | None) -> Tensor:
        """Return the place in the batch of each row of `rows`, shape (N,), on the CPU."""
        places = torch.arange(self.num_samples(tensor), dtype=torch.float64)
        shape = [1] * tensor.ndim
        shape[self.batch_axis(tensor)] = len(places)
        sizes = [*tensor.shape]
        sizes[self.channel_axis(tensor)] = 1  # one number per row is enough
        spread = places.reshape(shape).expand(sizes)
        return self.rows(spread, *(None if mask is None else mask.cpu() for mask in masks))[:, 0].round().long()

    def _axes(self, tensor: Tensor) -> str:
        axes = self.axes or _DEFAULTS.get(tensor.ndim)
        if axes is None or len(axes) != tensor.ndim:
            raise ValueError(
                f"`layout` must name the axes of a representation of shape {tuple(tensor.shape)}, got {self.axes!r}; "
                'give one letter an axis, as Layout("tnc")'
            )
        return axes

    def _channels_last(self, tensor: Tensor) -> Tensor:
        """A tensor of shape (n, positions..., c)."""
        axes = self._axes(tensor)
        inner = [axis for axis, letter in enumerate(axes) if letter not in "nc"]
        moved = tensor.permute(axes.index("n"), *inner, axes.index("c"))
        return moved if inner else moved.unsqueeze(1)


def check_layout(layout: Layout | None, padding_mask: PaddingMask) -> None:
    """Raise ValueError if either is of another kind."""
    if layout is not None and not isinstance(layout, Layout):
        raise ValueError(f"`layout` must be a Layout, got {layout!r}; write Layout({layout!r}) for its axes.")
    if not (padding_mask is None or isinstance(padding_mask, str) or callable(padding_mask)):
        raise ValueError(
            f'`padding_mask` must be "given", a key of the batch, a function of it or None, got {padding_mask!r}; '
            "write lambda batch: ... for what is to be made of it."
        )


def real_positions(batch: Any, padding_mask: PaddingMask) -> Tensor | None:
    """Return which positions of a batch are real, shape (batch, positions...), or ``None`` if it does not say.

    Raises:
        ValueError: If the batch has no such key, or several; only ``"attention_mask"`` may be missing.

    Example:
        >>> real_positions(({"attention_mask": torch.tensor([[1, 1, 0]])}, "labels"), "attention_mask")
        tensor([[ True,  True, False]])
    """
    if padding_mask is None or padding_mask == GIVEN:
        return None
    mask = _mask_named(batch, padding_mask) if isinstance(padding_mask, str) else padding_mask(batch)
    return None if mask is None else mask != 0


def keys_of(batch: Any) -> list[str]:
    """Return all names in a batch of what is not ``None``."""
    return list(dict.fromkeys(key for key, part in _named_parts(batch) if part is not None))


def _mask_named(batch: Any, name: str) -> Tensor | None:
    found = [value for key, value in _named_parts(batch) if key == name and isinstance(value, Tensor)]
    # An attention mask (batch, heads, tokens, tokens) does not tell padding.
    found = [mask for mask in found if name != _ATTENTION_MASK or mask.ndim == 2]
    if len(found) == 1:
        return found[0]
    function = located(name)
    if callable(function):
        mask: Tensor | None = function(batch)
        return mask
    if found or name != _ATTENTION_MASK:
        there_is = f"the batch has the keys {keys_of(batch)}"
        raise ValueError(
            "`padding_mask` must be a key of the batch, a function of it, or the import path of one, got "
            f"{name!r}; {there_is if not found else f'{len(found)} parts of the batch have this key'}."
        )
    return None


def _named_parts(batch: Any) -> list[tuple[str, Any]]:
    """Named entries of dictionaries, dataclasses and named tuples, at any depth."""
    if dataclasses.is_dataclass(batch) and not isinstance(batch, Mapping):
        named: dict[Any, Any] = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    else:
        named = dict(batch) if isinstance(batch, Mapping) else getattr(batch, "_asdict", dict)()
    parts = list(named.values()) or (batch if isinstance(batch, (tuple, list)) else [])
    return [
        *((str(key), value) for key, value in named.items()),
        *(one for part in parts for one in _named_parts(part)),
    ]


def _thinned(rows: Tensor, most: int, positions: int) -> Tensor:
    """Rows at a stride coprime to the positions, so that it does not hit the same ones of all samples."""
    stride = -(-len(rows) // most)
    while math.gcd(stride, positions) > 1:
        stride += 1
    return rows[::stride]


def _means(hidden: Tensor, keep: Tensor | None) -> Tensor:
    """Mean over the positions of (n, t, c), shape (n, c); a sample without a real position has no row."""
    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    if keep is None:
        return wide.mean(1)
    counts = keep.sum(1, keepdim=True)
    means = torch.where(keep[..., None], wide, 0).sum(1) / counts.clamp(min=1)
    return means[counts[:, 0] > 0]


_CHANNELS_FIRST = {3: "nct", 4: "nchw", 5: "ncdhw"}
_CHANNELS_LAST = {3: "ntc", 4: "nhwc", 5: "ndhwc"}


def axes_told(blocks: Iterable[tuple[nn.Module, Size]]) -> str | None:
    """Return the axes that the modules inside blocks tell; ``None`` if they say nothing or disagree.

    Channels are first if a convolution, batch or group norm has as many as the second axis, and last if a linear map or
    another norm has the length of the last axis. Transformer layers of torch.nn say whether sequences come first.

    Args:
        blocks: Blocks, and the shape that passes each; all with the same number of axes, at least 3.
    """
    tells_first = tells_last = tokens_first = False
    num_axes = 0
    for block, shape in blocks:
        num_axes = len(shape)
        for module in block.modules():
            is_of_torch = isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer))
            tokens_first = tokens_first or (is_of_torch and not getattr(module.self_attn, "batch_first", True))
            first, last = _lengths(module)
            tells_first, tells_last = tells_first or shape[1] in first, tells_last or shape[-1] in last
    if tells_first == tells_last or num_axes not in _CHANNELS_LAST:
        return None
    if tells_first:
        return _CHANNELS_FIRST[num_axes]
    return "tnc" if tokens_first and num_axes == 3 else _CHANNELS_LAST[num_axes]


def other_axes(num_axes: int) -> str:
    """Return the axes other than the default that a representation may have."""
    return (_CHANNELS_FIRST if num_axes == 3 else _CHANNELS_LAST)[num_axes]


def _lengths(module: nn.Module) -> tuple[set[int], set[int]]:
    """Lengths that a module allows for the second axis, and for the last."""
    if isinstance(module, (_NormBase, nn.GroupNorm)):
        return {module.num_channels if isinstance(module, nn.GroupNorm) else module.num_features}, set()
    if isinstance(module, _ConvNd):
        return {module.in_channels, module.out_channels}, set()
    shapes = [one.shape for one in module.parameters(recurse=False) if not is_lazy(one) and one.ndim <= 2]
    normalized = getattr(module, "normalized_shape", ())
    return set(), {length for shape in [*shapes, normalized] for length in shape if length > 1}
