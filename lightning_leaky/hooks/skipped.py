"""Blocks, or steps inside them, that are skipped."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_leaky.hooks.compiled import eagerly
from lightning_leaky.hooks.layer_hooks import several_states
from lightning_leaky.hooks.state import StateChoice, Step, ends_of, place_in, state_candidates, taken
from lightning_leaky.hooks.structures import replaced, same_shape, tensors_of


class SkippedBlocks:
    """Owns hooks that replace a block's output by the state that it was given.

    A skipped block still runs, because it may return more than its state.

    Args:
        numbers: As `PathCapture.numbers` of each block.

    Attributes:
        skipped: Indices of the blocks to skip; may change between forward passes.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        names: Sequence[str],
        state: StateChoice = None,
        numbers: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.blocks, self.names, self._numbers = list(blocks), list(names), list(numbers)
        self.skipped: set[int] = set()
        self._places = [place_in(block, state) for block in self.blocks]
        self._inputs: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self._handles: list[RemovableHandle] = []
        self._open = ExitStack()

    def __enter__(self) -> SkippedBlocks:
        """Register the hooks."""
        for index, block in enumerate(self.blocks):
            first, last, ends_before = ends_of(block)
            enter, leave = partial(self._enter, index), partial(self._leave, index)
            self._handles.append(first.register_forward_pre_hook(enter, with_kwargs=True))
            if ends_before:
                self._handles.append(last.register_forward_pre_hook(partial(self._undo, index), with_kwargs=True))
            else:
                self._handles.append(last.register_forward_hook(leave))
        self._open.enter_context(eagerly())
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the hooks."""
        self._open.close()
        while self._handles:
            self._handles.pop().remove()
        self._inputs.clear()

    def _enter(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if index in self.skipped:
            inputs: Any = (tuple(taken(args, kwargs)), {}) if isinstance(self.blocks[index], Step) else (args, kwargs)
            for tensor in tensors_of(inputs):  # the block may overwrite what it takes
                inputs = replaced(inputs, tensor, tensor.clone())
            self._inputs[index] = inputs

    @torch.no_grad()
    def _undo(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Overwrite the state between two steps in place, because the block's code adds to this tensor later."""
        if index not in self.skipped:
            return
        inputs, _ = self._inputs.pop(index, ((), {}))
        befores, afters = list(inputs), taken(args, kwargs)
        if not befores or not afters or not same_shape(befores[0], afters[0]):
            raise self._refusal(index, befores, afters)
        afters[0].copy_(befores[0])

    def _leave(self, index: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if index not in self.skipped:
            return None
        place, inputs = self._places[index], self._inputs.pop(index)
        if place.is_sum:
            befores, afters = state_candidates(place._replace(is_sum=False), *inputs, output)
            if len(befores) == len(afters):
                return _all_replaced(output, afters, befores)
        befores, afters = state_candidates(place, *inputs, output)
        if self._numbers and befores and afters:
            number, other = self._numbers[index]
            befores, afters = befores[number : number + 1], afters[other : other + 1]
        if len(befores) != 1 or len(afters) != 1 or not same_shape(befores[0], afters[0]):
            raise self._refusal(index, befores, afters)
        (before,), (after,) = befores, afters
        if not place.is_sum:
            return replaced(output, after, before.to(after.dtype))
        first = state_candidates(place._replace(is_sum=False), *inputs, output)[1][0]
        return replaced(output, first, first + (before - after).to(first.dtype))

    def _refusal(self, index: int, befores: list[Tensor], afters: list[Tensor]) -> ValueError:
        return ValueError(f"layer {self.names[index]!r} cannot be left out: it {_reason(befores, afters)}.")


def _all_replaced(value: Any, olds: list[Tensor], news: list[Tensor]) -> Any:
    for old, new in zip(olds, news, strict=True):
        value = replaced(value, old, new.to(old.dtype))
    return value


def _reason(befores: list[Tensor], afters: list[Tensor]) -> str:
    if len(befores) > 1 or len(afters) > 1:
        return several_states(len(befores), len(afters))
    shapes = " to ".join(str(tuple(one.shape)) for one in [*befores, *afters])
    return f"maps {shapes or 'no tensor'}, and another takes what it returns"
