"""Which positions are padding, by the masks that layers and the modules around them are given."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightning_leaky.utilities.wrappers import unwrapped

# Arguments that tell padding, and whether they mark the padding or what is real.
_MARKS_PADDING = {
    "attention_mask": False,
    "src_key_padding_mask": True,
    "tgt_key_padding_mask": True,
    "key_padding_mask": True,
}


class GivenMask(NamedTuple):
    """A mask that is in force while a layer runs, the argument that it came by, and who on its way was given it."""

    mask: Tensor
    argument: str
    place: int


class Receiver:
    """A module that may be given a padding mask, the one that it has while it runs, and the receivers inside it."""

    def __init__(self, module: nn.Module, arguments: dict[str, int | None]) -> None:
        self.module, self.arguments = module, arguments
        self.inside: list[Receiver] = []
        self.mask: Tensor | None = None
        self.argument, self.was_given = "", False

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take the mask that the module is given, before it runs."""
        for name, position in self.arguments.items():
            value = args[position] if position is not None and position < len(args) else kwargs.get(name)
            if isinstance(value, Tensor):
                self.mask, self.argument, self.was_given = value, name, True
                return

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forget the mask, after it has run."""
        self.mask = None


class PaddingWatch:
    """Watches the padding masks that layers, and the modules around them, are given in a forward pass.

    The mask of a layer is its own argument or, if it is given none, that of the nearest module around it. A mask that
    was handed on to other modules, and not towards the layer, is theirs: with two towers the mask of the texts says
    nothing about the patches.

    Args:
        model: What contains the layers; ``None`` watches the layers alone.
        layers: The layers of a path.

    Attributes:
        receivers: All who may be given a mask; hooks lead to them.
        ways: For each layer, who may be given its mask: itself, then the modules around it, the nearest first.
    """

    def __init__(self, model: nn.Module | None, layers: Sequence[nn.Module]) -> None:
        name_of = {} if model is None else {module: name for name, module in model.named_modules()}
        ways = [_way(model, name_of.get(layer), layer) for layer in layers]
        around = dict.fromkeys(module for way in ways for module in way)
        inside = {module for layer in layers for module in layer.modules()}
        receivers = {module: Receiver(module, names) for module in around if (names := _arguments(module))}
        for module in name_of:
            names = {} if module in around or module in inside else _arguments(module)
            if any(position is not None for position in names.values()):  # an argument of its own for padding
                receivers[module] = Receiver(module, names)
        for module, receiver in receivers.items():
            receiver.inside = [receivers[one] for one in module.modules() if one in receivers and one is not module]
        self.ways = [[receivers[module] for module in way if module in receivers] for way in ways]
        self.receivers = list(receivers.values())

    def clear(self) -> None:
        """Forget every mask, and who was given one."""
        for one in self.receivers:
            one.mask, one.was_given = None, False

    def given(self, index: int) -> GivenMask | None:
        """Return the mask that is in force for a layer, while it runs."""
        for place, one in enumerate(self.ways[index]):
            if one.mask is not None and one.mask.ndim <= 2:
                # Of tokens by tokens, a mask of one's own says who may look at whom.
                is_own = place == 0 and one.argument == "attention_mask"
                if not (is_own and one.mask.shape[0] == one.mask.shape[-1]):
                    return GivenMask(one.mask, one.argument, place)
        return None

    def real(self, index: int, given: GivenMask | None) -> Tensor | None:
        """Return which positions of a layer are real, shape (batch, tokens); ``None`` where no mask is the layer's."""
        if given is None or self.is_of_others(index, given):
            return None
        # −inf, once torch has made a mask additive, is padding too.
        return given.mask == 0 if _MARKS_PADDING[given.argument] else given.mask != 0

    def is_of_others(self, index: int, given: GivenMask) -> bool:
        """Whether a mask was handed on to modules that do not hold the layer, and to none that does."""
        *nearer, receiver = self.ways[index][: given.place + 1]
        return not any(one.was_given for one in nearer) and any(one.was_given for one in receiver.inside)


def _way(model: nn.Module | None, name: str | None, layer: nn.Module) -> list[nn.Module]:
    """A layer, and the modules around it from the nearest to the model."""
    if model is None or name is None:
        return [layer]
    parts = name.split(".")
    return [layer, *(model.get_submodule(".".join(parts[:end])) for end in range(len(parts) - 1, -1, -1))]


def _arguments(module: nn.Module) -> dict[str, int | None]:
    """Arguments of a module that may tell padding, and their positions; all of them, by keyword, where it takes any."""
    parameters = inspect.signature(unwrapped(module).forward).parameters
    positions = {name: place for place, name in enumerate(parameters)}
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    return {name: positions.get(name) for name in _MARKS_PADDING if takes_any or name in positions}
