"""Sides measured in turn."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import torch

from benchmarks.sizes import Settings


def in_turn(sides: Mapping[str, Callable[[], object]], settings: Settings) -> dict[str, list[float]]:
    """Seconds per call of each side, by round: A B C A B C …, so that what changes meanwhile changes all of them.

    A first round warms up and finds how many calls fill a sample.
    """
    repetitions = {name: _repetitions(call, settings) for name, call in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(settings.rounds):
        for name, call in sides.items():
            seconds[name].append(seconds_per_call(call, settings.device, repetitions[name]))
    return seconds


def seconds_per_call(call: Callable[[], object], device: torch.device, repetitions: int = 1) -> float:
    """Time of one of several calls, until the device has done them."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repetitions):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / repetitions


def _repetitions(call: Callable[[], object], settings: Settings) -> int:
    call()
    return max(1, math.ceil(settings.seconds / seconds_per_call(call, settings.device)))


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
