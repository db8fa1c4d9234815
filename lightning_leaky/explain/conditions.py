"""Numbers to watch, and conditions on them."""

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
from lightning_leaky.utilities.arguments import located

Test: TypeAlias = Callable[[float], bool]

# By the quantity needed. Those of kinetic energy name layers.
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
    """A condition with a margin: it holds, is left, or neither [ours].

    Example:
        >>> [Condition.of("< 1").is_left(value) for value in (0.9, 1.2, 1.25)]
        [False, False, True]
    """

    holds: Test
    nearly: Test

    @classmethod
    def of(cls, told: str | Test, release: float | None = None) -> Condition:
        """Parse arguments of `LayerAlert`."""
        text = told.strip().lower() if isinstance(told, str) else ""
        if parts := re.fullmatch(r"([<>]=?)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)", text):
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
        """Whether it is beyond the margin; NaN is not."""
        return value == value and not self.nearly(value)

    def after(self, value: float, patience: int, is_armed: bool, count: int) -> tuple[bool, int]:
        """Whether it is armed after a number, and the count."""
        count = count + 1 if (self.holds(value) if is_armed else self.is_left(value)) else 0
        return (is_armed, count) if count < patience else (not is_armed, 0)


def needed(quantity: str) -> str:
    """The quantity that a key needs, ``""`` for any."""
    found = _VERDICTS.get(quantity, quantity.partition("/")[0])
    if found == "verdict" or not quantity:
        raise ValueError(f'`quantity` must be a log key, as "speed", or one of {[*_VERDICTS]}, got {quantity!r}.')
    return found


def is_of_layers(quantity: str) -> bool:
    """Whether a key is of layers, not of a path."""
    return _VERDICTS.get(quantity) == "kinetic_energy" or "/" not in quantity or "/layer_" in quantity


def watched(readings: Readings, quantity: str) -> dict[str, float]:
    """Numbers of a key by log key, verdicts as 1, 0 and NaN."""
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
