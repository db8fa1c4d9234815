"""Layers that are not one module: several in a row, or a step inside a block."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lightning_leaky.hooks.state import StateChoice, StatePlace, state_place
from lightning_leaky.hooks.structures import tensors_of


class Span(nn.Sequential):
    """Modules that a model calls one after another, read as one layer; never called itself."""


class Step(nn.Module):
    """One step of a block, read as one layer, from one state to the next; never called itself.

    Args:
        block: The block; its parameters are those of the step.
        first: The module that takes A_{l−1}, as its first floating-point tensor.
        then: The module that takes A_l; ``None`` if the block returns A_l.
        named: The module that names the step; `first` by default.
    """

    def __init__(
        self, block: nn.Module, first: nn.Module, then: nn.Module | None = None, named: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.block, self.first, self.then = block, first, then
        self.named = first if named is None else named  # an empty nn.Sequential is false


def ends_of(layer: nn.Module) -> tuple[nn.Module, nn.Module, bool]:
    """Return the first and last module of a layer, and whether it ends before the last one runs."""
    if isinstance(layer, Step):
        return layer.first, layer.block if layer.then is None else layer.then, layer.then is not None
    return (layer[0], layer[-1], False) if isinstance(layer, Span) else (layer, layer, False)


def block_of(layer: nn.Module) -> nn.Module:
    """Return the block of a step, or the layer itself."""
    return layer.block if isinstance(layer, Step) else layer


def named_after(layer: nn.Module) -> nn.Module:
    """Return the module that names a layer."""
    return layer.named if isinstance(layer, Step) else ends_of(layer)[0]


def taken(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the state that a module takes, or nothing if it takes no tensor."""
    return tensors_of((args, kwargs))[:1]


def place_in(layer: nn.Module, state: StateChoice) -> StatePlace:
    """Return the `state_place` of a layer; a step uses only its output, and refuses ``"sum"`` and functions."""
    if not isinstance(layer, Step):
        return state_place(layer, state)
    if state == "sum" or callable(state):
        raise ValueError(
            "`state` must be an argument of the blocks, or a pair of an argument and an output, where `branches` are "
            f"read, got {state!r}; leave one of them out."
        )
    return StatePlace(output=state_place(layer.block, state).output if layer.then is None else None)
