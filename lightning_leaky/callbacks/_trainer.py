"""What the callbacks ask of a trainer: Lightning's less public corners, in one place."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from lightning.pytorch import Callback, Trainer
from torch import nn


def log_period(trainer: Trainer) -> int:
    """Optimizer steps between two logging steps; 0 where the trainer does not log."""
    return int(_untyped(trainer).log_every_n_steps)


def is_due(trainer: Trainer, period: int) -> bool:
    """Whether the optimizer step that the present batch is part of is a multiple of a period.

    The step is counted as loggers count it, so that what is logged lands on the x-axis of the loss, whatever the number
    of micro-batches and of optimizers.
    """
    return period > 0 and (trainer.fit_loop.epoch_loop._batches_that_stepped + 1) % period == 0


def is_accumulating(trainer: Trainer) -> bool:
    """Whether the present micro-batch is not the last one before an optimizer step."""
    return trainer.fit_loop._should_accumulate()


def gradient_scale(trainer: Trainer) -> float:
    """What Lightning multiplied the loss by before backward: the AMP scale over the number of micro-batches."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    scale = 1.0 if scaler is None else float(scaler.get_scale())
    return scale / trainer.accumulate_grad_batches if trainer.lightning_module.automatic_optimization else scale


def forget_logged(trainer: Trainer, keys: Collection[str]) -> None:
    """Let values logged on a step be the values of that step: Lightning repeats them until the epoch ends."""
    results = trainer._results
    for result in (results or {}).values():
        if result.meta.name in keys:
            result.reset()


def optimizer_weight_decay(trainer: Trainer, layers: nn.Module) -> float | None:
    """The weight decay that the optimizers apply to the matrices of some layers; ``None`` if there is none, or several.

    Biases and normalisations, of one dimension, are often exempted and do not count.
    """
    decays = {
        id(parameter): float(group.get("weight_decay", 0.0))
        for optimizer in trainer.optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    # A matrix that no optimizer holds, as a frozen one, does not decay.
    found = {decays.get(id(parameter), 0.0) for parameter in layers.parameters() if parameter.ndim > 1}
    return found.pop() or None if len(found) == 1 else None


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """All callbacks of a trainer."""
    return list(_untyped(trainer).callbacks)


def _untyped(trainer: Trainer) -> Any:
    # Lightning's connectors set these attributes where a type checker does not see it.
    return trainer
