"""Choosing the layers of a model: by glob, by regular expression, by type or by a predicate."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
from typing import TypeAlias

from torch import nn

LayerChoice: TypeAlias = type[nn.Module] | Callable[[str, nn.Module], bool] | str
"""A type of module, a predicate of name and module, a glob, or ``"re:"`` and a regular expression."""

_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_REGEX = "re:"


def choose_layers(model: nn.Module, layers: LayerChoice) -> dict[str, nn.Module]:
    r"""Return the chosen modules of a model by name, in the order in which they are registered.

    Args:
        model: Where to look.
        layers: A glob over names, as ``"encoder.layers.*"``, where ``*`` stops at a dot; a regular expression that the
            whole name must match, as ``r"re:encoder\.layers\.\d+"``; a type of module, with its subclasses; or a
            predicate ``(name, module) -> bool``. Names are those before torch.compile, FSDP or checkpointing.

    Raises:
        ValueError: If no module matches, one of them contains another, or the regular expression is none.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> list(choose_layers(model, "*")), list(choose_layers(model, nn.Linear))
        (['0', '1', '2'], ['0', '2'])
    """
    matches = _predicate(layers)
    named = named_layers(model)
    chosen = {name: module for name, module in named.items() if matches(name, module)}
    if not chosen:
        raise ValueError(f"`layers` must match module names, but {layers!r} matches none of {list(named)}.")
    _check_not_nested(chosen)
    return chosen


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return every descendant of a model by its plain name."""
    return {plain_name(name): module for name, module in model.named_modules() if name}


def plain_name(name: str) -> str:
    """Return a module's name as it was before torch.compile, FSDP or checkpointing wrapped its parents.

    Example:
        >>> plain_name("_orig_mod.network.layers.0")
        'network.layers.0'
    """
    for wrapper in _WRAPPERS:
        name = f"{name}.".replace(wrapper, "").rstrip(".")
    return name


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


def _check_not_nested(chosen: dict[str, nn.Module]) -> None:
    for name in chosen:
        parents = [other for other in chosen if name.startswith(f"{other}.")]
        if parents:
            raise ValueError(
                f"`layers` must choose blocks that run one after another, but {parents[0]!r} contains {name!r}; "
                "choose either."
            )
