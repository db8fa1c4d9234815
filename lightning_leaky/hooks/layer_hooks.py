"""Forward hooks on the layers of a path: they see representations pass, and are gone when detached."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_leaky.hooks.compiled import forget_compiled_code, number_of, warn_of_recompilation
from lightning_leaky.hooks.structures import paired_tensors, tensors_of, without_nesting

Self = TypeVar("Self", bound="LayerHooks")


class LayerHooks:
    """Owns the forward hooks on some layers: one before and one after each.

    A layer may take its input by position or keyword and return any structure (`paired_tensors`). What cannot be read
    is never an error in somebody's forward pass: `complaints` says it afterwards. Counts and fingerprints are taken in
    eager code only: a compiled hook must not change a number.

    Pickling and deep-copying drop the handles, not the layers: a copy has no hooks until it is attached.

    Args:
        layers: The layers of a path, in order.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = list(layers)
        self.armed = False
        self._handles: list[RemovableHandle] = []
        self._is_checking = True
        self._number = number_of(self)
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
        found = dict(self._unread)
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
        self._unread: dict[int, str] = {}
        self._entered: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._fingerprints: dict[int, tuple[Tensor, Tensor]] = {}

    def _enter(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.armed and not torch.compiler.is_compiling() and not _is_transformed():
            self._counts[index] += 1
            if self._is_checking:
                self._entered[index] = [(tensor, fingerprint(tensor)) for tensor in tensors_of((args, kwargs))]

    def _leave(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self._is_wanted():
            return
        if _is_transformed():
            self._unread[index] = "runs inside a transform of torch.func, whose tensors do not outlive it"
            return
        pair = paired_tensors((args, kwargs), output)
        if pair is not None:
            self._observe(index, *pair, kwargs)
        if not torch.compiler.is_compiling():
            self._check(index, pair)

    def _check(self, index: int, pair: tuple[Tensor, Tensor] | None) -> None:
        if pair is None:
            self._unread[index] = "takes or returns no floating-point tensor"
        for tensor, print_before in self._entered.pop(index, []):
            if pair is not None and tensor is pair[0]:
                self._fingerprints[index] = (print_before, fingerprint(tensor))

    def _is_wanted(self) -> bool:
        return self.armed

    def _observe(self, index: int, previous: Tensor, current: Tensor, kwargs: dict[str, Any]) -> None:
        """Take what a layer maps, and what it was told by keyword."""
        raise NotImplementedError

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._number = number_of(self)

    def __getstate__(self) -> dict[str, Any]:
        none_passed = {"_counts": [0] * len(self.layers), "_unread": {}, "_entered": {}, "_fingerprints": {}}
        return {**self.__dict__, **none_passed, "_handles": [], "armed": False}


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


def _is_transformed() -> bool:
    """Whether a layer runs inside vmap, grad or the like, in eager code."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
