"""DeepSpeed, whose engine steps flat copies of the parameters, perhaps piece by piece."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from torch.optim import Optimizer

from lightning_leaky.metrics.quantity import Quantity


def engine_of(trainer: Trainer) -> Any:
    """Return the engine of a fit; ``None`` under other strategies."""
    names = [cls.__name__ for cls in type(trainer.strategy).__mro__]
    return getattr(trainer.strategy, "deepspeed_engine", None) if "DeepSpeedStrategy" in names else None


def engine_scale(trainer: Trainer) -> float:
    """Factor of the loss in the backward pass: Lightning and the engine both divide it by the micro-batches."""
    optimizer: Any = trainer.optimizers[0]
    return float(getattr(optimizer, "loss_scale", 1.0)) / trainer.accumulate_grad_batches**2


def trains_copies(trainer: Trainer) -> bool:
    """Whether ZeRO (stages 1 to 3) trains flat copies of the parameters and takes their gradients."""
    optimizer = trainer.optimizers[0] if trainer.optimizers else None
    return engine_of(trainer) is not None and not isinstance(optimizer, Optimizer)


def check_adapter(trainer: Trainer, settings: Mapping[str, Any]) -> None:
    """Raise ValueError if a setting of `StepSizeAdapter` cannot be right."""
    if settings["move_weights"] and trains_copies(trainer):
        raise ValueError(
            "`move_weights` must be False under DeepSpeed, which trains copies of the weights, got True. Leave it out."
        )


def check_records(trainer: Trainer, records: tuple[Quantity, ...]) -> None:
    """Raise ValueError if a quantity needs the gradients of parameters."""
    keys = [record.key for record in records if record.needs == "parameters"]
    if keys and trains_copies(trainer):
        raise ValueError(
            f"`quantities` cannot include {keys} under DeepSpeed, which leaves no gradients in parameters. Leave them "
            "out, or use ModelParallelStrategy."
        )
