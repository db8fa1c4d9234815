"""Choosing the layers of a model by glob, regular expression, type or predicate."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import permutations
from typing import TypeAlias

import torch
from torch import nn

from lightning_leaky.utilities.arguments import located
from lightning_leaky.utilities.wrappers import place_inside, unwrapped

# str comes first, so that a command line reads and writes a glob as such.
LayerChoice: TypeAlias = str | type[nn.Module] | Callable[[str, nn.Module], bool]
"""A glob, ``"re:"`` and a regular expression, a type of module, or a predicate of name and module."""

_REGEX = "re:"
_MOST_NAMES = 20


def choose_layers(model: nn.Module, layers: LayerChoice) -> dict[str, nn.Module]:
    r"""Return the chosen modules of a model by name, in the order of registration.

    Args:
        model: Where to look.
        layers: A glob over names, as ``"encoder.layers.*"``, whose ``*`` stops at a dot; a regular expression for the
            whole name, as ``r"re:encoder\.layers\.\d+"``; a type, with its subclasses; or a predicate ``(name, module)
            -> bool``. A string that matches no name may be the import path of the latter two. Names start at `model`
            and leave out wrappers.

    Raises:
        ValueError: If no module matches, one contains another, or the regular expression is invalid.

    Example:
        >>> list(choose_layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), nn.Linear))
        ['0', '2']
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
    """Return a model's descendants by their names without wrappers; a wrapped one as its wrapper.

    Hooks there are not compiled with each block, and a checkpoint does not run them twice.
    """
    named: dict[str, nn.Module] = {}
    modules, plain = dict(model.named_modules()), {"": ""}
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        if name:
            is_inner = child == place_inside(modules[parent])
            plain[name] = plain[parent] if is_inner else f"{plain[parent]}.{child}".lstrip(".")
        named.setdefault(plain[name], module)
    named.pop("", None)
    return named


@contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """Context to read weights as in evaluation: in training, spectral norm iterates on every access."""
    trained = [part for part in module.modules() if part.training]
    try:
        for part in trained:
            part.training = False
        yield
    finally:
        for part in trained:
            part.training = True


def device_of(module: nn.Module) -> torch.device:
    """Return the device of the first parameter, or the CPU."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def _matching(named: dict[str, nn.Module], layers: LayerChoice) -> dict[str, nn.Module]:
    matches = _predicate(layers)
    return {name: module for name, module in named.items() if matches(name, unwrapped(module))}


def _hint(layers: LayerChoice, named: dict[str, nn.Module]) -> str:
    """Suggest the pattern below another module, or a similar one."""
    if isinstance(layers, str) and not layers.startswith(_REGEX):
        depth = layers.count(".") + 1
        split = (name.split(".") for name in named)
        tails = [parts for parts in split if _matches_glob(".".join(parts[-depth:]), layers)]
        inside = {".".join([*parts[:-depth], layers]) for parts in tails}
        spelt = dict.fromkeys(re.sub(r"(^|\.)\d+$", r"\1*", name) for name in named)
        likely = sorted(inside) or difflib.get_close_matches(layers, spelt, cutoff=0.5)
        if likely:
            return f" Did you mean {' or '.join(map(repr, likely[:3]))}? Names start at the module that is fitted."
    some = list(named)[:_MOST_NAMES]
    return f" Its modules are {some}{' and others' if len(named) > len(some) else ''}; print(module) shows all."


def _predicate(layers: LayerChoice) -> Callable[[str, nn.Module], bool]:
    if isinstance(layers, type):
        if not issubclass(layers, nn.Module):
            raise ValueError(f"`layers` must be a type of nn.Module, got {layers!r}.")
        return lambda name, module: isinstance(module, layers)
    if not isinstance(layers, str):
        if not callable(layers):
            raise ValueError(f"`layers` must be a string, a type of module or a function, got {layers!r}.")
        return layers
    if not layers.startswith(_REGEX):
        return lambda name, module: _matches_glob(name, layers)
    try:
        expression = re.compile(layers.removeprefix(_REGEX))
    except re.error as error:
        raise ValueError(f"`layers` must be a regular expression after {_REGEX!r}, got {layers!r}: {error}.") from None
    return lambda name, module: expression.fullmatch(name) is not None


def _matches_glob(name: str, pattern: str) -> bool:
    """Match a glob part by part, so that ``*`` stops at a dot."""
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))
