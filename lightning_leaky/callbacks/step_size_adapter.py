"""The step-size hook as a Lightning callback."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lightning_leaky.callbacks import _trainer
from lightning_leaky.callbacks._hooked import PathFollower
from lightning_leaky.callbacks._loggers import tell_tensorboard
from lightning_leaky.callbacks.strategies import check_adapter, check_strategy, engine_of
from lightning_leaky.metrics.readings import layer_key
from lightning_leaky.optim.settings import AdaptationSettings
from lightning_leaky.optim.step_size_hook import StepSizeHook
from lightning_leaky.paths.leaky_path import find_leaky_path, step_sizes_of
from lightning_leaky.utilities.arguments import takes
from lightning_leaky.utilities.harmless import harmless
from lightning_leaky.utilities.optimizer_steps import held_parameters
from lightning_leaky.utilities.processes import warn

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@dataclass(frozen=True, kw_only=True)
class _Arguments(AdaptationSettings):
    """The adapter's arguments, for type checkers."""

    optimizer_index: int | None = None
    prefix: str = ""
    allow_untested: bool = False


class StepSizeAdapter(PathFollower):
    """Adapts layer step-sizes during training (arXiv 2405.17573, section 4): `StepSizeHook` for a Lightning trainer.

    The model saves step-sizes, and a resumed run equals an uninterrupted one. Other fits count steps from 0.

    Log keys: ``step_size/layer_*``, ρ_l (no unit) before the step, and TensorBoard's histogram ``step_sizes``.

    Args:
        optimizer_index: Which of several optimizers to follow.
        prefix: Start of all log keys, as ``"student/"``, to tell two adapters apart.
        allow_untested: Whether to say nothing under a strategy that nobody has tested, see `StrategySupport`.
        **settings: Arguments of `lightning_leaky.optim.AdaptationSettings`.

    Raises:
        ValueError: If an argument is out of range; at the start of a fit if the model has no step-sizes, cannot keep
            the bound, or lacks an `optimizer_index` for several optimizers.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[StepSizeAdapter(every_n_steps=10, damping=0.1)], logger=False)
    """

    _hook: StepSizeHook | None

    @takes(_Arguments)
    def __init__(
        self,
        *values: Any,
        optimizer_index: int | None = None,
        prefix: str = "",
        allow_untested: bool = False,
        **settings: Any,
    ) -> None:
        chosen = AdaptationSettings(*values, **settings)  # command lines read this call
        super().__init__(chosen, prefix)
        self.optimizer_index, self.allow_untested = optimizer_index, allow_untested

    @property
    def state_key(self) -> str:
        """Key of its state in a checkpoint."""
        return self._generate_state_key(optimizer_index=self.optimizer_index, **self._path_key)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the hook."""
        check_strategy(trainer, "StepSizeAdapter", self.allow_untested)
        check_adapter(trainer, self.settings)
        # Not by class: `pytorch_lightning` has its own.
        if any(getattr(other, "_use_buffers", False) for other in _trainer.callbacks_of(trainer)):
            warn(
                "WeightAveraging with `use_buffers=True` averages the step-sizes too, and no training step had those. "
                "Pass `use_buffers=False`."
            )
        _trainer.warn_of_prefix(trainer, self)
        optimizer = self._designated(trainer.optimizers)
        self._hook = self._hook_on(pl_module, optimizer)
        self._restore()
        self._hook.attach(optimizer, automatic=engine_of(trainer) is None)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look for padding, and log if due."""
        if self._hook is None:
            return
        self._hook.see(batch)
        if _trainer.is_due(trainer, _trainer.log_period(trainer)) and not _trainer.is_accumulating(trainer):
            with harmless("Logging the step-sizes", self._hook.said):
                rho = step_sizes_of(self._hook.path)
                keys = [f"{self.prefix}step_size/{layer_key(index, len(rho))}" for index in range(len(rho))]
                _trainer.log_scalars(trainer, dict(zip(keys, rho, strict=True)))
                tell_tensorboard(trainer, "add_histogram", f"{self.prefix}step_sizes", rho, _trainer.num_steps(trainer))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Forget a step that fp16 skipped, and adapt after one of DeepSpeed."""
        engine = engine_of(trainer)
        if self._hook is None or (engine is None and _trainer.scaler_of(trainer) is None):
            return
        if engine is not None and engine.was_step_applied():
            self._hook.end_step()
        elif pl_module.automatic_optimization and not _trainer.is_accumulating(trainer):
            self._hook.forget()

    def on_layers_changed(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow the new layers."""
        if self._hook is not None:
            before, optimizer = self._hook, self._designated(trainer.optimizers)
            before.detach()
            self._hook = self._hook_on(pl_module, optimizer)
            self._hook.num_steps = before.num_steps
            self._hook.attach(optimizer).said.update(before.said)

    def state_dict(self) -> dict[str, Any]:
        """Return the hook's state and settings, after a fit the last."""
        state = super().state_dict()
        return state if self._hook is None else state | {"settings": self._plain_settings}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the hook's state, but not settings; warn if those differ."""
        own, saved = self._plain_settings, state_dict.get("settings", {})
        # Older versions saved fewer.
        changed = [f"{name}={saved[name]!r}" for name, value in own.items() if saved.get(name, value) != value]
        if changed:
            warn(
                f"StepSizeAdapter: the checkpoint was saved with {', '.join(changed)}; the run goes on with {own}. "
                "Pass the saved values to continue as it was."
            )
        super().load_state_dict(state_dict)

    @property
    def _plain_settings(self) -> dict[str, Any]:
        """Settings for a checkpoint, objects by repr without address."""
        plain = (int, float, str, type(None))
        told = self.settings.items()
        return {name: one if isinstance(one, plain) else _ADDRESS.sub("", repr(one)) for name, one in told}

    def _hook_on(self, pl_module: LightningModule, optimizer: torch.optim.Optimizer) -> StepSizeHook:
        path = find_leaky_path(pl_module, self.settings["path"], held_parameters(optimizer))
        return StepSizeHook(pl_module, **(self.settings | {"path": cast("nn.Module", path)}))

    def _designated(self, optimizers: list[torch.optim.Optimizer]) -> torch.optim.Optimizer:
        number = len(optimizers)
        index = 0 if self.optimizer_index is None and number == 1 else self.optimizer_index
        if index is None or not 0 <= index < number:
            raise ValueError(f"`optimizer_index` must be that of one of {number} optimizers, from 0 on, got {index}.")
        return optimizers[index]
