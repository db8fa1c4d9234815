"""The sizes at which things are measured, and how carefully."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

LOG_PERIOD = 50
"""Optimizer steps between two logging steps of a Lightning trainer by default."""


@dataclass(frozen=True)
class Size:
    """A network and its batch: N, w, L, L̃ < L (so that ρL̃ < 1), and the steps of a fit, whole logging periods."""

    name: str
    samples: int
    width: int
    num_layers: int
    effective_depth: float
    steps: int = LOG_PERIOD
    precision: Literal["32-true", "bf16-mixed"] = "32-true"


_ALL = (
    Size("c1", 1000, 100, 20, 7.0, steps=400),
    Size("c2", 256, 512, 12, 3.5, steps=200),
    Size("c3", 128, 1024, 24, 7.0, steps=100),
    Size("g1", 4096, 1024, 24, 7.0, steps=200),
    Size("g2", 8192, 4096, 32, 7.0, steps=100, precision="bf16-mixed"),
    Size("g1-reduced", 64, 32, 4, 3.5),
    Size("g2-reduced", 64, 96, 4, 3.5, precision="bf16-mixed"),
)
SIZES = {size.name: size for size in _ALL}


@dataclass(frozen=True)
class Settings:
    """What to measure, where, in how many rounds, and of how many seconds each sample is at least.

    A quick run checks that everything works; its times mean little.
    """

    sizes: tuple[Size, ...]
    device: torch.device
    rounds: int
    seconds: float
    quick: bool
