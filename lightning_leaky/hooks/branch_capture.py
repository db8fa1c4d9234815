"""The states inside blocks, found while a batch passes: where the output of a module was added to the state before."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_leaky.hooks.capture import PathCapture
from lightning_leaky.hooks.layer_hooks import is_recomputing
from lightning_leaky.hooks.seen import Seen
from lightning_leaky.hooks.state import StateChoice, state_candidates
from lightning_leaky.hooks.steps import Step, taken
from lightning_leaky.hooks.structures import shape_of, tensors_of, without_nesting
from lightning_leaky.utilities.wrappers import unwrapped

_MOST_ROWS = 64
_FEWEST_ROWS = 8


class _Event(NamedTuple):
    """A module in a block takes or returns a tensor: the tensor, as it was, where it lies, and some of its rows."""

    tap: int
    is_taken: bool
    tensor: Tensor
    seen: Seen
    identity: tuple[Any, ...]
    rows: Tensor


def taps_of(block: nn.Module) -> list[Step]:
    """Return where a state may be met in a block: what each of its modules takes, as steps that go nowhere."""
    inner = unwrapped(block)
    return [Step(block, part, part) for part in inner.modules() if part is not inner]


class BranchCapture(PathCapture):
    """A capture of blocks that finds, in eager code, the states inside each, and keeps what passes there too.

    What the modules of a block take and return is held while the block runs. Once it is left, numbers tell its states:
    a state is what a module takes, or the block returns, and is the state before plus what a module has returned since.
    Where the chain breaks there, as between post-norm branches, it is what the module returns that takes the sum.

    Args:
        layers: Taps (`taps_of`) of all blocks, then the blocks.
        gradients: As of `PathCapture`, like what follows.
        counts_all: As there.
        model: As there.
        state: As there.

    Attributes:
        found: For each block, by its index, the taps at which its states are taken; with each, the tap of the module
            that the step from there is named after.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        gradients: bool = False,
        counts_all: bool = False,
        model: nn.Module | None = None,
        state: StateChoice = None,
    ) -> None:
        self.found: dict[int, list[tuple[int, int]]] = {}
        self._events: dict[int, list[_Event]] = {}
        self._index_of = {id(layer): index for index, layer in enumerate(layers)}
        super().__init__(layers, gradients, counts_all, model, state)

    def clear(self) -> None:
        """Forget every tensor."""
        super().clear()
        self._events.clear()

    def _hooks_on(self, index: int, layer: nn.Module) -> list[RemovableHandle]:
        if not isinstance(layer, Step):
            return super()._hooks_on(index, layer)
        part, note = layer.first, partial(self._note, self._index_of[id(layer.block)], index)
        before = part.register_forward_pre_hook(partial(note, True), with_kwargs=True)
        return [before, part.register_forward_hook(partial(note, False))]

    def _note(self, block: int, tap: int, is_taken: bool, module: nn.Module, args: tuple[Any, ...], other: Any) -> None:
        """Meet what a module takes, by position and (`other`) by keyword, or what it returns (`other`)."""
        if torch.compiler.is_compiling() or not self.armed:
            return
        with suppress(Exception):  # what cannot be told is no state
            tensors = taken(args, other) if is_taken else tensors_of(other)
            if is_recomputing() and is_taken and any(tap == entry for entry, _ in self.found.get(block, ())):
                self._observe_again(tap, tensors[0], tensors[0])
            shapes = {shape_of(one) for one, _ in self._entered[block]}
            like = next((one for one in tensors if shape_of(one) in shapes), tensors[0])
            self._events[block].append(_event(tap, is_taken, like))

    def _enter(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super()._enter(index, module, args, kwargs)
        if not torch.compiler.is_compiling() and index in self._entered:
            self._events[index] = []

    def _leave(
        self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any = None
    ) -> None:
        if not torch.compiler.is_compiling() and index in self._events:
            with suppress(Exception):  # `found` lacks the block
                events = self._events.pop(index)
                if index not in self.found:
                    self._look_inside(index, events, *state_candidates(self._places[index], args, kwargs, output))
                for entry, _ in self.found.get(index, ()):
                    event = next(one for one in events if one.tap == entry and one.is_taken)
                    self._observe(entry, [event.seen], [event.seen], [event.tensor])
        super()._leave(index, module, args, kwargs, output)

    def _look_inside(self, index: int, events: list[_Event], befores: list[Tensor], afters: list[Tensor]) -> None:
        """Find the states of a block, from one that it has taken to one that it returns."""
        starts = [seen.identity for one, seen in self._entered[index] if any(one is before for before in befores)]
        for start, end in itertools.product(starts, [_event(index, True, after) for after in afters]):
            entries = _entries([*events, end], start, 0)
            if entries:
                stops = [*entries[1:], len(events)]
                parts = [events[one:stop] for one, stop in zip(entries, stops, strict=True)]
                self.found[index] = [(part[0].tap, self._largest(part)) for part in parts]
                return

    def _largest(self, events: Sequence[_Event]) -> int:
        """The tap of the module with the most parameters, of those that run as a whole in a step; the outer of two."""
        returned = {one.tap for one in events if not one.is_taken}
        whole = [one.tap for one in events if one.is_taken and one.tap in returned] or [events[0].tap]
        parts: dict[int, Any] = {tap: self.layers[tap].first for tap in whole}
        return max(parts, key=lambda tap: sum(one.numel() for one in parts[tap].parameters()))

    def _observe_compiled(self, index: int, previous: Tensor, current: Tensor) -> None:
        """Keep nothing: compiled code does not show its states."""

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_events": {}}


def _event(tap: int, is_taken: bool, tensor: Tensor) -> _Event:
    seen, dense = (
        Seen(tensor, copies=is_taken),
        without_nesting(tensor.detach())[0] if tensor.is_nested else tensor.detach(),
    )
    rows = dense.reshape(-1, dense.shape[-1])
    return _Event(tap, is_taken, tensor, seen, seen.identity, rows[:: -(-len(rows) // _MOST_ROWS)].clone())


def _entries(events: Sequence[_Event], state: tuple[Any, ...], start: int) -> list[int]:
    """Which events take the states of a block, from one state on to the last event; none where no way leads there."""
    calls = [one.tap for one in events if one.is_taken]
    takes = (index for index, one in enumerate(events) if index >= start and one.is_taken and one.identity == state)
    entry = next((index for index in takes if calls.count(events[index].tap) == 1), len(events))
    returned, met, last = list[_Event](), {state}, events[-1]
    for index, one in enumerate(events[entry:], start=entry):
        if not one.is_taken:
            returned.append(one)
        elif one.identity not in met and any(_adds(events[entry], branch, one) for branch in returned):
            results = (after for after in events[index:] if after.tap == one.tap and not after.is_taken)
            for following in (one, next(results, one)):
                rest = [] if following.identity == last.identity else _entries(events, following.identity, index)
                if rest or following.identity == last.identity:
                    return [entry, *rest]
        if one.is_taken:
            met.add(one.identity)
    return []


def _adds(before: _Event, branch: _Event, after: _Event) -> bool:
    """Whether a state is the one before plus a module's output, times a number for each channel, where not dropped."""
    given = (before.rows, branch.rows, after.rows)
    if len({shape_of(one.tensor) for one in (before, branch, after)}) > 1:
        return False
    if torch.equal((before.rows + branch.rows).to(after.rows.dtype), after.rows):
        return True
    old, added, new = (one.to(torch.promote_types(one.dtype, torch.float32)) for one in given)
    kept, eps = new != old, max(torch.finfo(one.dtype).eps for one in given)
    scale = ((new - old) * added).sum(0) / (added.square() * kept).sum(0)
    error = float(((old + scale.nan_to_num(0.0, 0.0, 0.0) * added - new) * kept).norm())
    most = min(4 * eps * float(old.norm() + new.norm()), 0.05 * float((new - old).norm()))
    return len(new) >= _FEWEST_ROWS and error <= most and most > 0
