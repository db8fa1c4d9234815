"""Callbacks in a trainer against the same run without them."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback

from benchmarks.fits import Fit, SameBatch, Side, fits_in_turn, trainer_of
from benchmarks.networks import LEARNING_RATE
from benchmarks.sizes import LOG_PERIOD, Settings, Size
from benchmarks.tables import Row, ratio_row
from benchmarks.timing import seconds_per_call, synchronize
from benchmarks.training import WEIGHT_DECAY
from lightning_leaky import EnergyMonitor, LeakyResNetModule, StepSizeAdapter

READ = [0]
"""Where in a logging period the monitor reads: at every step whose number is a multiple of it."""
ADAPTED = range(1, LOG_PERIOD, 10)
"""Where the adapter measures: at its first step, and every ten after."""
VALIDATION_ROWS = (10_000, 50_000)


class Compared(NamedTuple):
    """What is compared with a fit without it: its callbacks, where in a logging period they work, and the goal."""

    name: str
    callbacks: Callable[[], list[Callback]]
    places: Collection[int]
    goal: float


class Epoch(NamedTuple):
    """A validation epoch: one batch so many times, what its length is called, and the goal."""

    num_batches: int = 4
    length: str = "4 batches"
    goal: float | None = None


COMPARED = (
    Compared("EnergyMonitor", lambda: [EnergyMonitor()], READ, 1.02),
    Compared("StepSizeAdapter, every 10 steps", lambda: [StepSizeAdapter(every_n_steps=10)], ADAPTED, 1.01),
)
SWITCHES = Compared(
    'StepSizeAdapter with rule="switches", every 10 steps',
    lambda: [StepSizeAdapter(every_n_steps=10, rule="switches")],
    ADAPTED,
    1.02,
)


def run(settings: Settings) -> Iterator[Row]:
    """Fits in turn, and validation epochs in turn; on a GPU, whose time is short, without the rule "switches"."""
    compared = (*COMPARED, SWITCHES) if settings.device.type == "cpu" else COMPARED
    for size in settings.sizes:
        yield from _fitting(size, settings, *compared)
        side = Side(partial(module_of, size))
        for epoch in epochs_of(VALIDATION_ROWS, "rows", size, settings):
            yield validation_row(side, size, settings, epoch)
        momenta = "EnergyMonitor with Hamiltonian and criticality"
        of_momenta = Compared(momenta, lambda: [EnergyMonitor()], READ, 1.03)
        yield from _fitting(size, settings, of_momenta, weight_decay=WEIGHT_DECAY)


def epochs_of(lengths: Sequence[int], unit: str, size: Size, settings: Settings) -> list[Epoch]:
    """Epochs of as many samples, or the fewest whole batches above; quick runs and GPUs take one of 4 batches."""
    if settings.quick or settings.device.type != "cpu":
        return [Epoch()]
    return [Epoch(math.ceil(length / size.samples), f"{length} {unit}", 1.15) for length in lengths]


def callback_row(
    name: str,
    size: Size,
    settings: Settings,
    fits: Sequence[Fit],
    without: Sequence[Fit],
    places: Collection[int],
    goal: float | None = None,
) -> Row:
    """Row of a callback that works at some places of the logging period.

    Ratios of whole fits drown a per cent in noise, so steps of one fit are also compared with one another: "by steps"
    is 1 plus what those at these places take longer than the others, less the same without the callback (where logging
    alone takes longer), over a logging period. "other steps" are the others with and without it. On a GPU a step ends
    before its work does, and whole logging periods are compared in place of whole fits.
    """
    pairs = list(zip(fits, without, strict=True))
    measures = {
        "by steps": 1
        + statistics.median(
            (one.extra(places) - other.extra(places)) / (LOG_PERIOD * one.ordinary(places)) for one, other in pairs
        ),
        "other steps": statistics.median(one.ordinary(places) / other.ordinary(places) for one, other in pairs),
    }
    ours, theirs = ([one.compared(settings.device) for one in side] for side in (fits, without))
    by_steps = measures if settings.device.type == "cpu" else None
    return ratio_row(name, size.name, "the same fit without", ours, theirs, goal, by_steps)


def module_of(size: Size, weight_decay: float = 0.0) -> LeakyResNetModule:
    """Our module around the path alone."""
    torch.manual_seed(0)
    sizes = (size.width, size.width, size.width, size.num_layers, size.effective_depth)
    return LeakyResNetModule(
        *sizes, weight_decay, learning_rate=LEARNING_RATE, input_map="identity", output_map="identity"
    )


def _fitting(size: Size, settings: Settings, *compared: Compared, weight_decay: float = 0.0) -> list[Row]:
    module = partial(module_of, size, weight_decay)
    sides = {"without": Side(module)} | {one.name: Side(module, one.callbacks) for one in compared}
    fits = fits_in_turn(sides, size, settings)
    return [
        callback_row(one.name, size, settings, fits[one.name], fits["without"], one.places, one.goal)
        for one in compared
    ]


class _ValidationStopwatch(Callback):
    """Times a validation epoch. It comes first of the callbacks."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def on_validation_start(self, *args: Any, **kwargs: Any) -> None:
        synchronize(self.device)
        self.start = time.perf_counter()

    def on_validation_end(self, *args: Any, **kwargs: Any) -> None:
        synchronize(self.device)
        self.seconds = time.perf_counter() - self.start


def validation_row(side: Side, size: Size, settings: Settings, epoch: Epoch, layers: str | None = None) -> Row:
    """Time from the start of a validation epoch to its end; the ratio of whole calls of `validate` is beside it."""
    epochs: dict[bool, list[float]] = {True: [], False: []}
    calls: dict[bool, list[float]] = {True: [], False: []}
    module, loader = side.made(settings.device), SameBatch(side.batch(size, settings.device), epoch.num_batches)
    for _ in range(1 + settings.rounds):
        for reads in epochs:
            stopwatch = _ValidationStopwatch(settings.device)
            with tempfile.TemporaryDirectory() as folder:
                callbacks = [stopwatch, *([EnergyMonitor(layers)] if reads else [])]
                trainer = trainer_of(size, settings, callbacks, folder)
                call = partial(trainer.validate, module, loader, verbose=False)
                calls[reads].append(seconds_per_call(call, settings.device))
            epochs[reads].append(stopwatch.seconds)
    name = f"validation epoch of {epoch.length} with EnergyMonitor"
    # The first round has warmed up.
    whole = statistics.median(one / other for one, other in zip(calls[True][1:], calls[False][1:], strict=True))
    measures = {"whole call": whole}
    return ratio_row(name, size.name, "the same without", epochs[True][1:], epochs[False][1:], epoch.goal, measures)
