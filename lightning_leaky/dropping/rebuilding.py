"""Models built anew from what they say of themselves, as `from_pretrained` and `load_from_checkpoint` do."""

from __future__ import annotations

import copy
import io
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import nn

from lightning_leaky.dropping.journal import Journal
from lightning_leaky.dropping.outputs import difference, outputs_of
from lightning_leaky.dropping.settings import adopt, fields_of, mended
from lightning_leaky.dropping.stacks import Stack
from lightning_leaky.utilities.wrappers import place_inside, plain_name


class Origin(NamedTuple):
    """What a module is built from."""

    module: nn.Module
    settings: Any
    """Its configuration, or its hyperparameters."""
    build: Callable[[nn.Module, Any], nn.Module]
    """Builds another module from settings, with the weights of the module where they fit."""
    is_exact: bool
    """Whether that returns what the module does; where LoRA has replaced linear maps, it only has the same blocks."""


def origins_of(model: nn.Module, inputs: Any, stack: Stack) -> list[Origin]:
    """Return what the modules around a stack are built from, where building them anew gives them back."""
    expected, found = outputs_of(model, inputs), list[Origin]()
    modules: list[Any] = [one for one in (*stack.ancestors, stack.container) if place_inside(one) is None]
    for module in modules:
        config = getattr(module, "config", None)
        # Modules inside share the configuration of the outermost, or have a part of it.
        if fields_of(config) and not any(one.build is _from_config for one in found):
            found += _origins(model, inputs, expected, Origin(module, config, _from_config, False))
    for module in modules:
        values = getattr(module, "hparams", None)
        if values and hasattr(module, "load_from_checkpoint"):
            origins = _origins(model, inputs, expected, Origin(module, values, _from_checkpoint, False))
            found += [origin for origin in origins if origin.is_exact]
    return found


def mend(model: nn.Module, inputs: Any, stack: Stack, origin: Origin, expected: Any, journal: Journal) -> bool:
    """Change settings in place so that what is built from them returns what is expected; say whether it could be."""
    for settings in mended(origin.settings, stack.size, stack.kept):
        try:
            twin = origin.build(origin.module, copy.deepcopy(settings))
        except Exception:  # whatever the settings are, they are not those of this module
            continue
        if origin.is_exact and not _returns(model, inputs, origin.module, twin, expected, stack.missing):
            continue
        adopt(origin.settings, settings, journal)
        live = _named(origin.module)
        for name, part in _named(twin).items():  # inner modules may have copies of the configuration, changed by it
            adopt(getattr(live.get(name), "config", None), getattr(part, "config", None), journal)
        return True
    return False


def _origins(model: nn.Module, inputs: Any, expected: Any, origin: Origin) -> list[Origin]:
    """An origin, and whether it is exact; none where it is not what the module is built from."""
    try:
        twin = origin.build(origin.module, copy.deepcopy(origin.settings))
    except Exception:  # of a stranger's constructor: the module cannot be built so, and nobody expects it
        return []
    return [origin._replace(is_exact=_returns(model, inputs, origin.module, twin, expected, ()))]


def _returns(
    model: nn.Module, inputs: Any, module: nn.Module, twin: nn.Module, expected: Any, missing: Collection[int]
) -> bool:
    """Whether a model returns what is expected with another module in the place of one."""
    with Journal() as swapped, suppress(Exception):
        for parent in list(model.modules()):
            for key, child in parent._modules.items():
                if child is module:
                    swapped.put(parent._modules, key, twin)
        return difference(expected, outputs_of(twin if model is module else model, inputs), missing) is None
    return False


def _from_config(module: Any, config: Any) -> nn.Module:
    """Build from a configuration without memory for weights: those of the module stand in, and its other buffers."""
    if hasattr(config, "_attn_implementation"):  # what is written is read by a constructor, which may see more in it
        attention, config = config._attn_implementation, type(config).from_dict(config.to_dict())
        config._attn_implementation = attention  # which is not written
    with torch.device("meta"):
        twin: nn.Module = type(module)(config)
    blocks = _numbers_of_blocks(module)
    if any(blocks.get(name) != number for name, number in _numbers_of_blocks(twin).items()):
        raise ValueError("`config` builds other stacks.")
    names, state = {plain_name(key): key for key in twin.state_dict()}, module.state_dict()
    with suppress(RuntimeError):  # of other shapes
        twin.load_state_dict({names.get(plain_name(key), key): value for key, value in state.items()}, assign=True)
    buffers = {plain_name(name): buffer for name, buffer in module.named_buffers()}
    for name, part in twin.named_modules():
        for key, buffer in part._buffers.items():
            if buffer is not None and buffer.is_meta:
                part._buffers[key] = buffers.get(plain_name(f"{name}.{key}".lstrip(".")), buffer)
    return twin


def _from_checkpoint(module: Any, hyperparameters: Any) -> nn.Module:
    """Build from a checkpoint in memory, as Lightning would write it."""
    root = next(cls.__module__ for cls in type(module).__mro__ if cls.__name__ == "LightningModule").split(".")[0]
    checkpoint = {
        "pytorch-lightning_version": sys.modules[root].__version__,
        "state_dict": module.state_dict(),
        module.CHECKPOINT_HYPER_PARAMS_NAME: getattr(module, "_hparams_name", None),
        module.CHECKPOINT_HYPER_PARAMS_KEY: dict(hyperparameters),
    }
    module.on_save_checkpoint(checkpoint)
    file = io.BytesIO()
    torch.save(checkpoint, file)
    file.seek(0)
    with torch.random.fork_rng():
        twin: nn.Module = type(module).load_from_checkpoint(file, weights_only=False)
    return twin


def _numbers_of_blocks(module: nn.Module) -> dict[str, int]:
    return {
        name: len(part) for name, part in _named(module).items() if isinstance(part, (nn.ModuleList, nn.Sequential))
    }


def _named(module: nn.Module) -> dict[str, nn.Module]:
    return {plain_name(name): part for name, part in module.named_modules()}
