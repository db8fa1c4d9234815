"""Fits with a `LayerRefiner` in several processes: what each of them sees."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from lightning_leaky import EnergyMonitor, LayerRefiner, LeakyResNetModule, StepSizeAdapter
from tests.distributed.fits import Data, make_module, make_trainer

RHYTHM = {"every_n_steps": 2, "start_step": 2}


class Manual(LeakyResNetModule):
    """Steps by itself."""

    automatic_optimization = False

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> dict[str, Tensor]:
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        loss = self.loss(self(batch[0]), batch[1])
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        schedule.step()
        return {"loss": loss.detach()}


class Watch(Callback):
    """Keeps mesh, estimate, gradients and readings after every optimizer step."""

    def __init__(self, monitor: EnergyMonitor) -> None:
        self.monitor = monitor
        self.meshes: list[Tensor] = []
        self.errors: list[Tensor] = []
        self.gradients: list[list[Tensor]] = []
        self.readings: list[Tensor] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients.append([parameter.grad.clone() for parameter in pl_module.network.layers.parameters()])

    def on_train_batch_end(self, trainer, pl_module, *args):
        if len(self.gradients) > len(self.meshes):
            self.meshes.append(pl_module.network.step_sizes.clone())
            self.errors.append(trainer.callback_metrics["discretisation_error"].clone())
            self.readings.append(self.monitor.readings["train"]["cost_of_identity"])


def fit(
    size: int,
    cls: type[LeakyResNetModule] = LeakyResNetModule,
    tolerance: float = 0.12,
    num_layers: int = 4,
    accumulated: int = 1,
    adapts: bool = False,
    folder: Path | None = None,
    ckpt_path: Path | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Fit, and return what this process has seen, with the state that it ends with."""
    monitor = EnergyMonitor()
    watch = Watch(monitor)
    adapters = [StepSizeAdapter(every_n_steps=1, damping=0.3)] if adapts else []
    checkpoints = [] if folder is None else [ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)]
    trainer = make_trainer(
        size,
        [monitor, *adapters, LayerRefiner(tolerance, **RHYTHM), watch, *checkpoints],
        accumulate_grad_batches=accumulated,
        enable_checkpointing=folder is not None,
        **changes,
    )
    module = make_module(cls, num_layers)
    trainer.fit(module, Data(accumulated=accumulated), ckpt_path=ckpt_path)
    return {**vars(watch), "monitor": None, "state": module.state_dict()}


def ddp(size: int, **settings: Any) -> dict[str, Any]:
    """The strategy, for several processes."""
    return {"strategy": DDPStrategy(**settings)} if size > 1 else {}


def fits(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """One fit after another, each of which is to be that of one process."""
    return {
        "plain": fit(size),
        "accumulated": fit(size, accumulated=2),
        "merging": fit(size, tolerance=30.0, num_layers=12),
        "adapting": fit(size, adapts=True),
        "unused": fit(size, **ddp(size, find_unused_parameters=True, gradient_as_bucket_view=True)),
        "manual": fit(size, Manual),
    }


def resumed(rank: int, size: int, folder: Path) -> dict[int, dict[str, Any]]:
    """A fit from the start, number 0, and those that are resumed from its checkpoints."""
    found = {0: fit(size, folder=folder / "whole")}
    for step in (2, 4):  # at the ends of epochs: the data do not know where they are in one
        path = folder / "whole" / f"step={step}.ckpt"
        found[step] = fit(size, folder=folder / f"from_{step}", ckpt_path=path)
    return found


def wrapped_alone(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """Under ddp with a single process, which wraps the model all the same."""
    return fit(1, strategy=DDPStrategy())
