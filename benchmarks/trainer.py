"""Our module in a Lightning trainer against a bare loop that does the same."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from benchmarks.fits import SameBatch, Side, fit, steps_of
from benchmarks.monitoring import module_of
from benchmarks.networks import LEARNING_RATE, autocast, batch_of
from benchmarks.sizes import LOG_PERIOD, Settings, Size
from benchmarks.tables import Row, ratio_row
from benchmarks.timing import seconds_per_call
from benchmarks.training import WEIGHT_DECAY


def run(settings: Settings) -> Iterator[Row]:
    """Fits and bare loops in turn."""
    yield from (_row(size, settings) for size in settings.sizes)


def _row(size: Size, settings: Settings) -> Row:
    device, side = settings.device, Side(partial(module_of, size, WEIGHT_DECAY), logs=False)
    fits, loops = [], []
    for num_steps in [LOG_PERIOD] + [steps_of(size, settings)] * settings.rounds:
        fits.append(fit(side, size, settings, num_steps).compared(device))
        module, loader = side.made(device), SameBatch(batch_of(size, device), num_steps)
        seconds = seconds_per_call(partial(_bare_loop, module, loader, size), device)
        loops.append(seconds if device.type == "cpu" else seconds / num_steps)
    goal = 1.1 if size.name == "c1" else None
    return ratio_row("LeakyResNetModule in a trainer", size.name, "bare loop", fits[1:], loops[1:], goal)


def _bare_loop(module: Any, loader: SameBatch, size: Size) -> None:
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
