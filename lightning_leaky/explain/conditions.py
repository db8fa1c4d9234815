"""Which numbers of a reading are watched, the condition on them, and when it fires: with hysteresis."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeAlias, get_type_hints

from lightning_leaky.explain.diagnosis import Diagnosis, diagnose
from lightning_leaky.metrics.readings import Readings, layer_key
from lightning_leaky.utilities.imports import located

Test: TypeAlias = Callable[[float], bool]
"""Whether a number satisfies a condition."""

VERDICT = "verdict/"
"""What the keys of verdicts begin with."""

# "< 3" is 3 > value: so the number comes first, and `partial` makes a function that can be pickled.
_COMPARISONS = {"<": operator.gt, "<=": operator.ge, ">": operator.lt, ">=": operator.le}
_MARGIN = 0.25
_PLACE = re.compile(r"segment_\d+/|/layer_\d+$")


def _is_not_finite(value: float) -> bool:
    return not math.isfinite(value)


_WORDS: dict[str, Test] = {
    "is nan": math.isnan,
    "is not finite": _is_not_finite,
    "is true": partial(operator.eq, 1.0),
    "is false": partial(operator.eq, 0.0),
}


@dataclass(frozen=True)
class Condition:
    """A condition on a number, with a margin: it holds, or is left, or neither [ours].

    Attributes:
        holds: Whether a number satisfies it.
        nearly: Whether a number satisfies it, or comes within the margin.

    Example:
        >>> condition = Condition.of("< 0.01")
        >>> [(condition.holds(value), condition.is_left(value)) for value in (0.009, 0.011, 0.02)]
        [(True, False), (False, False), (False, True)]
    """

    holds: Test
    nearly: Test

    @classmethod
    def of(cls, told: str | Test, release: float | None = None) -> Condition:
        """Read a condition.

        Args:
            told: A comparison with a number, as ``"< 0.01"``; ``"is nan"``, ``"is not finite"``, ``"is true"`` or
                ``"is false"``; a function of the number, or its import path.
            release: What a comparison is left at; its threshold and a quarter of the threshold's size by default.

        Raises:
            ValueError: If it cannot be read, or `release` is on the wrong side or of no comparison.
        """
        parts = re.fullmatch(r"(<=|>=|<|>)\s*(\S+)", told.strip()) if isinstance(told, str) else None
        if parts is not None:
            return cls._comparison(parts[1], _finite(parts[2], told), release)
        if release is not None:
            raise ValueError(
                f"`release` must be None unless `condition` is a comparison, got {release!r}: leave it out."
            )
        test = (_WORDS.get(told.strip().lower()) or located(told.strip())) if isinstance(told, str) else told
        if not callable(test):
            raise _unreadable(told)
        return cls(test, test)

    @classmethod
    def _comparison(cls, sign: str, threshold: float, release: float | None) -> Condition:
        is_below = sign.startswith("<")
        if release is None:
            release = threshold + (_MARGIN if is_below else -_MARGIN) * abs(threshold)
        if not math.isfinite(release) or (release < threshold if is_below else release > threshold):
            side = "least" if is_below else "most"
            raise ValueError(
                f'`release` must be at {side} {threshold:g} for `condition` = "{sign} {threshold:g}", got {release!r}: '
                "beyond it the condition is left."
            )
        compare = _COMPARISONS[sign]
        return cls(partial(compare, threshold), partial(compare, release))

    def is_left(self, value: float) -> bool:
        """Whether a number is beyond the margin; NaN, which is no number, never is."""
        return value == value and not self.nearly(value)


@dataclass
class Latch:
    """Fires once after `patience` numbers in a row at which a condition holds, and is armed again by as many that left.

    Numbers within the margin do neither, and start the count anew. So do NaN, unless the condition is of NaN.

    Example:
        >>> latch, condition = Latch(), Condition.of("< 1")
        >>> [latch.fires(value, condition, patience=2) for value in (0.9, 0.9, 1.1, 0.9, 0.9, 1.3, 1.3, 0.9, 0.9)]
        [False, True, False, False, False, False, False, False, True]
    """

    is_armed: bool = True
    count: int = 0

    def fires(self, value: float, condition: Condition, patience: int) -> bool:
        """Count one more number, and say whether it is the one to fire at."""
        counts = condition.holds(value) if self.is_armed else condition.is_left(value)
        self.count = self.count + 1 if counts else 0
        if self.count < patience:
            return False
        self.is_armed, self.count = not self.is_armed, 0
        return not self.is_armed


@lru_cache
def verdicts() -> dict[str, object]:
    """Verdicts of a `Diagnosis` by name, with their types: yes or no, a layer or none, or layers.

    Example:
        >>> verdicts()["has_bottleneck"], verdicts()["moves_little"]
        (bool | None, tuple[int, ...])
    """
    members = vars(Diagnosis).items()
    made = {name: get_type_hints(one.fget)["return"] for name, one in members if isinstance(one, property)}
    hints: dict[str, object] = get_type_hints(Diagnosis) | made
    return {name: hint for name, hint in hints.items() if hint in (bool, bool | None, int | None, tuple[int, ...])}


def is_of_layers(quantity: str) -> bool:
    """Whether a key is of every layer, or of one, and not of a whole path.

    Example:
        >>> [is_of_layers(key) for key in ("speed", "speed/layer_03", "speed/path_length", "verdict/moves_little")]
        [True, True, False, True]
    """
    if quantity.startswith(VERDICT):
        return verdicts()[quantity.removeprefix(VERDICT)] == tuple[int, ...]
    return "/" not in quantity or layer_number(quantity) is not None


def layer_number(key: str) -> int | None:
    """Number of the layer that a log key is of.

    Example:
        >>> layer_number("speed/layer_03")
        3
    """
    found = re.search(r"/layer_(\d+)$", key)
    return None if found is None else int(found[1])


def told_name(told: object) -> str:
    """Text as it is, and a function by its name: without an address, the same in another run.

    Example:
        >>> told_name("< 0.01"), told_name(layer_number)
        ('< 0.01', 'lightning_leaky.explain.conditions.layer_number')
    """
    named: Any = told if hasattr(told, "__qualname__") else type(told)
    return told if isinstance(told, str) else f"{getattr(named, '__module__', '')}.{named.__qualname__}"


def check_quantity(quantity: str) -> None:
    """Raise ValueError if a key is none, or of a verdict that there is not."""
    name = quantity.removeprefix(VERDICT)
    if not name:
        raise ValueError(f'`quantity` must be a log key or a verdict, got {quantity!r}; pass one as "kinetic_energy".')
    if name != quantity and name not in verdicts():
        names = [f"{VERDICT}{name}" for name in verdicts()]
        raise ValueError(f"`quantity` must be chosen from {names} or be a log key, got {quantity!r}.")


def is_read(quantity: str, keys: Collection[str]) -> bool:
    """Whether the quantities that a key is made of are among those that are read."""
    if not quantity.startswith(VERDICT):
        return quantity.partition("/")[0] in keys
    if quantity == f"{VERDICT}diverged":
        return bool(keys)
    return ("kinetic_energy" if is_of_layers(quantity) else "cost_of_identity") in keys


def watched(readings: Readings, quantity: str) -> dict[str, float]:
    """Numbers that a key stands for, by full log key: of all layers, and of all segments, unless it names one.

    Verdicts are 1, 0, and NaN where there is none; one that is the number of a layer, as ``diverged``, is whether there
    is such a layer. Nothing, where they were not read.

    Example:
        >>> readings = Readings({"speed": torch.tensor([9.0, 2.0])}, torch.tensor([0.5, 0.5]), 0.0)
        >>> watched(readings, "speed"), watched(readings, "speed/layer_02"), watched(readings, "verdict/diverged")
        ({'speed/layer_01': 9.0, 'speed/layer_02': 2.0}, {'speed/layer_02': 2.0}, {'verdict/diverged': 0.0})
    """
    if not is_read(quantity, readings.quantities):
        return {}
    if quantity.startswith(VERDICT):
        return _verdict(readings, quantity.removeprefix(VERDICT))
    found = readings.scalars().items()
    return {key: float(value) for key, value in found if quantity in (key, _PLACE.sub("", key))}


def _verdict(readings: Readings, name: str) -> dict[str, float]:
    told = [getattr(part, name) for part in diagnose(readings)]
    kind = verdicts()[name]
    if kind == tuple[int, ...]:
        chosen, length = {number for part in told for number in part}, len(readings.step_sizes)
        return {f"{VERDICT}{name}/{layer_key(index, length)}": float(index + 1 in chosen) for index in range(length)}
    if kind == int | None:
        told = [layer is not None for layer in told]
    places = [f"segment_{number}/" for number in range(1, len(told) + 1)] if len(told) > 1 else [""]
    numbers = [math.nan if one is None else float(one) for one in told]
    return {f"{VERDICT}{place}{name}": number for place, number in zip(places, numbers, strict=True)}


def _finite(text: str, told: str | Test) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise _unreadable(told)
    return number


def _unreadable(told: str | Test) -> ValueError:
    return ValueError(
        f'`condition` must be a comparison with a finite number, as "< 0.01", one of {list(_WORDS)}, a function of the '
        f"value, or its import path, got {told!r}."
    )
