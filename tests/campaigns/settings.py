"""What a disturbed training is made of: its setting, the places it writes to, and its data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

NUM_BATCHES, BATCH_SIZE = 11, 4
# A process that waits in vain for another is told so by gloo, whose default of 30 minutes no campaign can afford.
PATIENCE = 20  # seconds


@dataclass(frozen=True)
class Setting:
    """What an undisturbed run depends on; all have 55 or 60 optimizer steps."""

    processes: int = 1
    accumulate: int = 1
    with_callbacks: bool = True
    patience: int = PATIENCE
    precision: int = 32
    cut: int | None = None  # two processes have uneven shares of a batch, which change from batch to batch

    def rows(self, rank: int, batch: int) -> slice:
        """One process's rows of a batch."""
        if self.cut is None:
            return slice(rank, None, self.processes)
        middle = 1 + (batch + self.cut) % (BATCH_SIZE - 1)
        return slice(middle, None) if rank else slice(middle)

    def weight(self, rank: int, batch: int) -> float:
        """By which the mean over one process's rows counts in the mean over all, 1 if all have as many."""
        return len(range(BATCH_SIZE)[self.rows(rank, batch)]) * self.processes / BATCH_SIZE

    @property
    def max_epochs(self) -> int:
        return 5 * self.accumulate

    def steps_before(self, batch: int) -> int:
        """Optimizer steps before a batch, counted from 0 over all epochs; the last of an epoch takes what is left."""
        epoch, position = divmod(batch, NUM_BATCHES)
        return epoch * math.ceil(NUM_BATCHES / self.accumulate) + position // self.accumulate

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.precision == 64 else torch.float32

    @property
    def steps(self) -> int:
        return self.steps_before(self.max_epochs * NUM_BATCHES)


@dataclass(frozen=True)
class Places:
    """Where a run writes: checkpoints on the disk that may be full, the rest there or not."""

    root: Path
    temporary_on_disk: bool = False
    logs_on_disk: bool = False

    @property
    def disk(self) -> Path:
        return self.root / "disk"

    @property
    def checkpoints(self) -> Path:
        return self.disk / "checkpoints"

    @property
    def temporary(self) -> Path:
        return (self.disk if self.temporary_on_disk else self.root) / "temporary"

    @property
    def logs(self) -> Path:
        return (self.disk if self.logs_on_disk else self.root) / "logs"

    def notes(self, kind: str, attempt: int, rank: int) -> Path:
        """What a process writes for the campaign; never on the disk that may be full."""
        return self.root / f"{kind}_{attempt}_{rank}"


class Batches:
    """Mini-batches in an order of their own for each epoch. Their state lets Lightning resume inside an epoch."""

    def __init__(self, rank: int, processes: int, setting: Setting | None = None) -> None:
        self.rank, self.setting = rank, setting or Setting(processes)
        self.epoch, self.position = 0, 0
        self.inputs = torch.randn(NUM_BATCHES * BATCH_SIZE, 3, generator=torch.Generator().manual_seed(0))
        self.inputs = self.inputs.to(self.setting.dtype)
        self.targets = self.inputs[:, :2].cos()

    def __len__(self) -> int:
        return NUM_BATCHES

    def __iter__(self) -> Iterator[list[Tensor]]:
        if self.position == len(self):
            self.epoch, self.position = self.epoch + 1, 0
        while self.position < len(self):
            self.position += 1
            yield self.batch(self.position - 1)

    def batch(self, position: int) -> list[Tensor]:
        """This process's share of a batch."""
        order = torch.randperm(len(self.inputs), generator=torch.Generator().manual_seed(self.epoch))
        rows = order[position * BATCH_SIZE :][:BATCH_SIZE][self.setting.rows(self.rank, position)]
        return [self.inputs[rows], self.targets[rows]]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]
