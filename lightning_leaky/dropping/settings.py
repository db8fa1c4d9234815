"""What a model is built from, a configuration or hyperparameters, with another number of blocks."""

from __future__ import annotations

import copy
import re
from argparse import Namespace
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain, combinations
from typing import Any, TypeAlias

from lightning_leaky.dropping.journal import Journal

Place: TypeAlias = tuple[Any, ...]
"""Where a setting stands: its keys and numbers, from the outermost on."""

_MOST_CHANGES = 3


def mended(settings: Any, size: int, kept: Sequence[int]) -> Iterator[Any]:
    """Yield copies of settings that may say that some of `size` blocks are kept, the likeliest first.

    The first one is as it was. The others change up to three settings: a number of blocks, or a list of one value a
    block. With either go the lists beside it that are called after layers, as `layer_types`.

    Args:
        settings: A dictionary or an object, nested or not.
        size: How many blocks there were.
        kept: Numbers of those that stay, from 0.

    Yields:
        Settings of the same type.

    Example:
        >>> list(mended({"num_layers": 3, "layer_types": ["a", "b", "c"], "width": 3}, 3, [0, 2]))[1]
        {'num_layers': 2, 'layer_types': ['a', 'c'], 'width': 3}
    """
    places = list(_places(settings, (), size))
    for chosen in chain.from_iterable(combinations(places, number) for number in range(_MOST_CHANGES + 1)):
        yield _changed(copy.deepcopy(settings), (), set(chosen), size, kept)


def adopt(live: Any, new: Any, journal: Journal) -> None:
    """Write numbers and lists of new settings into those that a model has, in place."""
    place, values = fields_of(live), fields_of(new)
    for key, value in values.items():
        if fields_of(value) and fields_of(place.get(key)):
            adopt(place[key], value, journal)
        elif key in place and isinstance(value, (int, list, tuple)) and place[key] != value:
            journal.put(place, key, value)


def fields_of(value: Any) -> dict[str, Any]:
    """Return the fields of settings, to be changed in place; nothing for other objects."""
    if isinstance(value, dict):
        return value
    is_settings = isinstance(value, Namespace) or hasattr(value, "to_dict") or hasattr(value, "__dataclass_fields__")
    return vars(value) if is_settings and not isinstance(value, type) and hasattr(value, "__dict__") else {}


def _places(value: Any, place: Place, size: int) -> Iterator[Place]:
    """Where settings hold a number of blocks, or a list that is as long."""
    parts: Mapping[Any, Any] = dict(enumerate(value)) if _is_list(value) else fields_of(value)
    for key, part in parts.items():
        inner = (*place, key)
        name = str(key) if isinstance(key, str) else str(place[-1])  # of stages: the name is that of the list
        is_number = type(part) is int and part == size and re.search("layer|block|depth", name)
        if is_number or (_is_list(part) and len(part) == size and "token" not in name):
            yield inner
        yield from _places(part, inner, size)


def _changed(value: Any, place: Place, chosen: Collection[Place], size: int, kept: Sequence[int]) -> Any:
    if place in chosen:
        return _cut(value, kept) if _is_list(value) else len(kept)
    if _is_list(value):
        return type(value)(_changed(part, (*place, key), chosen, size, kept) for key, part in enumerate(value))
    fields = fields_of(value)
    is_beside = any(one[:-1] == place for one in chosen)
    for key, part in fields.items():
        goes_along = is_beside and _is_list(part) and len(part) == size and "layer" in str(key)
        fields[key] = _cut(part, kept) if goes_along else _changed(part, (*place, key), chosen, size, kept)
    return value


def _cut(values: Any, kept: Sequence[int]) -> Any:
    return type(values)(values[index] for index in kept)


def _is_list(value: Any) -> bool:
    return type(value) in (list, tuple)
