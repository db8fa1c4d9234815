"""The callback that inserts and removes layers until a path is resolved."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_leaky.callbacks._trainer import (
    callbacks_of,
    check_strategy,
    is_accumulating,
    is_due,
    log_period,
    log_scalars,
    rewrap,
    why_not_rewrap,
    without_log,
)
from lightning_leaky.callbacks.step_size_adapter import StepSizeAdapter
from lightning_leaky.functional._checks import implements, working_dtype
from lightning_leaky.paths.leaky_path import LeakyPath, find_leaky_path, step_sizes_of
from lightning_leaky.refining.curvature import CurvatureRecorder
from lightning_leaky.refining.mesh import check_refinement, discretisation_errors_of, refined_step_sizes
from lightning_leaky.refining.remesh import check_optimizer
from lightning_leaky.utilities.optimizer_steps import Rhythm, step_was_skipped
from lightning_leaky.utilities.processes import summed, warn

# They keep a second network, parameter beside parameter, or change learning rates by its length.
_AVERAGING = ("WeightAveraging", "StochasticWeightAveraging")


class RefinablePath(LeakyPath, Protocol):
    """A leaky path whose number of layers can change: `LeakyResNet`, or whatever offers the same.

    Attributes:
        layers: As of `LeakyPath`, plain modules of one kind.
        step_sizes: As of `LeakyPath`.
        effective_depth: As of `LeakyPath`.
    """

    def remesh(self, step_sizes: Tensor, optimizer: Optimizer | None = None) -> None:
        """Take these step-sizes, shape (M,), and as many layers; the optimizer follows."""


class LayerRefiner(Callback):
    """Splits and merges layers during training: give a tolerance, not a depth [ours].

    Every `every_n_steps` optimizer steps it estimates the error of each Euler step on the batch just seen, all its
    micro-batches on all processes, and changes the mesh as `lightning_leaky.refining.refined_step_sizes` says: layers
    are split where the estimated errors add up to more than the tolerance, and merged where they hardly have any.
    Weights are read as functions of p, so that the outputs change by the order of the discretisation error; the
    optimizer's state moves along. Layers that stay keep their parameters. Layers and step-sizes are saved with the
    model, and a resumed run equals an uninterrupted one.

    Layers change after an optimizer step and never between forward and backward. Other callbacks that look at layers
    are told: those with a method ``on_layers_changed(trainer, pl_module)``, as `EnergyMonitor` has one.

    Log keys, of the step that is logged:

    ========================  ====  ================================================================
    key                       unit  meaning
    ========================  ====  ================================================================
    ``num_layers``            –     L, with which the step ran
    ``discretisation_error``  –     Σ_l ½ρ_l²‖∂²_pA‖_F/‖A_l‖_F, what the tolerance bounds
    ========================  ====  ================================================================

    Args:
        tolerance: Bound on the estimated error, > 0, no unit: relative to the size of the representations.
        every_n_steps: Optimizer steps between two refinements. A batch in which the optimizer steps several times
            counts as one.
        start_step: First optimizer step (counted from 1) after which to refine.
        stop_step: Last one; ``None`` never stops. The weights want some training on a mesh that stays.
        max_layers: No layer is split where there are so many.
        min_layers: No layers are merged where there are so few; at least 2.

    Raises:
        ValueError: If an argument is out of range; at the start of a fit if the model has no layers that can change
            (it is no `LeakyResNet`, has but one layer, is compiled), is sharded or averaged, runs under a strategy that
            keeps more than gradients, or is not trained by exactly one optimizer whose state can be moved.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[LayerRefiner(tolerance=0.3)], logger=False)
    """

    def __init__(
        self,
        tolerance: float,
        every_n_steps: int = 100,
        start_step: int = 100,
        stop_step: int | None = None,
        max_layers: int = 64,
        min_layers: int = 2,
    ) -> None:
        self.rhythm = Rhythm(every_n_steps, start_step, stop_step)
        check_refinement(tolerance, max_layers, min_layers)
        self.tolerance = tolerance
        self.max_layers, self.min_layers = max_layers, max(2, min_layers)
        self.num_steps = 0
        self._recorder: CurvatureRecorder | None = None
        self._optimizer: Optimizer | None = None
        self._handle: RemovableHandle | None = None
        self._has_stepped = False
        self._warned = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Count anew; a checkpoint that is restored afterwards sets the counter."""
        if stage == "fit":
            self.num_steps = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the hooks, or refuse what cannot be refined."""
        self._detach()
        check_trainer(trainer)
        path = find_refinable_path(pl_module)
        self._optimizer = optimizer_of(path, trainer.optimizers)
        self._handle = self._optimizer.register_step_post_hook(self._after_step)
        self._recorder = CurvatureRecorder(path).attach()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Arm for a batch whose optimizer step is logged, or followed by a refinement."""
        self._has_stepped = False
        if self._recorder is not None:
            self._recorder.armed = self.rhythm.is_due(self.num_steps + 1) or is_due(trainer, log_period(trainer))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Ignore forward passes made inside backward, as activation checkpointing does."""
        if self._recorder is not None:
            self._recorder.armed = False

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Log the step, and refine after it, where it was taken: an fp16 scaler skips some."""
        if self._recorder is None or is_accumulating(trainer):
            return
        self.num_steps += int(self._has_stepped)
        is_logged = is_due(trainer, log_period(trainer))
        refines = self._has_stepped and self.rhythm.is_due(self.num_steps)
        if is_logged or refines:
            errors = _errors_of(trainer, self._recorder)
            if is_logged:
                _log(trainer, errors)
            if refines and self._refine(trainer, self._recorder.path, errors):
                _tell(trainer, pl_module)
        self._recorder.armed = False
        self._recorder.clear()

    def on_layers_changed(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the layers that there are now."""
        if self._recorder is not None:
            self._recorder.detach()
            self._recorder = CurvatureRecorder(self._recorder.path).attach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the hooks."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the hooks: after an exception there is no teardown."""
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        """Return the counter; layers and step-sizes are the model's."""
        return {"num_steps": self.num_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counter."""
        self.num_steps = int(state_dict["num_steps"])

    def __getstate__(self) -> dict[str, Any]:
        """Leave the hooks behind: a copy has none until its run starts."""
        return without_log(
            {**self.__dict__, "_recorder": None, "_optimizer": None, "_handle": None, "_has_stepped": False}
        )

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._has_stepped = self._has_stepped or not step_was_skipped(optimizer)

    def _refine(self, trainer: Trainer, path: Any, errors: Tensor) -> bool:
        """Change the mesh where that is called for, and say whether it was."""
        rho = step_sizes_of(path)
        if not bool(torch.isfinite(errors).all()):
            self._warn_once(errors)
            return False
        longest = min(1.0, _max_leak(trainer) / path.effective_depth) if path.effective_depth else 1.0
        new = refined_step_sizes(rho, errors, self.tolerance, self.max_layers, self.min_layers, longest)
        if torch.equal(new, rho):
            return False
        path.remesh(new, self._optimizer)
        rewrap(trainer)
        return True

    def _warn_once(self, errors: Tensor) -> None:
        if not self._warned:
            self._warned = True
            warn(
                f"LayerRefiner: the estimated errors of the layers are {errors.tolist()}; layers are left as they are. "
                "A layer has diverged, its representation is zero, or none has run in training mode."
            )

    def _detach(self) -> None:
        if self._recorder is not None:
            self._recorder.detach()
        if self._handle is not None:
            self._handle.remove()
        self._recorder, self._optimizer, self._handle, self._has_stepped = None, None, None, False


def check_trainer(trainer: Trainer) -> None:
    """Raise ValueError where somebody else has counted the parameters already."""
    check_strategy(trainer, "LayerRefiner")
    reason = why_not_rewrap(trainer)
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
    for callback in callbacks_of(trainer):
        if {cls.__name__ for cls in type(callback).__mro__} & set(_AVERAGING):
            raise ValueError(
                f"`callbacks` must not average the weights beside LayerRefiner, got {type(callback).__name__}: its "
                "averages are of as many parameters as there were. Refine first, and average in a later fit."
            )


def find_refinable_path(model: torch.nn.Module) -> RefinablePath:
    """Return the one path of a model whose layers can change, or raise ValueError."""
    path = find_leaky_path(model)
    if not implements(path, RefinablePath):
        raise ValueError(
            f"`model` must contain a LeakyResNet for LayerRefiner, got {type(path).__name__} without `remesh`: blocks "
            "of other networks cannot stand in for one another. Choose their number by hand."
        )
    if len(path.layers) < 2:
        raise ValueError(
            "`num_layers` must be at least 2 for LayerRefiner, got 1: an error is estimated from the velocities of "
            "neighbouring layers."
        )
    compiled = [module for module in model.modules() if hasattr(module, "_orig_mod") or module._compiled_call_impl]
    if compiled:
        raise ValueError(
            f"`model` must not be compiled for LayerRefiner, got a compiled {type(compiled[0]).__name__}: its graph is "
            "of as many layers as there were. Refine without torch.compile, and compile what comes out."
        )
    return cast("RefinablePath", path)


def optimizer_of(path: LeakyPath, optimizers: list[Optimizer]) -> Optimizer:
    """Return the one optimizer that trains the layers, or raise ValueError."""
    layers = {id(parameter) for parameter in path.layers.parameters() if parameter.requires_grad}
    trained = [
        layers & {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for optimizer in optimizers
    ]
    having = [index for index, some in enumerate(trained) if some]
    if len(having) != 1 or trained[having[0]] != layers:
        raise ValueError(
            f"`optimizers` must be one that trains the parameters of all layers for LayerRefiner, got {len(having)} of "
            f"{len(optimizers)} with some of them: new parameters join the one that they descend from. Give the layers "
            "to one optimizer."
        )
    optimizer = optimizers[having[0]]
    check_optimizer(optimizer, [dict(layer.named_parameters()) for layer in path.layers])
    return optimizer


def _log(trainer: Trainer, errors: Tensor) -> None:
    log_scalars(trainer, {"num_layers": torch.tensor(float(len(errors))), "discretisation_error": errors.sum()})


def _tell(trainer: Trainer, pl_module: LightningModule) -> None:
    for callback in callbacks_of(trainer):
        tell = getattr(callback, "on_layers_changed", None)
        if callable(tell):
            tell(trainer, pl_module)


def _max_leak(trainer: Trainer) -> float:
    """Bound on ρ_l L̃ where layers are merged: 1, or that of a StepSizeAdapter beside, which must be able to keep it."""
    adapters = [callback for callback in callbacks_of(trainer) if isinstance(callback, StepSizeAdapter)]
    bounds: list[float | None] = [adapter.settings["max_leak"] for adapter in adapters]
    return min([1.0, *(bound for bound in bounds if bound is not None)])


def _errors_of(trainer: Trainer, recorder: CurvatureRecorder) -> Tensor:
    """Errors over the samples of all processes; the same bits on each, so that all refine alike."""
    device = trainer.strategy.root_device  # that of the processes' backend, also where no pass has been recorded
    squares = summed(recorder.squares.to(device, working_dtype(device))).to("cpu", torch.float64)
    return discretisation_errors_of(squares, step_sizes_of(recorder.path))
