"""Layers in words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby


def ranges(numbers: Sequence[int]) -> str:
    """Sorted layers as ``layers 1–3, 7, 9–10``."""
    places = groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])  # constant along a run
    runs = [[number for _, number in run] for _, run in places]
    written = ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return f"layer{'s' if len(numbers) > 1 else ''} {written}"


def who(layers: Sequence[int], verb: str) -> str:
    """Layers and a verb: ``layer 3 moves``."""
    return f"{ranges(layers)} {verb}{'s' if len(layers) == 1 else ''}"
