"""Containers of blocks that go."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_leaky.hooks.skipped import SkippedBlocks
from lightning_leaky.hooks.state import Span, StateChoice
from lightning_leaky.hooks.structures import all_tensors_of, parts_of, replaced, tensors_of
from lightning_leaky.paths.block_path import flat_stacks
from lightning_leaky.paths.layers import LayerChoice, choose_layers, named_layers
from lightning_leaky.paths.leaky_path import leaky_paths
from lightning_leaky.reading.measure import evaluating, run_model, same_noise
from lightning_leaky.utilities.processes import is_sharded
from lightning_leaky.utilities.wrappers import place_inside, plain_name, unwrapped


class Journal(ExitStack):
    """Undoes changes of dictionaries on exit, unless popped."""

    def refill(self, place: dict[str, Any], content: Mapping[str, Any]) -> None:
        """Replace a dictionary's content and order."""
        self.callback(place.update, dict(place))
        self.callback(place.clear)
        place.clear()
        place.update(content)


class Stack(NamedTuple):
    """A container of `size` blocks, modules around it, blocks that go, and indices of the others."""

    container: nn.Module
    size: int
    around: list[nn.Module]
    gone: dict[str, nn.Module]
    kept: list[int]

    def take_out(self, journal: Journal) -> None:
        """Take blocks out; renumber keys, indices inside blocks, and their number in the owner."""
        keys, blocks = [*self.container._modules], [*self.container._modules.values()]
        first = re.fullmatch(r"(.*?)(\d+)", keys[0])
        if not first or keys != [f"{first[1]}{int(first[2]) + index}" for index in range(len(keys))]:
            keys = [keys[old] for old in self.kept]
        journal.refill(self.container._modules, {keys[new]: blocks[old] for new, old in enumerate(self.kept)})
        for new, old in enumerate(self.kept):
            for part in getattr(blocks[old], "modules", tuple)():  # a place may be empty
                _renumber(part, "(layer|block)_(idx|id|index|number|num)", old, new, journal)
        for owner in self.around[-1:]:
            number = "(num_|n_)?(hidden_|encoder_|decoder_)?(layers?|blocks?|depth)"
            _renumber(owner, number, self.size, len(self.kept), journal)


def stacks_of(model: nn.Module, layers: LayerChoice | Sequence[str]) -> list[Stack]:
    """Return the containers of chosen blocks; ValueError if one clearly cannot go."""
    choices = list(layers) if isinstance(layers, Iterable) and not isinstance(layers, str) else [layers]
    if not choices:
        raise ValueError(f"`layers` must name at least one block, got {layers!r}.")
    matching = {name for one in choices for name in choose_layers(model, one)}
    # A linear map of a plain stack goes with its activation, dropout and norm.
    spans = flat_stacks(model)
    found = choose_layers(model, lambda name, module: name in matching)
    chosen = {name: spans.get(name, block) for name, block in found.items()}
    _check(model, chosen)
    names, places = {id(block): name for name, block in found.items()}, dict[str, str]()
    going = {id(part) for block in chosen.values() for part in (block if isinstance(block, Span) else [block])}
    gone: dict[nn.Module, dict[str, nn.Module]] = {}
    for path, parent in model.named_modules():
        for key, child in parent._modules.items():
            name, place = names.get(id(child)), plain_name(f"{path}.{key}".lstrip("."))
            if name is None:
                continue
            if not isinstance(parent, (nn.ModuleList, nn.Sequential, nn.ModuleDict)):
                owner = type(parent).__name__
                raise refused(name, f"is the attribute {key!r} of {owner}, whose code calls it by this name")
            if name in places:
                raise refused(name, f"stands in the model more than once, as {[places[name], place]}")
            gone.setdefault(parent, {})[name], places[name] = chosen[name], place
    stacks = []
    for container, blocks in gone.items():
        around = [one for one in model.modules() if container in [*one.modules()][1:] and place_inside(one) is None]
        kept = [index for index, one in enumerate(container._modules.values()) if id(one) not in going]
        stacks.append(Stack(container, len(container._modules), around, blocks, kept))
    return stacks


def refused(names: str | list[str], reason: str) -> ValueError:
    """Return the error that blocks cannot go."""
    return ValueError(f"`layers` must choose blocks that can be dropped, but {names!r} {reason}.")


