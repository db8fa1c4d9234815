"""Distributed checkpoints (DCP) of leaky models at L̃ = 0: written by two processes, read by any number of them."""

from __future__ import annotations

import itertools
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning.pytorch import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lightning_leaky import LeakyResidual, LeakyResNet, StepSizeAdapter, make_leaky
from lightning_leaky.paths.leaky_path import LeakyPath, find_leaky_path
from tests.distributed.fits import make_trainer
from tests.distributed.resumes import Made, Residual, Resumable

RHO = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
Content = dict[str, Tensor]


def made(kind: str, seed: int = 0) -> nn.Module:
    """A model of four layers at L̃ = 0, with equidistant step-sizes."""
    torch.manual_seed(seed)
    if kind == "LeakyResNet":
        return LeakyResNet(6, 6, width=6, num_layers=4, effective_depth=0.0)
    blocks = [Residual() for _ in range(4)]
    return LeakyResidual(blocks) if kind == "LeakyResidual" else make_leaky(nn.Sequential(*blocks), Residual)


KINDS = ("LeakyResNet", "LeakyResidual", "make_leaky")


def sharded(model: nn.Module) -> nn.Module:
    """Spread every layer, and then what is left, over the processes."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in (*path_of(model).layers, model):
        fully_shard(module, mesh=mesh)
    return model


WRAPPERS = {"sharded": sharded, "ddp": DistributedDataParallel, "plain": lambda model: model}


def content(model: nn.Module) -> Content:
    """Step-sizes, and what the model computes with its parameters."""
    inputs = torch.linspace(-1, 1, 30).reshape(5, 6)
    outputs = model(inputs).detach()
    return {"step_sizes": path_of(model).step_sizes.clone(), "outputs": outputs}


def path_of(model: nn.Module) -> LeakyPath:
    """The path behind a wrapper."""
    return find_leaky_path(getattr(model, "module", model))


def adapted(kind: str) -> nn.Module:
    """A model whose step-sizes say something."""
    model = made(kind)
    path_of(model).step_sizes.copy_(RHO)
    return model


def save(rank: int, size: int, folder: Path) -> dict[str, Content]:
    """Write a model of each kind in each wrapper, and Lightning's folder of shards."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    found = {kind: content(adapted(kind)) for kind in KINDS}
    for kind in KINDS:
        for wrapper, wrap in WRAPPERS.items():
            dcp.save(get_model_state_dict(wrap(adapted(kind))), checkpoint_id=folder / f"{kind}, {wrapper}")
    return found | {"Lightning": lightning_fit(size, folder, [StepSizeAdapter(1)])}


def load(rank: int, size: int, folder: Path) -> dict[str, Content]:
    """Read all of them into each wrapper: key by key, and as the full state of all or of the first process."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    found = {}
    for kind, (wrapper, wrap) in itertools.product(KINDS, WRAPPERS.items()):
        for saved in WRAPPERS:
            model = wrap(made(kind, seed=1))
            state = get_model_state_dict(model)
            dcp.load(state, checkpoint_id=folder / f"{kind}, {saved}")
            set_model_state_dict(model, state)
            found[f"{kind}: {saved} to {wrapper}"] = content(model)
        for broadcast in (False, True):
            model = wrap(made(kind, seed=1))
            state = {} if rank and broadcast else adapted(kind).state_dict()
            options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=broadcast)
            set_model_state_dict(model, state, options=options)
            found[f"{kind}: full state to {wrapper}, broadcast: {broadcast}"] = content(model)
    return found | {"Lightning: resumed": lightning_fit(size, folder, [], ckpt_path=folder / "Lightning")}


def lightning_fit(size: int, folder: Path, callbacks: list[Callback], **resume: Any) -> Content:
    """Fit, or resume where nothing is left to do, with a checkpoint that is a folder of shards."""
    trainer = make_trainer(size, callbacks, max_epochs=1, strategy=ModelParallelStrategy(size, 1))
    module = Made()
    trainer.fit(module, Resumable(), weights_only=False, **resume)
    if not resume:
        trainer.save_checkpoint(folder / "Lightning")
    return {"step_sizes": module.leaky_steps.step_sizes.clone()}
