"""Fits with a `LayerRefiner` in several processes: what each of them sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor.debug import CommDebugMode

from lightning_leaky import EnergyMonitor, LayerRefiner, LeakyResNet, LeakyResNetModule, StepSizeAdapter
from lightning_leaky.refining import RefinementHook
from lightning_leaky.refining.sharded import remesh_sharded
from lightning_leaky.utilities.processes import unsharded
from tests.distributed.fits import GLOBAL_BATCH, Data, make_module, make_trainer, samples

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


class Sharded(LeakyResNetModule):
    """Is spread over the processes, layer by layer, and says how a new layer is."""

    def shard_layer(self, layer: nn.Module) -> None:
        fully_shard(layer, mesh=self.device_mesh["data_parallel"])

    def configure_model(self) -> None:
        """Shard each layer, and then what is left."""
        for layer in self.network.layers:
            self.shard_layer(layer)
        fully_shard(self.network, mesh=self.device_mesh["data_parallel"])


class Watch(Callback):
    """Keeps mesh, estimate, gradients and readings after every optimizer step."""

    def __init__(self, monitor: EnergyMonitor) -> None:
        self.monitor = monitor
        self.meshes: list[Tensor] = []
        self.errors: list[Tensor] = []
        self.gradients: list[list[Tensor]] = []
        self.readings: list[Tensor] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        gradients = [parameter.grad for parameter in pl_module.network.layers.parameters()]
        self.gradients.append([unsharded(gradient).clone() for gradient in gradients])

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
    state = {name: unsharded(value) for name, value in module.state_dict().items()}
    moments = [unsharded(held["exp_avg_sq"]) for held in trainer.optimizers[0].state.values()]
    seen = {name: vars(watch)[name] for name in ("meshes", "errors", "gradients", "readings")}
    return {**seen, "state": state, "moments": moments}


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


def sharded(size: int, num_layers: int = 4, **changes: Any) -> dict[str, Any]:
    """A fit on shards, of which every process keeps one of each parameter."""
    return fit(size, Sharded, num_layers=num_layers, strategy=ModelParallelStrategy(size, 1), **changes)


def sharded_fits(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """The same on shards, and a fit resumed by a network of as many layers as its checkpoint has."""
    whole = sharded(size, folder=folder / "whole")
    settings: dict[str, Any] = {"num_layers": len(whole["meshes"][1]), "folder": folder / "again"}
    return {
        "plain": whole,
        "accumulated": sharded(size, accumulated=2),
        "merging": sharded(size, tolerance=30.0, num_layers=12),
        "adapting": sharded(size, adapts=True),
        "resumed": sharded(size, **settings, ckpt_path=folder / "whole" / "step=2.ckpt"),
        "hooked": hooked(rank, size),
        "refused": refused(size),
    }


def hooked(rank: int, size: int) -> dict[str, Any]:
    """Estimates, weights and collectives of a hook in a loop of one's own, with shards of different sizes."""
    torch.manual_seed(0)
    network = LeakyResNet(3, 2, width=7, num_layers=12, effective_depth=2.0).double()
    shard: Callable[..., object] | None = None
    if size > 1:
        shard = partial(fully_shard, mesh=init_device_mesh("cpu", (size,)), reshard_after_forward=True)
        for module in (*network.layers, network):
            shard(module)
    optimizer, errors, lengths, spoken = torch.optim.Adam(network.parameters(), lr=0.01), [], [], 0
    hook = RefinementHook(network, 30.0, **RHYTHM, stop_step=6).attach(optimizer, automatic=False, shard=shard)
    inputs, targets = (tensor[rank:GLOBAL_BATCH:size] for tensor in samples(GLOBAL_BATCH, seed=1).tensors)
    for step in range(8):
        hook.arm(anyway=True)
        optimizer.zero_grad()
        (network(inputs) - targets).square().mean().backward()
        optimizer.step()
        hook.end_step(errors.append)
        if step == 6 and shard is not None:
            with CommDebugMode() as said:
                remesh_sharded(network, network.step_sizes.repeat_interleave(2) / 2, optimizer, shard)
            hook.follow()
            spoken = said.get_total_counts()
        elif step == 6:
            network.remesh(network.step_sizes.repeat_interleave(2) / 2, optimizer)
            hook.follow()
        lengths.append(len(network.layers))
    state = {name: unsharded(value) for name, value in network.state_dict().items()}
    are_wrapped = all(isinstance(layer, FSDPModule) for layer in network.layers)
    return {"errors": errors, "lengths": lengths, "state": state, "spoken": spoken, "are_wrapped": are_wrapped}


def refused(size: int) -> list[str]:
    """What is said of networks whose new layers nobody can shard."""
    mesh, said = init_device_mesh("cpu", (size,)), []
    wrap = partial(fully_shard, mesh=mesh)
    for each, shard in ((True, None), (True, lambda layer: layer), (False, wrap)):
        network = LeakyResNet(3, 2, width=6, num_layers=3, effective_depth=2.0)
        for module in (*(network.layers if each else ()), network):
            wrap(module)
        hook = RefinementHook(network, 0.5)
        with pytest.raises(ValueError, match="must") as error:
            hook.attach(torch.optim.Adam(network.parameters()), shard=shard)
        said.append(f"{error.value} Attached: {hook.is_attached}")
    return said


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
