"""What a monitor reads in a run: the observers of training batches and of whole data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_leaky.callbacks._trainer import (
    check_strategy,
    has_flat_parameters,
    may_skip_evaluation,
    optimizer_weight_decay,
)
from lightning_leaky.metrics.quantity import Quantity
from lightning_leaky.metrics.readings import Readings
from lightning_leaky.metrics.records import resolve_quantities
from lightning_leaky.paths.block_path import path_of
from lightning_leaky.paths.layers import LayerChoice
from lightning_leaky.paths.leaky_path import LeakyPath, knows_weights
from lightning_leaky.reading.observer import PathObserver
from lightning_leaky.reading.settings import ReadingOptions, ReadingSettings, default_quantities


@dataclass(frozen=True)
class MonitorArguments(ReadingOptions):
    """What the constructor of `EnergyMonitor` takes, for type checkers."""

    layers: LayerChoice | None = None
    quantities: Sequence[str | Quantity] | None = None
    every_n_steps: int | None = None
    on_validation: bool = True
    print_layers: bool = False
    prefix: str = ""


def training_observer(
    trainer: Trainer, pl_module: LightningModule, layers: LayerChoice | None, settings: ReadingSettings
) -> PathObserver:
    """Return the observer of training batches, with its hooks attached."""
    path = _path_of(trainer, pl_module, layers, settings)
    own, decay = _weight_decays(trainer, pl_module, path, settings)
    records = _records(trainer, path, settings, bool(own or decay))
    return PathObserver(pl_module, path, replace(settings, quantities=records, weight_decay=own), decay).attach()


def evaluation_observer(
    trainer: Trainer, pl_module: LightningModule, layers: LayerChoice | None, settings: ReadingSettings
) -> PathObserver | None:
    """Return the observer of whole data sets likewise; ``None`` where nothing can be read without gradients."""
    path = _path_of(trainer, pl_module, layers, settings)
    records = [record for record in _records(trainer, path, settings, False) if not record.has_momenta]
    if not records:
        return None
    if may_skip_evaluation(trainer):
        rank_zero_warn(
            "EnergyMonitor reads no validation and test sets where "
            "`allow_zero_length_dataloader_with_multiple_devices` is set: a process without batches skips the whole "
            "loop, and the others would wait for it forever. Give each process a batch, or unset it."
        )
        return None
    return PathObserver(pl_module, path, settings.reading(records)).attach()


def _path_of(
    trainer: Trainer, pl_module: LightningModule, layers: LayerChoice | None, settings: ReadingSettings
) -> LeakyPath | None:
    check_strategy(trainer, "EnergyMonitor")
    return path_of(pl_module, layers, settings.effective_depth)


def _weight_decays(
    trainer: Trainer, pl_module: LightningModule, path: LeakyPath | None, settings: ReadingSettings
) -> tuple[float | None, float | None]:
    """λ as it is known, and the optimizer's weight decay, whose λ is added: none where one is given."""
    if settings.weight_decay is not None:
        return settings.weight_decay, None
    decay = optimizer_weight_decay(trainer, pl_module if path is None else path.layers)
    own = getattr(pl_module, "weight_decay", None) if knows_weights(path) else None
    if own and decay:
        rank_zero_warn(
            f"EnergyMonitor: the model's own `weight_decay` = {own:g} is in its loss, and the optimizer decays the "
            f"same weights by {decay:g} besides; momenta are read with the λ of both together. Most likely one is too "
            "many: `torch.optim.AdamW` decays by 0.01 unless told `weight_decay=0.0`."
        )
    return float(own) if own else None, decay


def _records(
    trainer: Trainer, path: LeakyPath | None, settings: ReadingSettings, knows_decay: bool
) -> tuple[Quantity, ...]:
    """The quantities asked for, or those that this path has by default."""
    has_weights = knows_weights(path) and not has_flat_parameters(trainer)
    if settings.quantities is None:
        leaks = (settings.effective_depth if path is None else path.effective_depth) > 0
        has_momenta = has_weights and knows_decay and settings.reads_all_positions
        return resolve_quantities(default_quantities(leaks, has_momenta))
    records = resolve_quantities(settings.quantities)
    with_weights = [record.key for record in records if record.needs == "weights"]
    if with_weights and knows_weights(path) and not has_weights:
        raise ValueError(
            f"`quantities` cannot include {with_weights} under {type(trainer.strategy).__name__}: they need the "
            "weights, and FSDPStrategy leaves pieces of them (ModelParallelStrategy does not). Leave them out."
        )
    return records


def warn_of_settings(trainer: Trainer, prefix: str, others: Sequence[str]) -> None:
    """Warn where another monitor writes under the same keys, and where nobody reads them."""
    if prefix in others:
        rank_zero_warn(
            f"Several EnergyMonitors have the `prefix` {prefix!r} and write under the same keys; give one of them "
            'another, as in EnergyMonitor("decoder.layers.*", prefix="decoder/").'
        )
    if not trainer.loggers:
        rank_zero_warn("EnergyMonitor has no logger to write to: readings are kept in its `readings` only.")


def warn_of_nan(readings: Readings, stage: str) -> bool:
    """Warn of what is not finite in a reading, and say whether anything was."""
    broken = [name for name, values in readings.quantities.items() if not torch.isfinite(values).all()]
    if broken:
        rank_zero_warn(
            f"EnergyMonitor: {broken} are not finite in the {stage} reading and are logged as they are. A layer has "
            "diverged, or no gradient has reached it."
        )
    return bool(broken)


def say_notes(observer: PathObserver, said: set[str]) -> None:
    """Log what an observer reads, and how, where it is not among what has been said."""
    for note in observer.notes:
        if note not in said:
            said.add(note)
            rank_zero_info(f"EnergyMonitor: {note}")
    observer.notes.clear()
