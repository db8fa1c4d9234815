"""Containers of blocks, and blocks taken out of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightning_leaky.dropping.journal import Journal
from lightning_leaky.utilities.wrappers import place_inside, plain_name

CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)

# What the owner of a list calls its length, and what a block that knows its place calls that: in `layer_idx` a cache of
# Hugging Face looks for the block's keys.
_NUMBER = re.compile("(num_|n_)?(hidden_|encoder_|decoder_)?(layers?|blocks?|depth)")
_PLACES = ("layer_idx", "layer_id", "layer_index", "layer_number", "layer_num", "block_idx", "block_id")


class Stack(NamedTuple):
    """A container, and which of its blocks go."""

    name: str
    container: nn.Module
    ancestors: tuple[nn.Module, ...]
    """Those modules that the container is in, outermost first."""
    gone: dict[str, nn.Module]
    """Those that go, by their keys in the container."""
    size: int
    """How many blocks it holds, before they go."""
    kept: list[int]
    """Numbers of the blocks that stay, from 0."""

    def names(self) -> list[str]:
        """Names of the blocks that go."""
        return [f"{self.name}.{key}".lstrip(".") for key in self.gone]

    @property
    def missing(self) -> tuple[int]:
        """How many blocks go, as an allowance of `difference`."""
        return (self.size - len(self.kept),)

    @property
    def owner(self) -> nn.Module | None:
        """The module that holds the container; ``None`` where the container is the model."""
        return next((one for one in reversed(self.ancestors) if place_inside(one) is None), None)

    def parallels(self) -> list[str]:
        """What else its owner holds that has as many entries, and may run in parallel."""
        if self.owner is None:
            return []
        held = {**vars(self.owner), **self.owner._modules, **self.owner._parameters, **self.owner._buffers}
        kinds = (*CONTAINERS, nn.ParameterList, Tensor, list, tuple)
        return [
            key
            for key, one in held.items()
            if isinstance(one, kinds) and one is not self.container and _length(one) == self.size
        ]

    def take_out(self, journal: Journal) -> None:
        """Take the blocks out, and renumber what stays: keys, what knows its place, their number beside them."""
        modules, kept = self.container._modules, self.kept
        keys = [*modules]
        new_keys = keys[: len(kept)] if _are_numbered(keys) else [keys[old] for old in kept]
        blocks = [modules[keys[old]] for old in kept]
        journal.refill(modules, dict(zip(new_keys, blocks, strict=True)))
        for new, (old, block) in enumerate(zip(kept, blocks, strict=True)):
            for part in block.modules() if block is not None else ():
                for place in _PLACES:
                    if vars(part).get(place) == old:
                        journal.put(vars(part), place, new)
        beside = {} if self.owner is None else vars(self.owner)
        for key in [
            key for key, one in beside.items() if type(one) is int and one == self.size and _NUMBER.fullmatch(key)
        ]:
            journal.put(beside, key, len(kept))


def stacks_of(model: nn.Module, chosen: Mapping[str, nn.Module]) -> list[Stack]:
    """Return the containers of chosen blocks in the order in which they are registered.

    Raises:
        ValueError: If a block is in none, or in several places.
    """
    going = {id(block): name for name, block in chosen.items()}
    gone: dict[nn.Module, dict[str, nn.Module]] = {}
    places: dict[int, list[str]] = {}
    paths = {parent: name for name, parent in model.named_modules()}
    for parent, path in paths.items():
        for key, child in parent._modules.items():
            if child is not None and id(child) in going:
                gone.setdefault(parent, {})[key] = child
                places.setdefault(id(child), []).append(plain_name(f"{path}.{key}".lstrip(".")))
    for parent, blocks in gone.items():
        for key, block in blocks.items():
            name = going[id(block)]
            if len(places[id(block)]) > 1:
                raise refused(
                    name, f"stands in the model more than once, as {places[id(block)]}, with the same weights"
                )
            if not isinstance(parent, CONTAINERS):
                raise refused(
                    name,
                    f"is the attribute {key!r} of {type(parent).__name__}, whose code calls it by this name; only what "
                    "an nn.ModuleList, nn.Sequential or nn.ModuleDict holds can go",
                )
    return [_stack(paths, parent, blocks, going) for parent, blocks in gone.items()]


def refused(names: str | list[str], reason: str) -> ValueError:
    """Return the error that blocks cannot go."""
    return ValueError(f"`layers` must choose blocks that can be dropped, but {names!r} {reason}.")


def _stack(
    modules: Iterable[nn.Module], container: nn.Module, gone: dict[str, nn.Module], names: Mapping[int, str]
) -> Stack:
    around = [one for one in modules if one is not container and any(inner is container for inner in one.modules())]
    kept = [index for index, key in enumerate(container._modules) if key not in gone]
    name = names[id(next(iter(gone.values())))].rpartition(".")[0]
    return Stack(name, container, tuple(around), gone, len(container._modules), kept)


def _length(value: Any) -> int:
    return 0 if isinstance(value, Tensor) and value.ndim == 0 else len(value)


def _are_numbered(keys: list[str]) -> bool:
    """Whether keys are numbers in a row, as those of a list, or end with them, as 'layer_0' and 'layer_1' do."""
    if not keys:
        return False
    found = re.fullmatch(r"(.*?)(\d+)", keys[0])
    return found is not None and all(
        key == f"{found[1]}{number}" for key, number in zip(keys, count(int(found[2])), strict=False)
    )
