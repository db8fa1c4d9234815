"""DeepSpeed, whose engine steps flat copies of the parameters, perhaps piece by piece."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer

from lightning_leaky.metrics.quantity import Quantity

_REFUSED = {
    "move_weights": "it trains copies of the weights",
    "scale_gradients": "it takes gradients before they are scaled",
}


def engine_of(trainer: Trainer) -> Any:
    """Return the engine of a fit; ``None`` under other strategies."""
    names = [cls.__name__ for cls in type(trainer.strategy).__mro__]
    return getattr(trainer.strategy, "deepspeed_engine", None) if "DeepSpeedStrategy" in names else None


def engine_scale(trainer: Trainer) -> float:
    """Factor of the loss in the backward pass: Lightning and the engine both divide it by the micro-batches."""
    optimizer: Any = trainer.optimizers[0]
    return float(getattr(optimizer, "loss_scale", 1.0)) / trainer.accumulate_grad_batches**2


def check_adapter(trainer: Trainer, settings: Mapping[str, Any]) -> None:
    """Raise ValueError if a setting of `StepSizeAdapter` cannot be right."""
    for name, why in _REFUSED.items():
        if engine_of(trainer) is not None and settings[name]:
            raise ValueError(f"`{name}` must be False under DeepSpeed, got True: {why}. Leave it out.")


def check_records(trainer: Trainer, records: tuple[Quantity, ...]) -> None:
    """Raise ValueError if a quantity needs the gradients of parameters."""
    keys = [record.key for record in records if record.needs == "parameters"]
    if keys and engine_of(trainer) is not None:
        raise ValueError(
            f"`quantities` cannot include {keys} under DeepSpeed, which leaves no gradients in parameters. Leave them "
            "out, or use ModelParallelStrategy."
        )
