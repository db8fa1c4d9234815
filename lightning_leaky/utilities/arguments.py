"""Arguments of constructors: types that are passed on, and import paths."""

from __future__ import annotations

import pydoc
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
First = TypeVar("First")


def takes(settings: Callable[P, object]) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, P], None]]:
    """Tell type checkers that an ``__init__`` takes the arguments of `settings`.

    It stays as it is: the command line reads names, defaults and help from what its body calls.
    """
    return lambda init: init


def takes_first(
    first: type[First], settings: Callable[P, object]
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, First, P], None]]:
    """Tell the same of an ``__init__`` with an argument before them."""
    return lambda init: init


@lru_cache
def located(path: str) -> object | None:
    """Return the object of an import path, as ``"torch.nn.Linear"``, or ``None``."""
    if "." not in path or not all(part.isidentifier() for part in path.split(".")):
        return None
    try:
        return pydoc.locate(path)
    except pydoc.ErrorDuringImport:
        return None
