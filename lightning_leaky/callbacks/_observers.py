"""Observers of batches and data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_leaky.callbacks import _trainer
from lightning_leaky.metrics.choice import resolve_quantities
from lightning_leaky.metrics.quantity import Quantity
from lightning_leaky.metrics.readings import Readings
from lightning_leaky.paths.block_path import path_of
from lightning_leaky.paths.layers import LayerChoice
from lightning_leaky.paths.leaky_path import LeakyPath, knows_weights
from lightning_leaky.reading.observer import PathObserver
from lightning_leaky.reading.settings import ReadingOptions, ReadingSettings, default_quantities
from lightning_leaky.utilities.harmless import warn_once
from lightning_leaky.utilities.optimizer_steps import held_parameters
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


def training_observer(
    trainer: Trainer, pl_module: LightningModule, layers: LayerChoice | None, settings: ReadingSettings
) -> PathObserver:
    path = _path_of(trainer, pl_module, layers, settings)
    own, held = settings.weight_decay, _trainer.gradient_decays(trainer)
    decay_of = partial(_trainer.optimizer_weight_decay, trainer) if own is None and any(held.values()) else None
    decay = None if path is None or decay_of is None else decay_of(path.layers)
    if own is None and knows_weights(path):
        own = float(getattr(pl_module, "weight_decay", None) or 0.0) or None
        if own and decay:
            warn(
                f"EnergyMonitor: the model's `weight_decay` = {own:g} is in its loss, the optimizer decays the same by "
                f"{decay:g}, and momenta are read with the λ of both. Most likely one is too many: `torch.optim.AdamW` "
                "decays by 0.01 unless told `weight_decay=0.0`."
            )
    records = _records(trainer, path, settings, bool(own or decay))
    settings = replace(settings, quantities=records, weight_decay=own, exact=True)  # a batch is whole
    return PathObserver(pl_module, path, settings, decay_of=decay_of, held=held).attach()


def evaluation_observer(
    trainer: Trainer, pl_module: LightningModule, layers: LayerChoice | None, settings: ReadingSettings
) -> PathObserver | None:
    """``None`` if nothing can be read without gradients."""
    path = _path_of(trainer, pl_module, layers, settings)
    records = [record for record in _records(trainer, path, settings, False) if not record.has_gradients]
    if not records:
        return None
    if _trainer.may_skip_evaluation(trainer):
        warn(
            "EnergyMonitor reads no validation and test sets: `allow_zero_length_dataloader_with_multiple_devices` is "
            "set, so a process without batches skips them, and the others would wait. Give each a batch, or unset it."
        )
        return None
    held = held_parameters(*trainer.optimizers) or None  # none without a fit
    return PathObserver(pl_module, path, settings.reading(records), held=held).attach()


def _path_of(
    trainer: Trainer, pl_module: LightningModule, layers: LayerChoice | None, settings: ReadingSettings
) -> LeakyPath | None:
    _trainer.check_strategy(trainer, "EnergyMonitor")
    return path_of(pl_module, layers, settings.effective_depth, held_parameters(*trainer.optimizers) or None)


def _records(
    trainer: Trainer, path: LeakyPath | None, settings: ReadingSettings, knows_decay: bool
) -> tuple[Quantity, ...]:
    """Quantities asked for, or the path's defaults."""
    has_weights = settings.fits_weights_of(path) and not _trainer.has_flat_parameters(trainer)
    if settings.quantities is None:
        leaks = (settings.effective_depth if path is None else path.effective_depth) > 0
        has_momenta = has_weights and knows_decay and settings.reads_all_positions
        return resolve_quantities(default_quantities(leaks, has_momenta))
    records = resolve_quantities(settings.quantities)
    needs = {"parameters", "weights"} if knows_weights(path) else {"parameters"}
    with_weights = [record.key for record in records if record.needs in needs]
    if with_weights and _trainer.has_flat_parameters(trainer):
        raise ValueError(
            f"`quantities` cannot include {with_weights} under {type(trainer.strategy).__name__}, which leaves pieces "
            "of the weights. Leave them out, or use ModelParallelStrategy."
        )
    return records


def say_if_unread(trainer: Trainer, every_n_steps: int | None, said: set[str]) -> None:
    """Warn if no training batch will be read, or no logger writes."""
    why = _trainer.why_unread(trainer, every_n_steps)
    if why is not None:
        warn_once(f"EnergyMonitor reads no training batch: {why}", "unread", said)
    elif trainer.train_dataloader is not None and not trainer.loggers:
        warn_once("EnergyMonitor has no logger to write to: readings are kept in its `readings` only.", "logger", said)


def warn_of_nan(readings: Readings, stage: str, said: set[str]) -> None:
    broken = {name for name, values in readings.quantities.items() if not torch.isfinite(values).all()} - said
    if broken:
        said.update(broken)
        warn(
            f"EnergyMonitor: {sorted(broken)} are not finite in the {stage} reading. A layer has diverged, or no "
            "gradient has reached it."
        )


def say_notes(observer: PathObserver, said: set[str]) -> None:
    for note in observer.notes:
        if note not in said:
            said.add(note)
            rank_zero_info(f"EnergyMonitor: {note}")
    observer.notes.clear()
