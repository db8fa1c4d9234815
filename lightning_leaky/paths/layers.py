"""Choosing the layers of a model: by glob, by regular expression, by type or by a predicate."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable
from itertools import permutations
from typing import TypeAlias

import torch
from torch import nn

from lightning_leaky.utilities.imports import located

# str first: a command line that reads a glob, or writes it to a file, must not take it for something else.
LayerChoice: TypeAlias = str | type[nn.Module] | Callable[[str, nn.Module], bool]
"""A glob, ``"re:"`` and a regular expression, a type of module, or a predicate of name and module."""

_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_REGEX = "re:"
_MOST_NAMES = 20


def choose_layers(model: nn.Module, layers: LayerChoice) -> dict[str, nn.Module]:
    r"""Return the chosen modules of a model by name, in the order in which they are registered.

    Args:
        model: Where to look.
        layers: A glob over names, as ``"encoder.layers.*"``, where ``*`` stops at a dot; a regular expression that the
            whole name must match, as ``r"re:encoder\.layers\.\d+"``; a type of module, with its subclasses; or a
            predicate ``(name, module) -> bool``. A string that matches no name may be the import path of a type or of a
            predicate. Names start at the model given, and are those without torch.compile, FSDP or checkpointing.

    Raises:
        ValueError: If no module matches, one of them contains another, or the regular expression is none.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> list(choose_layers(model, "*")), list(choose_layers(model, nn.Linear))
        (['0', '1', '2'], ['0', '2'])
    """
    named = named_layers(model)
    chosen = _matching(named, layers)
    if not chosen and isinstance(layers, str) and callable(found := located(layers)):
        chosen = _matching(named, found)
    if not chosen:
        raise ValueError(
            f"`layers` must match modules of the model, but {layers!r} matches none.{_hint(layers, named)}"
        )
    for outer, inner in permutations(chosen, 2):
        if inner.startswith(f"{outer}."):
            raise ValueError(
                f"`layers` must choose blocks that run one after another, but {outer!r} contains {inner!r}; "
                "choose either."
            )
    return chosen


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return every descendant of a model by its plain name; of a wrapped one the wrapper.

    A hook on the wrapper stands outside of what it wraps: it is not compiled with each block anew, and a checkpoint
    does not run it twice.
    """
    named: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        named.setdefault(plain_name(name), module)
    named.pop("", None)
    return named


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module that torch.compile, FSDP or checkpointing has wrapped."""
    for wrapper in _WRAPPERS:
        inner = module._modules.get(wrapper.removesuffix("."))
        if inner is not None:
            return unwrapped(inner)
    return module


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's first parameter, the CPU where it has none."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def plain_name(name: str) -> str:
    """Return a module's name as it was before torch.compile, FSDP or checkpointing wrapped its parents."""
    for wrapper in _WRAPPERS:
        name = f"{name}.".replace(wrapper, "").rstrip(".")
    return name


def _matching(named: dict[str, nn.Module], layers: LayerChoice) -> dict[str, nn.Module]:
    matches = _predicate(layers)
    return {name: module for name, module in named.items() if matches(name, unwrapped(module))}


def _hint(layers: LayerChoice, named: dict[str, nn.Module]) -> str:
    """What may have been meant: names that end as the pattern does, or are spelt like it; else some that there are."""
    if not isinstance(layers, str) or layers.startswith(_REGEX):
        likely = []
    else:
        tails = [name for name in named if _matches_glob(".".join(name.split(".")[-layers.count(".") - 1 :]), layers)]
        likely = tails or difflib.get_close_matches(layers, named, cutoff=0.5)
    if likely:
        return f" Did you mean {likely[0]!r}? Names start at the module that is fitted."
    some = list(named)[:_MOST_NAMES]
    return f" Its modules are {some}{' and others' if len(named) > len(some) else ''}; print(module) shows all."


def _predicate(layers: LayerChoice) -> Callable[[str, nn.Module], bool]:
    if isinstance(layers, str):
        return _name_predicate(layers)
    if isinstance(layers, type):
        if not issubclass(layers, nn.Module):
            raise ValueError(f"`layers` must be a type of nn.Module, got {layers!r}.")
        kind = layers
        return lambda name, module: isinstance(module, kind)
    if not callable(layers):
        raise ValueError(f"`layers` must be a string, a type of module or a function, got {layers!r}.")
    return layers


def _name_predicate(pattern: str) -> Callable[[str, nn.Module], bool]:
    if not pattern.startswith(_REGEX):
        return lambda name, module: _matches_glob(name, pattern)
    try:
        expression = re.compile(pattern.removeprefix(_REGEX))
    except re.error as error:
        raise ValueError(f"`layers` must be a regular expression after {_REGEX!r}, got {pattern!r}: {error}.") from None
    return lambda name, module: expression.fullmatch(name) is not None


def _matches_glob(name: str, pattern: str) -> bool:
    """Whether a dotted name matches a glob, part by part: ``*`` stops at a dot, so children do not match too."""
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))
