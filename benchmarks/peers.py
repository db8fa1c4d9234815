"""What delve and weightwatcher charge for looking at a network of the same sizes; they see nn.Linear layers only."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from benchmarks.environment import package_version
from benchmarks.fits import Fit, Side, fits_in_turn
from benchmarks.monitoring import READ, callback_row
from benchmarks.networks import LEARNING_RATE, cost, obvious
from benchmarks.sizes import LOG_PERIOD, Settings, Size
from benchmarks.tables import Row, ratio_row
from benchmarks.timing import in_turn
from benchmarks.training import training_step
from lightning_leaky import EnergyMonitor


def run(settings: Settings) -> list[Row]:
    """Fits of one network of nn.Linear layers with each observer, and one analysis of its weights."""
    return [row for size in settings.sizes for row in (*_delve(size, settings), _weightwatcher(size, settings))]


class ModuleOfLinears(LightningModule):
    """Trains the obvious leaky network."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.network = obvious(size, torch.device("cpu"))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cost."""
        inputs, targets = batch
        loss = cost(self.network(inputs), targets)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=LEARNING_RATE)


class DelveTracker(Callback):
    """Layer saturation by delve of the batches that `EnergyMonitor` reads, written to a CSV by delve's own writer."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook the layers."""
        delve = importlib.import_module("delve")
        logging.getLogger("delve.logger").setLevel(logging.ERROR)
        self.folder = tempfile.TemporaryDirectory()
        self.tracker = delve.SaturationTracker(
            str(Path(self.folder.name, "saturation")),
            save_to="csv",
            modules=pl_module.network,
            log_interval=LOG_PERIOD,
            device=str(pl_module.device),
        )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Compute and write."""
        if trainer.global_step % LOG_PERIOD == 0:
            self.tracker.add_saturations()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what was written."""
        self.folder.cleanup()


def _delve(size: Size, settings: Settings) -> list[Row]:
    name = "delve's SaturationTracker at the same rhythm"
    if not package_version("delve"):
        return [Row(name, size.name, "the same fit without", note="not installed")]
    module = partial(ModuleOfLinears, size)
    sides = {
        "without": Side(module),
        "ours": Side(module, lambda: [EnergyMonitor("network.*", effective_depth=size.effective_depth)]),
        "delve": Side(module, lambda: [DelveTracker()]),
    }
    fits = fits_in_turn(sides, size, settings)

    def seconds(fit: Fit) -> float:
        """What a reading takes: on a GPU, where steps cannot be told apart, with the steps around it."""
        return fit.extra(READ) if settings.device.type == "cpu" else fit.per_step

    ours, theirs = ([seconds(fit) for fit in fits[side]] for side in ("ours", "delve"))
    return [
        callback_row("EnergyMonitor, on the net that delve sees", size, settings, fits["ours"], fits["without"], READ),
        callback_row(name, size, settings, fits["delve"], fits["without"], READ),
        ratio_row("what a read step takes longer, EnergyMonitor", size.name, "delve", ours, theirs, goal=1.0),
    ]


def _weightwatcher(size: Size, settings: Settings) -> Row:
    name, against = "weightwatcher's analysis", "one training step"
    if not package_version("weightwatcher"):
        return Row(name, size.name, against, note="not installed")
    network = obvious(size, settings.device)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        watcher = importlib.import_module("weightwatcher").WeightWatcher
        sides = {
            name: lambda: watcher(model=network, log_level=logging.ERROR).analyze(),
            against: training_step(obvious(size, settings.device), size, settings.device),
        }
        seconds = in_turn(sides, settings)
    return ratio_row(name, size.name, against, seconds[name], seconds[against])
