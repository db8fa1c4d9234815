"""Which positions are padding, by the masks that layers and the modules around them are given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

# Arguments that tell padding, and whether they mark the padding or what is real.
_MARKS_PADDING = {
    "attention_mask": False,
    "src_key_padding_mask": True,
    "tgt_key_padding_mask": True,
    "key_padding_mask": True,
}


class GivenMask(NamedTuple):
    """A mask that is in force while a layer runs, the argument that it came by, and who was given it."""

    mask: Tensor
    argument: str
    receiver: int


class PaddingWatch:
    """Watches the padding masks that layers, and the modules around them, are given in a forward pass.

    The mask of a layer is its own argument or, if it is given none, that of the nearest module around it. A mask that
    was handed on to other modules, and not towards the layer, is theirs: with two towers the mask of the texts says
    nothing about the patches.

    Args:
        model: What contains the layers; ``None`` watches the layers alone.
        layers: The layers of a path.
    """

    def __init__(self, model: nn.Module | None, layers: Sequence[nn.Module]) -> None:
        name_of = {} if model is None else {module: name for name, module in model.named_modules()}
        ways = [_way(model, name_of.get(layer), layer) for layer in layers]
        around = [module for module in dict.fromkeys(module for way in ways for module in way) if _arguments(module)]
        inside = {module for layer in layers for module in layer.modules()}
        others = [module for module in name_of if module not in around and module not in inside and _names_mask(module)]
        self.receivers = [*around, *others]
        number_of = {module: number for number, module in enumerate(self.receivers)}
        self._ways = [[number_of[module] for module in way if module in number_of] for way in ways]
        self._inner = [[number_of[one] for one in module.modules() if one in number_of] for module in around]
        self._handles: list[RemovableHandle] = []
        self.clear()

    def attach(self, attach_layers: Callable[[], None]) -> None:
        """Register the hooks, and between those before and those after a module the hooks of the layers."""
        for number, module in enumerate(self.receivers):
            enter = partial(self._enter, number, _arguments(module))
            self._handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        attach_layers()
        for number, module in enumerate(self.receivers):
            self._handles.append(module.register_forward_hook(partial(self._leave, number)))

    def detach(self) -> None:
        """Remove the hooks, and forget every mask."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.clear()

    def clear(self) -> None:
        """Forget every mask."""
        self._given: list[GivenMask | None] = [None] * len(self.receivers)
        self._was_given = [False] * len(self.receivers)

    def given(self, index: int) -> GivenMask | None:
        """Return the mask that is in force for a layer, while it runs."""
        masks = [self._given[number] for number in self._ways[index]]
        return next((given for given in masks if given is not None and self._tells_padding(index, given)), None)

    def _tells_padding(self, index: int, given: GivenMask) -> bool:
        """Whether a mask is of samples; one of tokens by tokens says who may look at whom."""
        is_own = self._ways[index][0] == given.receiver and given.argument == "attention_mask"
        return given.mask.ndim <= 2 and not (is_own and given.mask.shape[0] == given.mask.shape[-1])

    def adopt(self, other: PaddingWatch) -> None:
        """Know which modules another watch has seen to be given a mask."""
        seen = {module for module, was_given in zip(other.receivers, other._was_given, strict=True) if was_given}
        self._was_given = [module in seen for module in self.receivers]

    def known(self, given: GivenMask | None, other: PaddingWatch) -> GivenMask | None:
        """Return a mask of another watch as one of this."""
        return None if given is None else given._replace(receiver=self.receivers.index(other.receivers[given.receiver]))

    def real(self, index: int, given: GivenMask | None) -> Tensor | None:
        """Return which positions of a layer are real, shape (batch, tokens); ``None`` where no mask is the layer's."""
        if given is None or self.is_of_others(index, given):
            return None
        # −inf, once torch has made a mask additive, is padding too.
        return given.mask == 0 if _MARKS_PADDING[given.argument] else given.mask != 0

    def is_of_others(self, index: int, given: GivenMask) -> bool:
        """Whether a mask was handed on to modules that do not hold the layer, and to none that does."""
        way = self._ways[index]
        nearer = way[: way.index(given.receiver)]
        if any(self._was_given[number] for number in nearer) or given.receiver >= len(self._inner):
            return False
        aside = set(self._inner[given.receiver]) - set(way)
        return any(self._was_given[number] for number in aside)

    def _enter(
        self,
        number: int,
        arguments: Mapping[str, int | None],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        for name, position in arguments.items():
            value = args[position] if position is not None and position < len(args) else kwargs.get(name)
            if isinstance(value, Tensor):
                self._given[number] = GivenMask(value, name, number)
                self._was_given[number] = True
                return

    def _leave(self, number: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._given[number] = None

    def __getstate__(self) -> dict[str, Any]:
        nothing = {"_given": [None] * len(self.receivers), "_was_given": [False] * len(self.receivers)}
        return {**self.__dict__, **nothing, "_handles": []}


def _way(model: nn.Module | None, name: str | None, layer: nn.Module) -> list[nn.Module]:
    """A layer, and the modules around it from the nearest to the model."""
    if model is None or name is None:
        return [layer]
    parts = name.split(".")
    return [layer, *(model.get_submodule(".".join(parts[:end])) for end in range(len(parts) - 1, -1, -1))]


def _arguments(module: nn.Module) -> dict[str, int | None]:
    """Arguments of a module that may tell padding, and their positions; all of them, by keyword, where it takes any."""
    parameters = inspect.signature(module.forward).parameters
    positions = {name: place for place, name in enumerate(parameters)}
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    return {name: positions.get(name) for name in _MARKS_PADDING if takes_any or name in positions}


def _names_mask(module: nn.Module) -> bool:
    """Whether a module has an argument of its own for padding."""
    return bool(set(_MARKS_PADDING) & set(inspect.signature(module.forward).parameters))
