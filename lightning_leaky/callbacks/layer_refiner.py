"""The refinement hook as a Lightning callback."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_leaky.callbacks import _trainer
from lightning_leaky.callbacks._hooked import PathFollower
from lightning_leaky.callbacks.step_size_adapter import StepSizeAdapter
from lightning_leaky.callbacks.strategies import check_strategy
from lightning_leaky.paths.leaky_path import find_leaky_path
from lightning_leaky.refining.refinement_hook import RefinementHook, RefinementSettings
from lightning_leaky.utilities.arguments import takes
from lightning_leaky.utilities.harmless import harmless
from lightning_leaky.utilities.optimizer_steps import held_parameters


@dataclass(frozen=True, kw_only=True)
class _Arguments(RefinementSettings):
    """The refiner's arguments, for type checkers."""

    prefix: str = ""


class LayerRefiner(PathFollower):
    """Splits and merges layers during training: `RefinementHook` for a Lightning trainer [ours].

    It refines after an optimizer step, on all micro-batches and processes; several steps in a batch count as one. The
    model saves layers and step-sizes, and a resumed run equals an uninterrupted one. Other callbacks with a method
    ``on_layers_changed(trainer, pl_module)`` are told.

    Under ``ModelParallelStrategy`` (FSDP2) the module needs a method ``shard_layer(layer)``, which calls `fully_shard`
    on a new layer as ``configure_model`` does on the others.

    Log keys, before the step: ``num_layers``, L, and ``discretisation_error``, Σ_l ½ρ_l²‖∂²_pA‖_F/‖A_l‖_F (no unit),
    which the tolerance bounds.

    Args:
        prefix: Start of all log keys, as ``"student/"``, to tell two refiners apart.
        **settings: Arguments of `lightning_leaky.refining.RefinementSettings`.

    Raises:
        ValueError: If an argument is out of range; at the start of a fit if `RefinementHook` refuses the model or its
            optimizers, or the model is compiled or averaged, or the strategy shards it without a ``shard_layer``.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[LayerRefiner(tolerance=0.3)], logger=False)
    """

    _hook: RefinementHook | None

    @takes(_Arguments)
    def __init__(self, *values: Any, prefix: str = "", **settings: Any) -> None:
        chosen = RefinementSettings(*values, **settings)
        super().__init__(chosen, prefix)

    @property
    def state_key(self) -> str:
        """Key of its state in a checkpoint."""
        return self._generate_state_key(**self._path_key) if self._path_key else super().state_key

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the hook, or refuse."""
        check_trainer(trainer)
        _trainer.warn_of_prefix(trainer, self)
        told = self.settings["path"]
        path = cast("nn.Module", find_leaky_path(pl_module, told, held_parameters(*trainer.optimizers)))
        self._hook = RefinementHook(pl_module, **(self.settings | {"path": path}), max_leak=_max_leak(trainer, told))
        self._restore()
        shard = getattr(pl_module, "shard_layer", None)
        self._hook.attach(*trainer.optimizers, automatic=False, on_change=partial(_announce, trainer), shard=shard)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Arm if due."""
        if self._hook is not None:
            self._hook.arm(anyway=_trainer.is_due(trainer, _trainer.log_period(trainer)))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Ignore further forward passes of the batch."""
        if self._hook is not None:
            self._hook.disarm()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Log and refine, unless an fp16 scaler skipped the step."""
        if self._hook is None or _trainer.is_accumulating(trainer):
            return
        is_logged = _trainer.is_due(trainer, _trainer.log_period(trainer))
        self._hook.end_step(partial(self._log, trainer, self._hook.said) if is_logged else None)

    def on_layers_changed(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the new layers."""
        if self._hook is not None:
            self._hook.follow()

    def _log(self, trainer: Trainer, said: set[str], errors: Tensor) -> None:
        numbers = {"num_layers": torch.tensor(float(len(errors))), "discretisation_error": errors.sum()}
        with harmless("LayerRefiner: logging", said):
            _trainer.log_scalars(trainer, {f"{self.prefix}{key}": number for key, number in numbers.items()})


def check_trainer(trainer: Trainer) -> None:
    """Raise ValueError if others rely on parameters."""
    check_strategy(trainer, "LayerRefiner")
    _trainer.check_rewrap(trainer, "LayerRefiner")
    if trainer.lightning_module._compiler_ctx is not None:
        raise ValueError(
            "`model` must not be compiled for LayerRefiner, which changes its graph. Refine first, and compile later."
        )
    for callback in _trainer.callbacks_of(trainer):
        # They keep a second network, parameter by parameter.
        if {"WeightAveraging", "StochasticWeightAveraging"}.intersection(_trainer.class_names(callback)):
            raise ValueError(
                f"`callbacks` must not average the weights beside LayerRefiner, got {type(callback).__name__}. Refine "
                "first, and average in a later fit."
            )


def _announce(trainer: Trainer) -> None:
    """Tell DDP and callbacks."""
    _trainer.rewrap(trainer)
    _trainer.tell_callbacks(trainer, "on_layers_changed")


def _max_leak(trainer: Trainer, path: str | None) -> float:
    """Bound on ρ_l L̃ of merged layers, which a StepSizeAdapter must be able to keep."""
    told = [one.settings for one in _trainer.callbacks_of(trainer) if isinstance(one, StepSizeAdapter)]
    bounds: list[float | None] = [one["max_leak"] for one in told if path is None or one["path"] in (None, path)]
    return min([1.0, *filter(None, bounds)])
