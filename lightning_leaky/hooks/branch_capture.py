"""Finds the states inside blocks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_leaky.hooks.capture import PathCapture
from lightning_leaky.hooks.layer_hooks import is_recomputing
from lightning_leaky.hooks.state import Step, named_after, state_candidates, taken
from lightning_leaky.hooks.structures import Seen, shape_of, tensors_of, without_nesting

_FEWEST_ROWS, _MOST_ROWS = 8, 64


class _Event(Seen):
    """A tensor that a module in a block takes or returns, or the block returns, and some of its rows."""

    def __init__(self, tap: int, is_taken: bool, tensor: Tensor) -> None:
        super().__init__(tensor, copies=is_taken)
        self.tap, self.is_taken = tap, is_taken
        dense = without_nesting(self.tensor)[0] if tensor.is_nested else self.tensor
        rows = dense.reshape(-1, dense.shape[-1])
        self.rows = rows[:: -(-len(rows) // _MOST_ROWS)].clone()


class BranchCapture(PathCapture):
    """A capture of blocks that, in eager code, also finds the states inside each and keeps what passes there.

    It compares numbers once a block has run. A module takes a state, or the block returns it, and it is the state
    before plus what a module has returned since. If the chain breaks there, as between post-norm branches, the state
    is what the module returns that takes the sum.

    Its layers are taps, one per module in a block, then the blocks. A tap is a step from a module to itself.
    """

    def __init__(self, layers: Sequence[nn.Module], *settings: Any, **more: Any) -> None:
        # Per block, the taps that take its states, in order, each with the tap that names its step.
        self.found: dict[int, dict[int, int]] = {}
        super().__init__(layers, *settings, **more)

    def _hooks_on(self, index: int, layer: nn.Module) -> list[RemovableHandle]:
        if not isinstance(layer, Step):
            return super()._hooks_on(index, layer)
        note = partial(self._note, self.layers.index(layer.block), index)
        before = layer.first.register_forward_pre_hook(partial(note, True), with_kwargs=True)
        return [before, layer.first.register_forward_hook(partial(note, False))]

    def _note(self, block: int, tap: int, is_taken: bool, module: nn.Module, args: tuple[Any, ...], other: Any) -> None:
        """Record what a module takes (`args` and keywords `other`), or returns (`other`)."""
        if torch.compiler.is_compiling() or not self.armed:
            return
        with suppress(Exception):  # what fails is not a state
            tensors = taken(args, other) if is_taken else tensors_of(other)
            if is_recomputing() and is_taken and tap in self.found.get(block, ()):
                self._observe_again(tap, tensors[0], tensors[0])
            passed = self._entered[block]  # the block's inputs, then events
            shapes = {shape_of(one) for one, seen in passed if not isinstance(seen, _Event)}
            like = next((one for one in tensors if shape_of(one) in shapes), tensors[0])
            passed.append((like, _Event(tap, is_taken, like)))

    def _leave_eagerly(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        with suppress(Exception):  # then `found` lacks the block
            passed = [(one, seen) for one, seen in self._entered[index] if isinstance(seen, _Event)]
            if index not in self.found:
                events = [event for _, event in passed]
                self._look_inside(index, events, *state_candidates(self._places[index], args, kwargs, output))
            for entry in self.found.get(index, ()):
                state, event = next((one, event) for one, event in passed if event.tap == entry and event.is_taken)
                self._observe(entry, [event], [event], [state])
        super()._leave_eagerly(index, args, kwargs, output)

    def _look_inside(self, index: int, events: list[_Event], befores: list[Tensor], afters: list[Tensor]) -> None:
        starts = [next(seen for one, seen in self._entered[index] if one is before) for before in befores]
        for start, after in itertools.product(starts, afters):
            entries = _entries([*events, _Event(index, True, after)], start.identity)
            if entries:
                bounds = itertools.pairwise([*entries, len(events)])
                self.found[index] = {events[one].tap: self._largest(events[one:stop]) for one, stop in bounds}
                return

    def _largest(self, events: Sequence[_Event]) -> int:
        """The tap of the module with the most parameters, the outer one if equal, of those that run whole in a step."""
        returned = {one.tap for one in events if not one.is_taken}
        whole = [one.tap for one in events if one.is_taken and one.tap in returned] or [events[0].tap]
        return max(whole, key=lambda tap: sum(one.numel() for one in named_after(self.layers[tap]).parameters()))

    def _observe_compiled(self, index: int, previous: Tensor, current: Tensor) -> None:
        """Keep nothing, because compiled code hides its states."""


def _entries(events: Sequence[_Event], state: tuple[Any, ...], start: int = 0) -> list[int]:
    """Which events take the states of a block, from one state to the last event; none if no chain leads there."""
    calls = [one.tap for one in events if one.is_taken]  # a tap that runs twice is ambiguous
    takes = (index for index, one in enumerate(events) if index >= start and one.is_taken and one.identity == state)
    entry = next((index for index in takes if calls.count(events[index].tap) == 1), len(events))
    for index, after in enumerate(events[entry:], start=entry):
        passed = events[entry:index]
        is_new = after.is_taken and all(one.identity != after.identity for one in passed if one.is_taken)
        if is_new and any(_adds(events[entry], branch, after) for branch in passed if not branch.is_taken):
            results = (one for one in events[index:] if one.tap == after.tap and not one.is_taken)
            for following in (after, next(results, after)):
                is_last = following.identity == events[-1].identity
                rest = [] if is_last else _entries(events, following.identity, index)
                if is_last or rest:
                    return [entry, *rest]
    return []


def _adds(before: _Event, branch: _Event, after: _Event) -> bool:
    """Whether a state is the one before plus a module's output, scaled per channel, except dropped entries."""
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
