"""Forward hooks on the layers of a path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_leaky.hooks.compiled import forget_compiled_code, number_of, warn_of_recompilation
from lightning_leaky.hooks.padding import PaddingWatch
from lightning_leaky.hooks.state import Span, StateChoice, Step, block_of, ends_of, place_in, state_candidates, taken
from lightning_leaky.hooks.structures import Seen, has_values, tensors_of
from lightning_leaky.utilities.processes import unsharded


class LayerHooks:
    """Owns the forward hooks on some layers: one before and one after each.

    What cannot be read raises no error in a forward pass: `complaints` says it afterwards. What a backward pass
    recomputes, as checkpointing does, does not count. Only eager code counts and checks, because a compiled hook must
    not change a number. A pickled or deep copy has no hooks until it is attached.

    Attributes:
        armed: Whether to take what passes.
        on_pass: Called in eager code when the first layer runs in training mode, armed or not.
    """

    def __init__(self, layers: Sequence[nn.Module], model: nn.Module | None = None, state: StateChoice = None) -> None:
        self.layers = list(layers)
        self.armed = False
        self.on_pass: Callable[[], None] | None = None
        self.padding = PaddingWatch(model, list(map(block_of, self.layers)))
        self._places = [place_in(layer, state) for layer in self.layers]
        self._handles: list[RemovableHandle] = []
        self._copies_all, self._copied = True, set[int]()
        self._number = number_of(self)
        LayerHooks.clear(self)  # what a subclass clears does not exist yet

    def attach(self) -> Self:
        """Register the hooks once, and return this object."""
        if not self._handles:
            self.padding.clear()
            for one in self.padding.receivers:
                self._handles.append(one.module.register_forward_pre_hook(one.enter, with_kwargs=True))
            for index, layer in enumerate(self.layers):
                self._handles += self._hooks_on(index, layer)
            for one in self.padding.receivers:  # last, because `_leave` needs the mask
                self._handles.append(one.module.register_forward_hook(one.leave))
            warn_of_recompilation(self.layers)
            forget_compiled_code()
        return self

    def detach(self) -> None:
        """Remove every hook."""
        while self._handles:
            self._handles.pop().remove()
        for one in self.padding.receivers:
            one.mask = None
        self.armed = False

    def complaints(self) -> dict[int, str]:
        """Why layers cannot be read, by index."""
        return dict(self._unread)

    def clear(self) -> None:
        """Drop what has passed."""
        self._unread: dict[int, str] = {}
        self._entered: dict[int, list[tuple[Tensor, Seen]]] = {}
        self._inputs: dict[int, Sequence[Any]] = {}  # of layers whose first and last modules differ

    def copy_less(self) -> None:
        """From now on copy only what a batch has shown to be overwritten."""
        self._copies_all = False

    def _hooks_on(self, index: int, layer: nn.Module) -> list[RemovableHandle]:
        enter, leave = partial(self._enter, index), partial(self._leave, index)
        first, last, ends_before = ends_of(layer)
        register = last.register_forward_pre_hook if ends_before else last.register_forward_hook
        return [first.register_forward_pre_hook(enter, with_kwargs=True), register(leave, with_kwargs=True)]

    def _enter(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layer = self.layers[index]
        if self.armed and isinstance(layer, (Span, Step)):
            self._inputs[index] = taken(args, kwargs) if isinstance(layer, Step) else args
        if torch.compiler.is_compiling():
            return
        if index == 0 and self.on_pass is not None and module.training:
            self.on_pass()
        if self.armed and not torch._C._are_functorch_transforms_active() and not is_recomputing():
            self._entered[index] = []
            with suppress(Exception):  # if one is the state, `_leave` complains
                inputs = [one for one in tensors_of((args, kwargs)) if has_values(one)]
                self._entered[index] = [(one, Seen(one, self._copies(index))) for one in inputs]

    def _leave(
        self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any = None
    ) -> None:
        if not self.armed:
            return
        layer = self.layers[index]
        if isinstance(layer, Step) and layer.then is not None:
            output = taken(args, kwargs)
        if isinstance(layer, (Span, Step)):
            args, kwargs = tuple(self._inputs.pop(index, ())), {}
        if torch.compiler.is_compiling():
            befores, afters = state_candidates(self._places[index], args, kwargs, output)
            if befores and afters:
                self._observe_compiled(index, befores[0], afters[0])
            return
        try:
            self._leave_eagerly(index, args, kwargs, output)
        except Exception as error:  # the forward pass goes on
            self._unread[index] = unreadable(error)

    def _leave_eagerly(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if torch._C._are_functorch_transforms_active():
            self._unread[index] = "runs inside a transform of torch.func, whose tensors do not outlive it"
            return
        befores, afters = state_candidates(self._places[index], args, kwargs, output)
        if not befores or not afters:
            self._unread[index] = "takes or returns no floating-point tensor"
        elif is_recomputing():
            self._observe_again(index, befores[0], afters[0])
        else:
            entered = self._entered.pop(index, [])
            taken = [next((seen for one, seen in entered if one is before), Seen(before)) for before in befores]
            self._observe(index, taken, [Seen(after, self._copies(index)) for after in afters], afters)

    def _copies(self, index: int) -> bool:
        return self._copies_all or index in self._copied

    def _observe(self, index: int, befores: list[Seen], afters: list[Seen], outputs: list[Tensor]) -> None:
        """Take the candidates for a layer's state, and the outputs in their graph."""
        raise NotImplementedError

    def _observe_compiled(self, index: int, previous: Tensor, current: Tensor) -> None:
        """Take what a layer maps in compiled code."""
        raise NotImplementedError

    def _observe_again(self, index: int, previous: Tensor, current: Tensor) -> None:
        """Take what a layer maps in a backward pass that recomputes it."""

    def _pair(self, index: int, befores: list[Seen], afters: list[Seen]) -> tuple[Tensor, Tensor] | None:
        """What a layer maps, or ``None`` and a complaint if that is not certain."""
        if len(befores) + len(afters) > 2:
            self._unread[index] = several_states(len(befores), len(afters))
            return None
        previous, current = self._unwritten(index, befores[0], "input"), afters[0].value
        return None if previous is None or current is None else (unsharded(previous), unsharded(current))

    def _unwritten(self, index: int, seen: Seen, role: str) -> Tensor | None:
        """What a tensor held when it passed, or ``None`` and a complaint if that is lost."""
        if seen.is_overwritten:
            self._copied.add(index)
        if seen.value is None:
            self._unread[index] = (
                f"has its {role} overwritten in place, by it or by code after it; from the next batch on it is copied"
            )
        return seen.value

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._number = number_of(self)

    def __getstate__(self) -> dict[str, Any]:
        emptied: dict[str, Any] = {"_unread": {}, "_entered": {}, "_inputs": {}, "_handles": []}
        return {**self.__dict__, **emptied, "armed": False, "on_pass": None}


def unreadable(error: Exception) -> str:
    """The complaint if reading a layer raised an error."""
    return f"cannot be read: {str(error).rstrip('.') or repr(error)}"


def several_states(taken: int, returned: int) -> str:
    """The complaint if a layer's state is not certain."""
    return (
        f"takes {taken} and returns {returned} tensors of one shape, and which of them is its state is not known; say "
        '`state`, as in state="hidden" or state="sum"'
    )


def is_recomputing() -> bool:
    """Whether eager code runs inside a backward pass, as with checkpointing."""
    return torch._C._current_graph_task_id() != -1
