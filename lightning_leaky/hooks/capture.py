"""What passed through the layers of a path: representations, gradients and padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_leaky.hooks.compiled import keep_gradient
from lightning_leaky.hooks.layer_hooks import LayerHooks, fingerprint
from lightning_leaky.hooks.structures import without_nesting

_PADDING_MASKS = ("src_key_padding_mask", "tgt_key_padding_mask")


class PathCapture(LayerHooks):
    """Keeps, while armed, what passed through each layer: A_{l−1}, A_l and, on request, ∂loss/∂A_l.

    Tensors are detached and kept until `clear`; a later forward pass overwrites an earlier one. The padding mask that
    transformer layers of torch.nn take by keyword is kept too. Reentrant checkpointing runs a layer without gradients
    first and again inside the backward pass: the values are those of the first run, the gradients of the second.

    Args:
        layers: The layers of a path, in order.
        gradients: Whether to keep the gradients that a backward pass brings.
    """

    def __init__(self, layers: Sequence[nn.Module], gradients: bool = False) -> None:
        super().__init__(layers)
        self.gradients_wanted = gradients
        self.in_backward = False
        self._unnested: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._forget_tensors()

    def clear(self) -> None:
        """Forget every tensor."""
        super().clear()
        self.in_backward = False
        self._forget_tensors()

    def complaints(self) -> dict[int, str]:
        """Why layers cannot be read, by index."""
        for index, (before, _) in self._fingerprints.items():
            previous = self.previous[index]
            if previous is not None:  # what came after the layer may have overwritten its input too
                self._fingerprints[index] = (before, fingerprint(previous))
        repeated = {index: count for index, count in enumerate(self._counts) if count > 1}
        return super().complaints() | {
            index: f"runs {count} times in one forward pass (shared weights?), and there is one place for its reading"
            for index, count in repeated.items()
        }

    def take(self, other: PathCapture, indices: Sequence[int]) -> None:
        """Take over what another capture has seen of some of its layers, which are this one's."""
        self._unnested.update(other._unnested)
        for own, index in enumerate(indices):
            self.previous[own], self.current[own] = other.previous[index], other.current[index]
            self.gradients[own], self.padding[own] = other.gradients[index], other.padding[index]
            self._counts[own] = other._counts[index]
            if index in other._fingerprints:
                self._fingerprints[own] = other._fingerprints[index]

    @property
    def was_nested(self) -> bool:
        """Whether the layers took sequences without their padding: then a mask of the batch has other sizes."""
        return bool(self._unnested)

    def real_positions(self, index: int) -> Tensor | None:
        """Which positions are no padding, shape (batch, tokens), where the layer was told."""
        padding = self.padding[index]
        return None if padding is None else padding == 0  # True, or −inf once torch has made it additive, is padding

    def _forget_tensors(self) -> None:
        self._unnested.clear()
        self.padding: list[Tensor | None] = [None] * len(self.layers)
        self.previous: list[Tensor | None] = [None] * len(self.layers)
        self.current: list[Tensor | None] = [None] * len(self.layers)
        self.gradients: list[Tensor | None] = [None] * len(self.layers)

    def _is_wanted(self) -> bool:
        return self.armed or (self.gradients_wanted and self.in_backward)

    def _observe(self, index: int, previous: Tensor, current: Tensor, kwargs: dict[str, Any]) -> None:
        if self.armed:
            self.padding[index] = told_padding(kwargs)
            self.previous[index], self.current[index] = self._dense(index, previous), self._dense(index, current)
        if self.gradients_wanted and current.requires_grad:
            keep = self._pass_gradient_on if torch.compiler.is_compiling() else self.keep_gradient
            current.register_hook(partial(keep, index))  # type: ignore[no-untyped-call]

    def _dense(self, index: int, tensor: Tensor) -> Tensor:
        """The tensor itself, or the padded copy of a nested one; one copy, so that layers can be seen to share."""
        if not tensor.is_nested:
            return tensor.detach()
        if id(tensor) not in self._unnested:  # kept with the tensor, so that nothing else takes its id
            self._unnested[id(tensor)] = (tensor, *without_nesting(tensor.detach()))
        _, padded, self.padding[index] = self._unnested[id(tensor)]
        return padded

    def _pass_gradient_on(self, index: int, gradient: Tensor) -> Tensor:
        kept: Tensor = keep_gradient(gradient, self._number, index)
        return kept

    def keep_gradient(self, index: int, gradient: Tensor) -> None:
        """Keep the gradient of a layer's output."""
        self.gradients[index] = gradient.detach()

    def __getstate__(self) -> dict[str, Any]:
        nothing: list[None] = [None] * len(self.layers)
        state = {**super().__getstate__(), "in_backward": False, "_unnested": {}}
        forgotten = {name: list(nothing) for name in ("previous", "current", "gradients", "padding")}
        return state | forgotten


def told_padding(kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the padding mask that a transformer layer of torch.nn is given by keyword: 0 where a position is real.

    Example:
        >>> told_padding({"src_key_padding_mask": torch.tensor([[False, True]])})
        tensor([[False,  True]])
    """
    for name in _PADDING_MASKS:
        mask = kwargs.get(name)
        if isinstance(mask, Tensor):
            return mask
    return None
