"""Which axis of a representation is the width, by the parameters of the blocks."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Size, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

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
