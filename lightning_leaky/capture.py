"""Forward hooks on the layers of a path: they see representations pass, and are gone when detached."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_leaky.compiled import forget_compiled_code, keep_gradient, number_of, warn_of_recompilation
from lightning_leaky.functional._checks import working_dtype
from lightning_leaky.functional.step_size_rules import StepSizeRule
from lightning_leaky.structures import paired_tensors, tensors_of, without_nesting

Self = TypeVar("Self", bound="LayerHooks")

_PADDING_MASKS = ("src_key_padding_mask", "tgt_key_padding_mask")


class LayerHooks:
    """Owns the forward hooks on some layers: one before and one after each.

    A layer may take its input by position or keyword and return any structure (`paired_tensors`). What cannot be read
    is never an error in somebody's forward pass: `complaints` says it afterwards. Counts and fingerprints are taken in
    eager code only, for a compiled hook must not change a number.

    Pickling and deep-copying drop the handles, not the layers: a copy has no hooks until it is attached.

    Args:
        layers: The layers of a path, in order.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = list(layers)
        self.armed = False
        self._handles: list[RemovableHandle] = []
        self._is_checking = True
        self._forget_passes()

    def attach(self: Self) -> Self:
        """Register the hooks, once, and return this object."""
        if not self._handles:
            for index, layer in enumerate(self.layers):
                enter, leave = partial(self._enter, index), partial(self._leave, index)
                self._handles.append(layer.register_forward_pre_hook(enter, with_kwargs=True))
                self._handles.append(layer.register_forward_hook(leave, with_kwargs=True))
            warn_of_recompilation(self.layers)
            forget_compiled_code()
        return self

    def detach(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.armed = False

    def complaints(self) -> dict[int, str]:
        """Why layers cannot be read, by index, from what has passed since the last `clear`."""
        found = dict.fromkeys(self._unpaired, "takes or returns no floating-point tensor")
        for index, (before, after) in self._fingerprints.items():
            if not torch.allclose(before, after, rtol=0, atol=0, equal_nan=True):
                found[index] = (
                    "overwrites its input in place (or code after it does), so that there is nothing to compare with; "
                    "use out-of-place operations"
                )
        return found

    def clear(self) -> None:
        """Forget what has passed."""
        self._forget_passes()

    def stop_checking(self) -> None:
        """Take no more fingerprints: what the layers do in place has been seen."""
        self._is_checking = False

    def _forget_passes(self) -> None:
        self._counts = [0] * len(self.layers)
        self._unpaired: list[int] = []
        self._entered: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._fingerprints: dict[int, tuple[Tensor, Tensor]] = {}

    def _enter(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.armed and not torch.compiler.is_compiling():
            self._counts[index] += 1
            if self._is_checking:
                self._entered[index] = [(tensor, fingerprint(tensor)) for tensor in tensors_of((args, kwargs))]

    def _leave(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self._is_wanted():
            return
        pair = paired_tensors((args, kwargs), output)
        if pair is not None:
            self._observe(index, *pair)
        if not torch.compiler.is_compiling():
            self._check(index, pair)

    def _check(self, index: int, pair: tuple[Tensor, Tensor] | None) -> None:
        if pair is None:
            self._unpaired.append(index)
        for tensor, print_before in self._entered.pop(index, []):
            if pair is not None and tensor is pair[0]:
                self._fingerprints[index] = (print_before, fingerprint(tensor))

    def _is_wanted(self) -> bool:
        return self.armed

    def _observe(self, index: int, previous: Tensor, current: Tensor) -> None:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        none_passed = {"_counts": [0] * len(self.layers), "_unpaired": [], "_entered": {}, "_fingerprints": {}}
        return {**self.__dict__, **none_passed, "_handles": [], "armed": False}


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
        self._number = number_of(self)
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

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._number = number_of(self)

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

    def _enter(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super()._enter(index, module, args, kwargs)
        if self.armed:
            for name in _PADDING_MASKS:
                if isinstance(kwargs.get(name), Tensor):
                    self.padding[index] = kwargs[name]

    def _observe(self, index: int, previous: Tensor, current: Tensor) -> None:
        if self.armed:
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


class SumRecorder(LayerHooks):
    """Adds up, while armed and in training mode, what a rule wants to know of each layer, over all forward passes.

    Sums over samples: those of micro-batches and processes add up to those of the whole batch. A checkpointed layer
    that runs twice counts twice in all of its sums, and their ratios do not feel it.

    Args:
        layers: The layers of a path, in order.
        rule: What to sum.
        device: Where the representations are expected.

    Attributes:
        sums: Shape (L, ...); ``None`` until a layer has been seen.
    """

    def __init__(self, layers: Sequence[nn.Module], rule: StepSizeRule, device: torch.device) -> None:
        super().__init__(layers)
        self.rule = rule
        self.sums: Tensor | None = None
        # A CUDA graph overwrites tensors that it has made at its next replay: the sums are made before.
        self._room = self._room_for_sums(device)

    def clear(self) -> None:
        """Set the sums to zero."""
        super().clear()
        if self.sums is not None:
            self.sums.zero_()

    @torch.no_grad()
    def _observe(self, index: int, previous: Tensor, current: Tensor) -> None:
        if not self.layers[index].training or previous.shape != current.shape:
            return
        dtype, width = working_dtype(current.device), current.shape[-1]
        found = self.rule.sums(previous.to(dtype).reshape(-1, width), current.to(dtype).reshape(-1, width))
        if self.sums is None:
            self.sums = self._zeros_for(found)
        elif self.sums.device != found.device:
            self.sums = self.sums.to(found)
        self.sums[index] += found

    def _zeros_for(self, found: Tensor) -> Tensor:
        room = self._room
        if room is not None and room[0].shape == found.shape and room.device == found.device:
            return room
        return found.new_zeros(len(self.layers), *found.shape)

    @torch.no_grad()
    def _room_for_sums(self, device: torch.device) -> Tensor | None:
        """Zeros of the shape of the sums, where that does not depend on the width."""
        one = torch.zeros(1, 1, dtype=working_dtype(device), device=device)
        try:
            sums = self.rule.sums(one, one)
            return torch.zeros_like(sums).repeat(len(self.layers), *[1] * sums.ndim)
        except Exception:  # a user's rule may refuse a single column: its sums are made when it sees a layer
            return None


@torch.no_grad()
def fingerprint(tensor: Tensor) -> Tensor:
    """Sum and norm of a tensor: a change that neither shows in float32 is none that a reading would show.

    Example:
        >>> fingerprint(torch.tensor([3.0, 4.0]))
        tensor([7., 5.])
    """
    tensor = without_nesting(tensor)[0] if tensor.is_nested else tensor
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return torch.stack([tensor.sum(dtype=dtype), torch.linalg.vector_norm(tensor, dtype=dtype)])
