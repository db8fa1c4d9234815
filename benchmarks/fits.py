"""Whole fits by a Lightning trainer, and the time of each of their steps."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from benchmarks.networks import batch_of
from benchmarks.sizes import LOG_PERIOD, Settings, Size
from benchmarks.timing import seconds_per_call


class SameBatch:
    """A loader that gives one batch again and again: a DataLoader would take longer than a step."""

    def __init__(self, size: Size, settings: Settings, length: int) -> None:
        self.batch, self.length = batch_of(size, settings.device), length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.length):
            yield self.batch

    def __len__(self) -> int:
        return self.length


class Stopwatch(Callback):
    """Notes when each training batch starts and when the last one has ended. It comes first of the callbacks."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Note a start."""
        self.times.append(time.perf_counter())

    def on_train_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        """Note the end; the last step is logged before."""
        self.times.append(time.perf_counter())


@dataclass(frozen=True)
class Side:
    """One of the fits to compare: what makes its module and its callbacks, and whether there is a logger."""

    module: Callable[[], LightningModule]
    callbacks: Callable[[], list[Callback]] = list
    logs: bool = True


@dataclass(frozen=True)
class Fit:
    """Seconds of a whole call of `fit`, and of each step from the start of one batch to that of the next.

    The first logging period is left out, where it is not the only one: it warms up.
    """

    seconds: float
    steps: list[float]

    def ordinary(self, places: Collection[int]) -> float:
        """Median step at any other place of the logging period than these."""
        return statistics.median(
            seconds for number, seconds in enumerate(self.steps, start=1) if number % LOG_PERIOD not in places
        )

    def extra(self, places: Collection[int]) -> float:
        """Seconds per logging period that steps at these places take longer than the others, by their medians."""
        at_places = [self.steps[(place - 1) % LOG_PERIOD :: LOG_PERIOD] for place in places]
        return sum(map(statistics.median, at_places)) - len(places) * self.ordinary(places)


def fits_in_turn(sides: Mapping[str, Side], size: Size, settings: Settings) -> dict[str, list[Fit]]:
    """Fits of each side, by round, after one short round that warms up."""
    for side in sides.values():
        fit(side, size, settings, LOG_PERIOD)
    fits: dict[str, list[Fit]] = {name: [] for name in sides}
    for _ in range(settings.rounds):
        for name, side in sides.items():
            fits[name].append(fit(side, size, settings, steps_of(size, settings)))
    return fits


def steps_of(size: Size, settings: Settings) -> int:
    """Optimizer steps of one fit."""
    return LOG_PERIOD if settings.quick else size.steps


def fit(side: Side, size: Size, settings: Settings, num_steps: int) -> Fit:
    """Time one fit."""
    module, stopwatch = side.module().to(settings.device), Stopwatch()
    loader = SameBatch(size, settings, num_steps)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(size, settings, [stopwatch, *side.callbacks()], folder if side.logs else None)
        seconds = seconds_per_call(lambda: trainer.fit(module, loader), settings.device)
    times = stopwatch.times if num_steps == LOG_PERIOD else stopwatch.times[LOG_PERIOD:]
    return Fit(seconds, [end - start for start, end in pairwise(times)])


def trainer_of(size: Size, settings: Settings, callbacks: list[Callback], folder: str | None) -> Trainer:
    """A trainer of one epoch, with nothing switched on but a logger where there is a folder."""
    return Trainer(
        accelerator=settings.device.type,
        devices=1,
        max_epochs=1,
        precision=size.precision,
        logger=False if folder is None else TensorBoardLogger(folder),
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
