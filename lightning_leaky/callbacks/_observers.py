"""Observers of batches and data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_leaky.callbacks import _trainer
from lightning_leaky.callbacks._deepspeed import check_records
from lightning_leaky.callbacks.strategies import data_parallel_rank
from lightning_leaky.metrics.quantity import Quantity
from lightning_leaky.paths.layers import LayerChoice
from lightning_leaky.reading import observers as reading_observers
from lightning_leaky.reading.observer import PathObserver
from lightning_leaky.reading.observers import evaluation_observer, training_observer
from lightning_leaky.reading.settings import ReadingOptions, ReadingSettings
from lightning_leaky.utilities.harmless import warn_once
from lightning_leaky.utilities.processes import warn


@dataclass(frozen=True)
class MonitorArguments(ReadingOptions):
    """Arguments of `EnergyMonitor`, for type checkers."""

    layers: LayerChoice | None = None
    quantities: Sequence[str | Quantity] | None = None
    every_n_steps: int | None = None
    on_validation: bool = True
    print_layers: bool = False
    prefix: str = ""
    pool_loaders: bool = False
    allow_untested: bool = False


def observer_of_steps(
    trainer: Trainer, pl_module: LightningModule, layers: LayerChoice | None, settings: ReadingSettings
) -> PathObserver:
    is_flat, ranks = _trainer.has_flat_parameters(trainer), data_parallel_rank(trainer)
    optimizers = trainer.optimizers
    observer = training_observer(pl_module, layers, settings, optimizers, ranks, "EnergyMonitor", is_flat)
    check_records(trainer, observer.quantities)
    return observer.attach()


def observer_of_sets(
    trainer: Trainer, pl_module: LightningModule, layers: LayerChoice | None, settings: ReadingSettings
) -> PathObserver | None:
    """``None`` if nothing can be read without gradients."""
    is_flat, ranks = _trainer.has_flat_parameters(trainer), data_parallel_rank(trainer)
    observer = evaluation_observer(pl_module, layers, settings, trainer.optimizers, ranks, is_flat)
    if observer is not None and _trainer.may_skip_evaluation(trainer):
        warn(
            "EnergyMonitor reads no validation and test sets: `allow_zero_length_dataloader_with_multiple_devices` is "
            "set, so a process without batches skips them, and the others would wait. Give each a batch, or unset it."
        )
        return None
    return None if observer is None else observer.attach()


def say_if_unread(trainer: Trainer, every_n_steps: int | None, said: set[str]) -> None:
    """Warn if no training batch will be read, or no logger writes."""
    why = _trainer.why_unread(trainer, every_n_steps)
    if why is not None:
        warn_once(f"EnergyMonitor reads no training batch: {why}", "unread", said)
    elif trainer.train_dataloader is not None and not trainer.loggers:
        warn_once("EnergyMonitor has no logger to write to: readings are kept in its `readings` only.", "logger", said)


def say_notes(observer: PathObserver, said: set[str]) -> None:
    reading_observers.say_notes(observer, said, rank_zero_info, "EnergyMonitor")
