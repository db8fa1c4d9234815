"""Which tensor that a block takes and returns is its state, and steps that are not one module."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn

from lightning_leaky.hooks.structures import parts_of, same_shape, tensors_of
from lightning_leaky.utilities.wrappers import unwrapped

StateChoice: TypeAlias = str | int | tuple[str | int, str | int] | Callable[[Any], Tensor] | None
"""An input by name or position, a pair of an input and an output, ``"sum"``, a function of either side, or nothing."""


class StatePlace(NamedTuple):
    """A `StateChoice`, looked up in the signature of one block before any forward pass."""

    inputs: tuple[str | int, ...] = ()
    output: str | int | None = None
    is_sum: bool = False
    function: Callable[[Any], Tensor] | None = None


def state_place(block: nn.Module, state: StateChoice) -> StatePlace:
    """Look a choice up in a block's forward signature; raise ValueError if it is not there."""
    block = unwrapped(block)
    if state is None or state == "sum" or callable(state):
        return StatePlace(is_sum=state == "sum", function=state if callable(state) else None)
    key, output = state if isinstance(state, (tuple, list)) and len(state) == 2 else (state, None)
    try:
        kinds = {name: one.kind for name, one in inspect.signature(block.forward).parameters.items()}
    except ValueError:  # TorchScript keeps no names
        kinds = {"args": inspect.Parameter.VAR_POSITIONAL, "kwargs": inspect.Parameter.VAR_KEYWORD}
    names = [name for name, kind in kinds.items() if kind <= inspect.Parameter.POSITIONAL_OR_KEYWORD]
    if isinstance(key, str) and (key in kinds or inspect.Parameter.VAR_KEYWORD in kinds.values()):
        return StatePlace((key, names.index(key)) if key in names else (key,), output)
    if type(key) is int and key >= 0 and (key < len(names) or inspect.Parameter.VAR_POSITIONAL in kinds.values()):
        return StatePlace((key, *names[key : key + 1]), output)
    raise ValueError(
        "`state` must be an argument that every block takes, by name or position, a pair of an argument and an output, "
        f"or 'sum', got {state!r}; {type(block).__name__} takes {list(kinds)}."
    )


def state_candidates(
    place: StatePlace, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the tensors that may be A_{l−1}, and those that may be A_l: one of each if that is certain.

    They are the different inputs and outputs of one shape, or the first of each if no shape is preserved. Tensors with
    one byte per number, as a float8 cache, are left out.
    """
    arguments: dict[str | int, Any] = dict([*enumerate(args), *kwargs.items()])
    inputs: Any = [arguments[key] for key in place.inputs if key in arguments] if place.inputs else arguments
    outputs = output if place.output is None else _parts(output).get(place.output)
    if place.function is not None:
        inputs, outputs = place.function(tuple(arguments.values())), place.function(output)
    befores, afters = ([one for one in tensors_of(side) if one.dtype.itemsize > 1] for side in (inputs, outputs))
    like = next((after for after in afters if any(same_shape(before, after) for before in befores)), None)
    if like is None:
        return befores[:1], afters[:1]
    befores, kept = ([one for one in side if same_shape(one, like)] for side in (befores, afters))
    if place.is_sum and len(befores) <= len(kept):  # else some input is not passed on: return all
        return [sum(befores[1:], befores[0])], [sum(kept[1:], kept[0])]
    return list(dict.fromkeys(befores)), list(dict.fromkeys(kept))


def certain_choice(
    args: Sequence[Any], kwargs: Mapping[str, Any], output: Any, before: Tensor, after: Tensor
) -> tuple[str | int, str | int] | None:
    """Return the choice of a state for later passes; ``None`` if it is not one whole argument and a part returned."""
    arguments: list[tuple[str | int, Any]] = [*enumerate(args), *kwargs.items()]
    inputs = [key for key, part in arguments if part is before]
    outputs = [key for key, part in _parts(output).items() if part is after]
    return (inputs[0], outputs[0]) if len(inputs) == 1 and outputs else None


def _parts(value: Any) -> dict[str | int, Any]:
    """The parts of a structure by number and by name, if any; another value is its only part."""
    parts = parts_of(value) or {0: value}
    return {**dict(enumerate(parts.values())), **parts}


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
