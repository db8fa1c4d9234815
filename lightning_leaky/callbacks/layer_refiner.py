"""The refinement hook as a Lightning callback."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_leaky.callbacks import _trainer
from lightning_leaky.callbacks._hooked import HookedCallback
from lightning_leaky.callbacks.step_size_adapter import StepSizeAdapter, path_key, plain_choice
from lightning_leaky.paths.leaky_path import find_leaky_path
from lightning_leaky.refining.refinement_hook import RefinementHook
from lightning_leaky.refining.settings import RefinementSettings
from lightning_leaky.utilities.arguments import takes
from lightning_leaky.utilities.harmless import harmless
from lightning_leaky.utilities.optimizer_steps import held_parameters

# They keep a second network, parameter beside parameter, or change learning rates by its length.
_AVERAGING = ("WeightAveraging", "StochasticWeightAveraging")


@dataclass(frozen=True, kw_only=True)
class _Arguments(RefinementSettings):
    """What type checkers know of the refiner's arguments."""

    prefix: str = ""


class LayerRefiner(HookedCallback):
    """Splits and merges layers during training: `RefinementHook` for a Lightning trainer [ours].

    It refines on the batch just seen, all its micro-batches on all processes, after an optimizer step and never between
    forward and backward. A batch in which the optimizer steps several times counts as one step. Layers and step-sizes
    are saved with the model, and a resumed run equals an uninterrupted one.

    Other callbacks that look at layers are told: those with a method ``on_layers_changed(trainer, pl_module)``, as
    `EnergyMonitor` has one.

    Log keys, of the step that is logged: ``num_layers`` (L, with which it ran) and ``discretisation_error``
    (Σ_l ½ρ_l²‖∂²_pA‖_F/‖A_l‖_F, which the tolerance bounds, no unit).

    Args:
        prefix: What all log keys begin with, as ``"student/"``: for the second of two refiners.
        **settings: When and how to refine: every argument of `lightning_leaky.refining.RefinementSettings`.

    Raises:
        ValueError: If an argument is out of range; at the start of a fit if `RefinementHook` refuses the model or its
            optimizers, or the model is compiled, sharded, averaged, or under a strategy that keeps more than gradients.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[LayerRefiner(tolerance=0.3)], logger=False)
    """

    @takes(_Arguments)
    def __init__(self, *values: Any, prefix: str = "", **settings: Any) -> None:
        chosen = RefinementSettings(*values, **settings)
        self.settings, self.prefix = dict(vars(chosen)), prefix
        self._hook: RefinementHook | None = None
        self._state: dict[str, Any] = {"num_steps": 0}

    @property
    def state_key(self) -> str:
        """Key of this callback's state in a checkpoint."""
        told = path_key(self.settings["path"])
        return self._generate_state_key(**told) if told else super().state_key

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Count anew; a checkpoint that is restored afterwards sets the counter."""
        if stage == "fit":
            self._state = {"num_steps": 0}
            self.settings["path"] = plain_choice(pl_module, self.settings["path"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the hook, or refuse what cannot be refined."""
        self._detach()
        check_trainer(trainer)
        _trainer.warn_of_prefix(trainer, self)
        told = self.settings["path"]
        path = cast("nn.Module", find_leaky_path(pl_module, told, held_parameters(*trainer.optimizers)))
        self._hook = RefinementHook(pl_module, **(self.settings | {"path": path}), max_leak=_max_leak(trainer, told))
        self._hook.load_state_dict(self._state)
        self._hook.attach(*trainer.optimizers, automatic=False, on_change=partial(_announce, trainer))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Arm for a batch whose optimizer step is logged, or followed by a refinement."""
        if self._hook is not None:
            self._hook.arm(anyway=_trainer.is_due(trainer, _trainer.log_period(trainer)))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Ignore the forward passes from here to the next batch: of several steps of one batch the first counts."""
        if self._hook is not None:
            self._hook.disarm()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Log the step, and refine after it, where it was taken: an fp16 scaler skips some."""
        if self._hook is None or _trainer.is_accumulating(trainer):
            return
        is_logged = _trainer.is_due(trainer, _trainer.log_period(trainer))
        self._hook.end_step(partial(self._log, trainer, self._hook.said) if is_logged else None)

    def on_layers_changed(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the layers that there are now."""
        if self._hook is not None:
            self._hook.follow()

    def state_dict(self) -> dict[str, Any]:
        """Return the counter; layers and step-sizes are the model's."""
        return self._state if self._hook is None else self._hook.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counter, before or after the fit has started: strategies differ in the order."""
        self._state = dict(state_dict)
        if self._hook is not None:
            self._hook.load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the hook behind: a copy has none until its run starts."""
        return super().__getstate__() | {"_hook": None, "_state": self.state_dict()}

    def _log(self, trainer: Trainer, said: set[str], errors: Tensor) -> None:
        numbers = {"num_layers": torch.tensor(float(len(errors))), "discretisation_error": errors.sum()}
        with harmless("LayerRefiner: logging", said):
            _trainer.log_scalars(trainer, {f"{self.prefix}{key}": number for key, number in numbers.items()})

    def _detach(self) -> None:
        self._state = self.state_dict()
        if self._hook is not None:
            self._hook.detach()
            self._hook = None


def check_trainer(trainer: Trainer) -> None:
    """Raise ValueError where somebody else has counted the parameters already."""
    _trainer.check_strategy(trainer, "LayerRefiner")
    reason = _trainer.why_not_rewrap(trainer)
    if reason is not None:
        raise ValueError(
            f"`strategy` must let LayerRefiner change the number of parameters, got {type(trainer.strategy).__name__}: "
            f"{reason}."
        )
    if trainer.lightning_module._compiler_ctx is not None:
        raise ValueError(
            "`model` must not be compiled for LayerRefiner: its graph is of as many layers as there were. Refine "
            "without torch.compile, and compile what comes out."
        )
    for callback in _trainer.callbacks_of(trainer):
        if set(_AVERAGING).intersection(_trainer.class_names(callback)):
            raise ValueError(
                f"`callbacks` must not average the weights beside LayerRefiner, got {type(callback).__name__}: its "
                "averages are of as many parameters as there were. Refine first, and average in a later fit."
            )


def _announce(trainer: Trainer) -> None:
    """Have DDP and the other callbacks follow the layers that there are now."""
    _trainer.rewrap(trainer)
    _trainer.tell_callbacks(trainer, "on_layers_changed")


def _max_leak(trainer: Trainer, path: str | None) -> float:
    """Bound on ρ_l L̃ where layers are merged: 1, or that of a StepSizeAdapter beside, which must be able to keep it."""
    told = [callback.settings for callback in _trainer.callbacks_of(trainer) if isinstance(callback, StepSizeAdapter)]
    bounds: list[float | None] = [one["max_leak"] for one in told if None in (path, one["path"]) or one["path"] == path]
    return min([1.0, *(bound for bound in bounds if bound is not None)])
