"""Observers of training steps and of data sets, without a trainer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from torch import nn
from torch.optim import Optimizer

from lightning_leaky.metrics.quantity import Quantity
from lightning_leaky.metrics.readings import Readings
from lightning_leaky.metrics.recipe import resolve_quantities
from lightning_leaky.paths.block_path import path_of
from lightning_leaky.paths.layers import LayerChoice
from lightning_leaky.paths.leaky_path import LeakyPath, knows_weights
from lightning_leaky.reading.observer import PathObserver
from lightning_leaky.reading.settings import ReadingSettings, default_quantities
from lightning_leaky.utilities.data_parallel import DataParallelRank
from lightning_leaky.utilities.optimizer_steps import gradient_decays, optimizer_weight_decay
from lightning_leaky.utilities.processes import is_flattened, number_of_process, warn
from lightning_leaky.utilities.wrappers import unwrapped

_logger = logging.getLogger(__name__)


def training_observer(
    model: nn.Module,
    layers: LayerChoice | None,
    settings: ReadingSettings,
    optimizers: Sequence[Optimizer],
    data_parallel: DataParallelRank | None = None,
    asker: str = "PathMonitor",
    is_flat: bool | None = None,
) -> PathObserver:
    """Return an observer of training steps, with the λ of settings, model and optimizers.

    `is_flat` says whether parameters are pieces of FSDP1's flat ones; ``None`` looks at them.
    """
    own, held = settings.weight_decay, gradient_decays(optimizers)
    path = path_of(model, layers, settings.effective_depth, held or None)
    decay_of = partial(optimizer_weight_decay, optimizers) if own is None and any(held.values()) else None
    decay = None if path is None or decay_of is None else decay_of(path.layers)
    if own is None and knows_weights(path):
        own = float(getattr(unwrapped(model), "weight_decay", None) or 0.0) or None
        if own and decay:
            warn(
                f"{asker}: the model's `weight_decay` = {own:g} is in its loss, the optimizer decays the same by "
                f"{decay:g}, and momenta are read with the λ of both. Most likely one is too many: `torch.optim.AdamW` "
                "decays by 0.01 unless told `weight_decay=0.0`."
            )
    records = _records(path, settings, bool(own or decay), is_flat)
    settings = replace(settings, quantities=records, weight_decay=own, exact=True)  # a batch is whole
    return PathObserver(model, path, settings, decay_of, held=held or None, data_parallel=data_parallel)


def evaluation_observer(
    model: nn.Module,
    layers: LayerChoice | None,
    settings: ReadingSettings,
    optimizers: Sequence[Optimizer],
    data_parallel: DataParallelRank | None = None,
    is_flat: bool | None = None,
) -> PathObserver | None:
    """Return an observer of data sets; ``None`` if nothing can be read without gradients."""
    held = gradient_decays(optimizers).keys() or None
    path = path_of(model, layers, settings.effective_depth, held)
    records = [record for record in _records(path, settings, False, is_flat) if not record.has_gradients]
    if not records:
        return None
    return PathObserver(model, path, settings.reading(records), held=held, data_parallel=data_parallel)


def _records(
    path: LeakyPath | None, settings: ReadingSettings, knows_decay: bool, is_flat: bool | None
) -> tuple[Quantity, ...]:
    """Quantities asked for, or the path's defaults."""
    if is_flat is None:
        is_flat = path is not None and any(map(is_flattened, path.layers.parameters()))
    if settings.quantities is None:
        leaks = (settings.effective_depth if path is None else path.effective_depth) > 0
        has_momenta = settings.fits_weights_of(path) and knows_decay and settings.reads_all_positions and not is_flat
        return resolve_quantities(default_quantities(leaks, has_momenta))
    records = resolve_quantities(settings.quantities)
    needs = {"parameters", "weights"} if knows_weights(path) else {"parameters"}
    flat = [record.key for record in records if record.needs in needs and is_flat]
    if flat:
        raise ValueError(
            f"`quantities` cannot include {flat} under FSDP1, which leaves pieces of the weights. Leave them out, or "
            "use `fully_shard`."
        )
    return records


def say_notes(
    observer: PathObserver, said: set[str], say: Callable[[str], object] = _logger.info, asker: str = "PathMonitor"
) -> None:
    """Say each note of an observer once, on the first process."""
    for note in observer.notes:
        if note not in said and not number_of_process():
            say(f"{asker}: {note}")
        said.add(note)
    observer.notes.clear()


def warn_of_nan(readings: Readings, said: set[str], asker: str, where: str = "", hint: str = "") -> None:
    """Warn once of each quantity that is not finite."""
    broken = {name for name, values in readings.quantities.items() if not values.isfinite().all()} - said
    if broken:
        said.update(broken)
        why = f"A layer has diverged, or no gradient has reached it{hint}."
        warn(f"{asker}: {sorted(broken)} are not finite{where}. {why}")