def outputs_of(model: nn.Module, inputs: Any, without: Iterable[Stack] = (), state: StateChoice = None) -> Any:
    """Return a model's outputs in evaluation, from the same random state, without the blocks that go."""
    for tensor in all_tensors_of(inputs):  # the model may overwrite them
        inputs = replaced(inputs, tensor, tensor.clone())
    blocks = {name: block for stack in without for name, block in stack.gone.items()}
    skipping = SkippedBlocks([*blocks.values()], [*blocks], state)
    skipping.skipped = {*range(len(blocks))}
    with skipping, torch.no_grad(), evaluating(model), same_noise(model):
        return run_model(model, inputs)


def difference(expected: Any, found: Any, missing: Collection[int] = ()) -> str | None:
    """Say how outputs differ; tuples of states may lack `missing` entries."""
    if isinstance(expected, Tensor):
        if not isinstance(found, Tensor) or (expected.shape, expected.dtype) != (found.shape, found.dtype):
            return "differ in shape or type"
        if torch.equal(*(one.contiguous().reshape(-1).view(torch.uint8) for one in (expected, found))):
            return None
        return f"differ by up to {(expected.double() - found.double()).abs().max():.2g}"
    parts, others = parts_of(expected), parts_of(found)
    if parts.keys() != others.keys():
        is_by_block = isinstance(expected, (tuple, list)) and len(parts) - len(others) in missing
        return None if is_by_block else "have other parts"
    return next(filter(None, (difference(part, others[key], missing) for key, part in parts.items())), None)


@contextmanager
def witnessed(model: nn.Module, stacks: list[Stack]) -> Iterator[dict[str, str]]:
    """Yield which blocks take more than the state of blocks that go; ValueError if one of these is idle."""
    names = {id(block): name for name, block in named_layers(model).items()}
    going = [name for stack in stacks for name in stack.gone]
    ran, readers = set[str](), dict[str, str]()
    made: dict[int, tuple[str, Tensor]] = {}  # keeps the tensor, so no other gets its id

    def see(block: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        name, taken = names[id(block)], {id(one) for one in tensors_of((args, kwargs))}
        if name in going:
            ran.add(name)
            made.update({id(one): (name, one) for one in tensors_of(output) if id(one) not in taken})
        else:
            readers.update((name, made[one][0]) for one in taken & made.keys())

    with ExitStack() as hooks:
        for block in [block for stack in stacks for block in stack.container.children()]:
            hooks.callback(block.register_forward_hook(see, with_kwargs=True).remove)
        yield readers
    if idle := [name for name in going if name not in ran]:
        raise refused(idle, "do not run with this batch")


def _check(model: nn.Module, chosen: Mapping[str, nn.Module]) -> None:
    # They count parameters or hide what a configuration builds.
    holders = {"DistributedDataParallel", "FullyShardedDataParallel", "BaseTunerLayer"}
    for holder in {cls.__name__ for one in model.modules() for cls in type(one).__mro__} & holders:
        raise refused([*chosen], f"stand in a model with {holder}; drop first, or merge adapters")
    steps = {id(unwrapped(step)) for path in leaky_paths(model).values() for step in path.layers}
    going = {id(part) for block in chosen.values() for part in block.modules()}
    staying = {
        id(parameter): plain_name(key)
        for name, module in model.named_modules()
        if id(module) not in going
        for key, parameter in module.named_parameters(name, recurse=False)
    }
    for name, block in chosen.items():
        if id(unwrapped(block)) in steps:
            raise refused(name, "is a leaky step, and the step-sizes of all steps sum to 1; try `unmake_leaky`")
        for key, parameter in block.named_parameters():
            if is_sharded(parameter):
                raise refused(name, "is sharded over processes; drop first")
            if other := staying.get(id(parameter)):
                raise refused(name, f"shares its {plain_name(key)!r} with {other!r}, which stays; untie them first")


def _renumber(module: nn.Module, pattern: str, old: int, new: int, journal: Journal) -> None:
    values = vars(module)
    keys = [key for key, one in values.items() if type(one) is int and one == old and re.fullmatch(pattern, key)]
    if keys:
        journal.refill(values, {**values, **dict.fromkeys(keys, new)})
