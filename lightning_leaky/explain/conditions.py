"""Which numbers of a reading are watched, and the condition on them."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from lightning_leaky.explain.diagnosis import diagnose
from lightning_leaky.metrics.readings import Readings, layer_key
from lightning_leaky.utilities.imports import located

Test: TypeAlias = Callable[[float], bool]

# By what they need. Those of kinetic energy name layers.
_NAMES = {
    "kinetic_energy": ("moves_little", "working"),
    "cost_of_identity": ("has_bottleneck", "has_collapsed", "has_enough_samples", "counts_dimensions"),
    "": ("diverged", "leaks"),
}
_VERDICTS = {f"verdict/{name}": key for key, names in _NAMES.items() for name in names}
# "< 3" is 3 > value: `partial` can be pickled.
_SIGNS = {"<": operator.gt, "<=": operator.ge, ">": operator.lt, ">=": operator.le}
_WORDS = {"is nan": math.isnan, "is true": partial(operator.eq, 1), "is false": partial(operator.eq, 0)}


@dataclass(frozen=True)
class Condition:
    """A condition on a number, with a margin: it holds, or is left, or neither [ours].

    Example:
        >>> [Condition.of("< 1").is_left(value) for value in (0.9, 1.2, 1.25)]
        [False, False, True]
    """

    holds: Test
    nearly: Test

    @classmethod
    def of(cls, told: str | Test, release: float | None = None) -> Condition:
        """Read arguments of `LayerAlert`, or raise ValueError."""
        text = told.strip().lower() if isinstance(told, str) else ""
        if parts := re.fullmatch(r"([<>]=?)\s*([-+.e\d]+)", text):
            sign, number, side = _SIGNS[parts[1]], float(parts[2]), 1 if "<" in text else -1
            end = number + side * abs(number) / 4 if release is None else release
            if side * end >= side * number:
                return cls(partial(sign, number), partial(sign, end))
        test: Any = _WORDS.get(text) or (located(told.strip()) if isinstance(told, str) else told)
        if not callable(test) or release is not None:
            raise ValueError(
                f'`condition` must be as "< 0.01", one of {[*_WORDS]} or a function, `release` beyond a threshold, got '
                f"{told!r} and {release!r}."
            )
        return cls(test, test)

    def is_left(self, value: float) -> bool:
        """Whether a number is beyond the margin; NaN is not."""
        return value == value and not self.nearly(value)

    def after(self, value: float, patience: int, is_armed: bool, count: int) -> tuple[bool, int]:
        """Whether it is armed after a number, and the count; it fires where it no longer is."""
        count = count + 1 if (self.holds(value) if is_armed else self.is_left(value)) else 0
        return (is_armed, count) if count < patience else (not is_armed, 0)


def needed(quantity: str) -> str:
    """Return the quantity that a key needs, ``""`` for any; raise ValueError if there is no such key."""
    found = _VERDICTS.get(quantity, quantity.partition("/")[0])
    if found == "verdict" or not quantity:
        raise ValueError(f'`quantity` must be a log key, as "speed", or one of {[*_VERDICTS]}, got {quantity!r}.')
    return found


def is_of_layers(quantity: str) -> bool:
    """Whether a key is of layers, and not of a whole path."""
    return _VERDICTS.get(quantity) == "kinetic_energy" or "/" not in quantity or "/layer_" in quantity


def watched(readings: Readings, quantity: str) -> dict[str, float]:
    """Numbers that a key stands for, by full log key, verdicts as 1, 0 and NaN; none where they were not read."""
    if needed(quantity) not in ("", *readings.quantities):
        return {}
    if quantity not in _VERDICTS:
        found, place = readings.scalars().items(), r"segment_\d+/|/layer_\d+$"
        return {key: float(value) for key, value in found if quantity in (key, re.sub(place, "", key))}
    name, length = quantity.removeprefix("verdict/"), len(readings.step_sizes)
    told = [getattr(part, name) for part in diagnose(readings)]
    if is_of_layers(quantity):
        return {f"{quantity}/{layer_key(i, length)}": float(i + 1 in sum(told, ())) for i in range(length)}
    numbers = [math.nan if one is None and name != "diverged" else float(bool(one)) for one in told]
    keys = [f"verdict/segment_{i + 1}/{name}" for i in range(len(told))] if len(told) > 1 else [quantity]
    return dict(zip(keys, numbers, strict=True))
