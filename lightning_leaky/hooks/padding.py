"""Padding masks that layers and the modules around them are given."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightning_leaky.utilities.wrappers import unwrapped

# Arguments that tell padding; true if they mark the padding.
_MARKS_PADDING = {
    "attention_mask": False,
    "src_key_padding_mask": True,
    "tgt_key_padding_mask": True,
    "key_padding_mask": True,
}


class GivenMask(NamedTuple):
    """A mask in force while a layer runs, its argument, and the place of its receiver in the layer's way."""

    mask: Tensor
    argument: str
    place: int


class Receiver:
    """A module that may be given a padding mask, its mask while it runs, and the receivers inside it."""

    def __init__(self, module: nn.Module, arguments: dict[str, int | None]) -> None:
        self.module, self.arguments = module, arguments
        self.inside: list[Receiver] = []
        self.mask: Tensor | None = None
        self.argument, self.was_given = "", False

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take the mask before the module runs."""
        for name, position in self.arguments.items():
            value = args[position] if position is not None and position < len(args) else kwargs.get(name)
            if isinstance(value, Tensor):
                self.mask, self.argument, self.was_given = value, name, True
                return

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Drop the mask."""
        self.mask = None


class PaddingWatch:
    """Watches padding masks in a forward pass.

    A layer's mask is its own argument or else that of the nearest module around it. A mask that was passed to other
    modules, but not towards the layer, is theirs: with two towers the mask of the texts says nothing of the patches.

    Attributes:
        receivers: All that may be given a mask.
        ways: For each layer, itself and the modules around it, the nearest first, that may be given its mask.
    """

    def __init__(self, model: nn.Module | None, layers: Sequence[nn.Module]) -> None:
        name_of = {} if model is None else {module: name for name, module in model.named_modules()}
        ways = [_way(model, name_of.get(layer), layer) for layer in layers]
        around = dict.fromkeys(module for way in ways for module in way)
        inside = {module for layer in layers for module in layer.modules()}
        receivers = {module: Receiver(module, names) for module in around if (names := _arguments(module))}
        for module in name_of:
            names = {} if module in around or module in inside else _arguments(module)
            if any(position is not None for position in names.values()):  # a named argument for padding
                receivers[module] = Receiver(module, names)
        for module, receiver in receivers.items():
            receiver.inside = [receivers[one] for one in module.modules() if one in receivers and one is not module]
        self.ways = [[receivers[module] for module in way if module in receivers] for way in ways]
        self.receivers = list(receivers.values())

    def clear(self) -> None:
        """Drop every mask, and who was given one."""
        for one in self.receivers:
            one.mask, one.was_given = None, False

    def given(self, index: int) -> GivenMask | None:
        """Return the mask in force for a layer while it runs."""
        for place, one in enumerate(self.ways[index]):
            if one.mask is not None and one.mask.ndim <= 2:
                # A layer's own mask of tokens × tokens does not tell padding.
                is_own = place == 0 and one.argument == "attention_mask"
                if not (is_own and one.mask.shape[0] == one.mask.shape[-1]):
                    return GivenMask(one.mask, one.argument, place)
        return None

    def real(self, index: int, given: GivenMask | None) -> Tensor | None:
        """Return which positions are real, shape (batch, tokens); ``None`` if the layer has no mask."""
        if given is None or self.is_of_others(index, given):
            return None
        # In masks that torch has made additive, −inf is padding.
        return given.mask == 0 if _MARKS_PADDING[given.argument] else given.mask != 0

    def is_of_others(self, index: int, given: GivenMask) -> bool:
        """Whether a mask was passed to modules that do not hold the layer, and to none that does."""
        *nearer, receiver = self.ways[index][: given.place + 1]
        return not any(one.was_given for one in nearer) and any(one.was_given for one in receiver.inside)


def _way(model: nn.Module | None, name: str | None, layer: nn.Module) -> list[nn.Module]:
    if model is None or name is None:
        return [layer]
    parts = name.split(".")
    return [layer, *(model.get_submodule(".".join(parts[:end])) for end in range(len(parts) - 1, -1, -1))]


def _arguments(module: nn.Module) -> dict[str, int | None]:
    """Arguments that may tell padding, and their positions; all of them if the module takes any keyword."""
    try:
        parameters = inspect.signature(unwrapped(module).forward).parameters
    except ValueError:  # TorchScript keeps no names
        return {}
    positions = {name: place for place, name in enumerate(parameters)}
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    return {name: positions.get(name) for name in _MARKS_PADDING if takes_any or name in positions}
