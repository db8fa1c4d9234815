"""Models rebuilt from their settings."""

from __future__ import annotations

import copy
import io
import re
from argparse import Namespace
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import nn

from lightning_leaky.dropping.stacks import Journal, Stack, difference, outputs_of
from lightning_leaky.utilities.wrappers import plain_name


class Origin(NamedTuple):
    """A module inside a model, and the `key` of its settings."""

    model: nn.Module
    inputs: Any
    module: nn.Module
    key: str

    def twin(self, settings: Any, expected: Any, missing: Collection[int] = ()) -> nn.Module | None:
        """Rebuild the module, and return it if the model then returns what is expected."""
        with suppress(Exception), Journal() as swapped:  # of any constructor
            with torch.random.fork_rng([]):
                twin = _BUILDERS[self.key](self.module, copy.deepcopy(settings))
            swapped.refill(vars(self.module), vars(twin))
            if difference(expected, outputs_of(self.model, self.inputs), missing) is None:
                return twin
        return None

    def mend(self, stack: Stack, expected: Any, journal: Journal) -> bool:
        """Change settings so that the model returns what is expected; return whether that works."""
        settings = getattr(self.module, self.key)
        live, twins = _named(self.module), dict[int, tuple[Any, nn.Module]]()
        for changed in [settings, *mended(settings, stack.size, stack.kept)]:
            twin = self.twin(changed, expected, [len(stack.gone)])
            if twin is not None:
                twins.setdefault(_num_other(live, _named(twin)), (changed, twin))
            if 0 in twins:
                break
        if not twins:
            return False
        changed, twin = twins[min(twins)]
        adopt(settings, changed, journal)
        for name, part in _named(twin).items():  # inner modules may have copies
            adopt(getattr(live.get(name), self.key, None), getattr(part, self.key, None), journal)
        return True


def origins_of(model: nn.Module, inputs: Any, stack: Stack) -> list[Origin]:
    """Return the outermost modules around a stack that each kind of settings rebuilds."""
    expected, found = outputs_of(model, inputs), list[Origin]()
    for key in _BUILDERS:
        for module in [*stack.around, stack.container]:
            origin, settings = Origin(model, inputs, module, key), getattr(module, key, None)
            if settings and origin.twin(settings, expected) is not None:
                found.append(origin)
                break
    return found


def mended(settings: Any, size: int, kept: Sequence[int], name: str = "") -> Iterator[Any]:
    """Yield copies of settings with another number of blocks, or other lists of one value per block."""
    if type(settings) is int and settings == size and re.search("layer|block|depth", name):
        yield len(kept)
    if _is_by_block(settings, size, name):
        yield _cut(settings, kept)
    if type(settings) in (list, tuple):
        for index, part in enumerate(settings):
            for new in mended(part, size, kept, name):
                yield type(settings)([*settings[:index], new, *settings[index + 1 :]])
    fields = fields_of(settings)
    for key, part in fields.items():
        for new in mended(part, size, kept, str(key)):
            is_whole = type(part) is int or (_is_by_block(part, size) and len(new) < size)
            lists = [one for one in fields if is_whole and one != key and _is_by_block(fields[one], size, str(one))]
            for along in dict.fromkeys([tuple(one for one in lists if "layer" in str(one)), tuple(lists)]):
                changed = copy.copy(settings)
                fields_of(changed).update({key: new, **{one: _cut(fields[one], kept) for one in along}})
                yield changed


def adopt(live: Any, new: Any, journal: Journal) -> None:
    """Write numbers and lists of new settings into live ones."""
    place = fields_of(live)
    for key, value in fields_of(new).items():
        if fields_of(value):
            adopt(place.get(key), value, journal)
        elif key in place and isinstance(value, (int, list, tuple)) and place[key] != value:
            journal.refill(place, {**place, key: value})


def fields_of(value: Any) -> dict[str, Any]:
    """Return the fields of settings, to change in place."""
    if isinstance(value, dict):
        return value
    is_settings = isinstance(value, Namespace) or {"to_dict", "__dataclass_fields__"} & {*dir(type(value))}
    return getattr(value, "__dict__", {}) if is_settings else {}


def _is_by_block(value: Any, size: int, name: str = "") -> bool:
    return type(value) in (list, tuple) and len(value) == size and "token" not in name


def _cut(values: Any, kept: Sequence[int]) -> Any:
    return type(values)(values[index] for index in kept)


def _from_config(module: Any, config: Any) -> nn.Module:
    """Build a twin that shares parameters and buffers."""
    if hasattr(config, "_attn_implementation"):  # which `to_dict` leaves out
        attention = config._attn_implementation
        config = type(config).from_dict({**config.to_dict(), "attn_implementation": attention})
    with torch.device("meta"):
        twin: nn.Module = type(module)(config)
    twin.load_state_dict({plain_name(key): value for key, value in module.state_dict().items()}, assign=True)
    for name, part in _named(module).items():  # the state lacks some buffers
        twin.get_submodule(name)._buffers.update(part._buffers)
    return twin


def _from_checkpoint(module: Any, hyperparameters: Any) -> nn.Module:
    checkpoint = {
        "pytorch-lightning_version": "2.6.0",
        "state_dict": module.state_dict(),
        module.CHECKPOINT_HYPER_PARAMS_NAME: getattr(module, "_hparams_name", None),
        module.CHECKPOINT_HYPER_PARAMS_KEY: dict(hyperparameters),
    }
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, file := io.BytesIO())
    file.seek(0)
    twin: nn.Module = type(module).load_from_checkpoint(file, weights_only=False)
    return twin


def _named(module: nn.Module) -> dict[str, nn.Module]:
    return {plain_name(name): part for name, part in module.named_modules()}


def _num_other(live: Mapping[str, nn.Module], twin: Mapping[str, nn.Module]) -> int:
    # Numbers such as dropout rates, which outputs do not show.
    def numbers(module: nn.Module | None) -> dict[str, Any]:
        return {key: one for key, one in vars(module).items() if isinstance(one, (int, float)) and key != "training"}

    return sum(numbers(part) != numbers(twin.get(name, part)) for name, part in live.items())


_BUILDERS = {"config": _from_config, "hparams": _from_checkpoint}
