"""Whole fits by a Lightning trainer, and the time of each of their steps."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from benchmarks.networks import batch_of
from benchmarks.sizes import LOG_PERIOD, Settings, Size
from benchmarks.timing import seconds_per_call, synchronize
from lightning_leaky import EnergyMonitor


class SameBatch:
    """A loader that gives one batch again and again: a DataLoader would take longer than a step."""

    def __init__(self, batch: Any, length: int) -> None:
        self.batch, self.length = batch, length

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.length):
            yield self.batch

    def __len__(self) -> int:
        return self.length


class Stopwatch(Callback):
    """Notes when each training batch starts and when the last one has ended. It comes first of the callbacks.

    It waits for the device before the first step of a logging period, and at the end: whole periods are those of the
    device too.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: list[float] = []

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Note a start."""
        if len(self.times) % LOG_PERIOD == 0:
            synchronize(self.device)
        self.times.append(time.perf_counter())

    def on_train_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        """Note the end; the last step is logged before."""
        synchronize(self.device)
        self.times.append(time.perf_counter())


@dataclass(frozen=True)
class Side:
    """One of the fits to compare: what makes its module, callbacks and batch, and whether there is a logger."""

    module: Callable[[], LightningModule]
    callbacks: Callable[[], list[Callback]] = list
    batch: Callable[[Size, torch.device], Any] = batch_of
    logs: bool = True

    def made(self, device: torch.device) -> LightningModule:
        """Make the module on a device, whose weights are drawn there."""
        with device:
            return self.module().to(device)


@dataclass(frozen=True)
class Fit:
    """Seconds of a whole call of `fit`, and of each step from the start of one batch to that of the next.

    The first logging period is left out, where it is not the only one: it warms up.

    Attributes:
        peak: The most bytes that torch has held on a GPU; 0 on a CPU.
    """

    seconds: float
    steps: list[float]
    peak: int

    @property
    def per_step(self) -> float:
        """Seconds of a step, those that read and log among them."""
        return statistics.mean(self.steps)

    def compared(self, device: torch.device) -> float:
        """Seconds of the whole call; on a GPU of a step, because a call ends there by moving weights to the CPU."""
        return self.seconds if device.type == "cpu" else self.per_step

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
    """Fits of each side, by round, after one short round that warms up; on a GPU each fit does, in its first period."""
    if settings.device.type == "cpu":
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
    device, stopwatch = settings.device, Stopwatch(settings.device)
    module, loader = side.made(device), SameBatch(side.batch(size, device), num_steps)
    _forget_peak(device)
    callbacks = side.callbacks()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(size, settings, [stopwatch, *callbacks], folder if side.logs else None)
        seconds = seconds_per_call(lambda: trainer.fit(module, loader), device)
    if any(isinstance(one, EnergyMonitor) and not one.readings for one in callbacks):
        raise RuntimeError("EnergyMonitor has read nothing, so that its time says nothing.")
    times = stopwatch.times if num_steps == LOG_PERIOD else stopwatch.times[LOG_PERIOD:]
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return Fit(seconds, [end - start for start, end in pairwise(times)], peak)


def _forget_peak(device: torch.device) -> None:
    """Start the peak anew, without what fits before have left."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.reset_peak_memory_stats(device)


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
