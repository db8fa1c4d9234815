"""Callbacks in a trainer against the same run without them, and the trainer against a bare loop."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback
from torch.optim.lr_scheduler import CosineAnnealingLR

from benchmarks.fits import Fit, SameBatch, Side, fit, fits_in_turn, steps_of, trainer_of
from benchmarks.networks import LEARNING_RATE, autocast
from benchmarks.sizes import LOG_PERIOD, Settings, Size
from benchmarks.tables import Row, ratio_row
from benchmarks.timing import seconds_per_call
from benchmarks.training import WEIGHT_DECAY
from lightning_leaky import EnergyMonitor, LeakyResNetModule, StepSizeAdapter

READ = [0]
"""Where in a logging period the monitor reads: at every step whose number is a multiple of it."""
ADAPTED = range(1, LOG_PERIOD, 10)
"""Where the adapter measures: at its first step, and every ten after."""
VALIDATION_BATCHES = 4


def run(settings: Settings) -> list[Row]:
    """Whole fits in turn, validation epochs in turn, and fits and bare loops in turn."""
    parts = (_fitting, _validation, _overhead)
    return [row for size in settings.sizes for part in parts for row in part(size, settings)]


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
    before its work does, and only whole fits count.
    """
    pairs = list(zip(fits, without, strict=True))
    measures = {
        "by steps": 1
        + statistics.median(
            (one.extra(places) - other.extra(places)) / (LOG_PERIOD * one.ordinary(places)) for one, other in pairs
        ),
        "other steps": statistics.median(one.ordinary(places) / other.ordinary(places) for one, other in pairs),
    }
    ours, theirs = ([one.seconds for one in side] for side in (fits, without))
    by_steps = measures if settings.device.type == "cpu" else None
    return ratio_row(name, size.name, "the same fit without", ours, theirs, goal, by_steps)


def module_of(size: Size, weight_decay: float = 0.0) -> LeakyResNetModule:
    """Our module around the path alone."""
    torch.manual_seed(0)
    sizes = (size.width, size.width, size.width, size.num_layers, size.effective_depth)
    return LeakyResNetModule(
        *sizes, weight_decay, learning_rate=LEARNING_RATE, input_map="identity", output_map="identity"
    )


def _fitting(size: Size, settings: Settings) -> list[Row]:
    with_decay, without_decay = partial(module_of, size, WEIGHT_DECAY), partial(module_of, size)
    sides = {
        "without": Side(without_decay),
        "EnergyMonitor": Side(without_decay, lambda: [EnergyMonitor()]),
        "StepSizeAdapter, every 10 steps": Side(without_decay, lambda: [StepSizeAdapter(every_n_steps=10)]),
        "without, λ known": Side(with_decay),
        "EnergyMonitor with Hamiltonian and criticality": Side(with_decay, lambda: [EnergyMonitor()]),
    }
    fits = fits_in_turn(sides, size, settings)
    _, monitor, adapter, _, momenta = sides
    return [
        callback_row(monitor, size, settings, fits[monitor], fits["without"], READ, 1.02),
        callback_row(momenta, size, settings, fits[momenta], fits["without, λ known"], READ, 1.03),
        callback_row(adapter, size, settings, fits[adapter], fits["without"], ADAPTED, 1.01),
    ]


class _ValidationStopwatch(Callback):
    """Times a validation epoch. It comes first of the callbacks."""

    def on_validation_start(self, *args: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()

    def on_validation_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self.start


def _validation(size: Size, settings: Settings) -> list[Row]:
    """Time from the start of a validation epoch to its end; the ratio of whole calls of `validate` is beside it."""
    epochs: dict[bool, list[float]] = {True: [], False: []}
    calls: dict[bool, list[float]] = {True: [], False: []}
    module = module_of(size).to(settings.device)
    loader = SameBatch(size, settings, VALIDATION_BATCHES)
    for _ in range(1 + settings.rounds):
        for reads in epochs:
            stopwatch = _ValidationStopwatch()
            with tempfile.TemporaryDirectory() as folder:
                callbacks = [stopwatch, *([EnergyMonitor()] if reads else [])]
                trainer = trainer_of(size, settings, callbacks, folder)
                call = partial(trainer.validate, module, loader, verbose=False)
                calls[reads].append(seconds_per_call(call, settings.device))
            epochs[reads].append(stopwatch.seconds)
    name = f"validation epoch of {VALIDATION_BATCHES} batches with EnergyMonitor"
    goal = 1.5 if size.name == "c1" else None
    # The first round has warmed up.
    whole = statistics.median(one / other for one, other in zip(calls[True][1:], calls[False][1:], strict=True))
    measures = {"whole call": whole}
    return [ratio_row(name, size.name, "the same without", epochs[True][1:], epochs[False][1:], goal, measures)]


def _overhead(size: Size, settings: Settings) -> list[Row]:
    side = Side(partial(module_of, size, WEIGHT_DECAY), logs=False)
    fits, loops = [], []
    for num_steps in [LOG_PERIOD] + [steps_of(size, settings)] * settings.rounds:
        fits.append(fit(side, size, settings, num_steps).seconds)
        module, loader = module_of(size, WEIGHT_DECAY).to(settings.device), SameBatch(size, settings, num_steps)
        loops.append(seconds_per_call(partial(_bare_loop, module, loader, size), settings.device))
    goal = 1.1 if size.name == "c1" else None
    return [ratio_row("LeakyResNetModule in a trainer", size.name, "bare loop", fits[1:], loops[1:], goal)]


def _bare_loop(module: LeakyResNetModule, loader: SameBatch, size: Size) -> None:
    """Train with the same loss, optimizer and schedule."""
    fused = True if module.device.type == "cpu" else None  # as the module's own
    optimizer = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE, fused=fused)
    scheduler = CosineAnnealingLR(optimizer, T_max=len(loader), eta_min=LEARNING_RATE / 100)
    for inputs, targets in loader:
        with autocast(size, module.device):
            loss = module.loss(module(inputs), targets)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        scheduler.step()
