"""Fits of Leaky ResNets that `fully_shard` spreads over processes in different ways."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard

from lightning_leaky import LeakyResNetModule
from lightning_leaky.utilities.processes import num_processes
from tests.distributed.fits import Data, make_callbacks, make_module, make_trainer

POLICIES: dict[str, dict[str, Any]] = {
    "kept": {"reshard_after_forward": False},
    "resharded": {"reshard_after_forward": True},
    "offloaded": {"offload_policy": CPUOffloadPolicy(pin_memory=False)},
    "checkpointed": {},
    "compiled": {},
    "narrow": {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)},
}
"""What `fully_shard` takes; layers are checkpointed or compiled besides."""


class Sharded(LeakyResNetModule):
    """A network whose parameters are spread over the processes by a policy."""

    policy = "kept"

    def configure_model(self) -> None:
        """Shard each layer, and then what is left."""
        layers = self.network.layers
        for index, layer in enumerate(layers):
            if self.policy == "checkpointed":
                layers[index] = checkpoint_wrapper(layer)
            if self.policy == "compiled":
                layer.compile(backend="aot_eager")
        for module in (*layers, self.network):
            fully_shard(module, mesh=self.mesh(), **POLICIES.get(self.policy, {}))

    def mesh(self) -> Any:
        """All processes in one dimension, or in groups that have copies of one another's shards."""
        if self.policy != "hybrid":
            return self.device_mesh["data_parallel"]
        return init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))


def fit(size: int, policy: str) -> dict[str, Any]:
    """Fit by a policy."""
    *callbacks, recorder = make_callbacks()
    module = make_module(Sharded)
    module.policy = policy
    make_trainer(size, [*callbacks, recorder], strategy=ModelParallelStrategy(size, 1)).fit(module, Data())
    return recorder.found()


class Flattening(FSDPStrategy):
    """FSDP1, which Lightning allows GPUs only, on CPUs."""

    def _setup_model(self, model: torch.nn.Module) -> torch.nn.Module:
        told = {**self.kwargs, "sharding_strategy": self.sharding_strategy, "device_id": torch.device("cpu")}
        return FullyShardedDataParallel(model, **told)


def flat_fit(**settings: Any) -> dict[str, Any]:
    """Fit in float32, the precision of `FSDPStrategy`, by FSDP1 if there are settings of it."""
    *callbacks, recorder = make_callbacks()
    strategy, size = (Flattening(**settings), num_processes()) if settings else ("auto", 1)
    make_trainer(size, [*callbacks, recorder], strategy=strategy).fit(make_module().float(), Narrowed())
    return recorder.found()


class Narrowed(Data):
    """The same in float32."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [tensor.float() for tensor in batch]


def flat_fits(rank: int, size: int, folder: Path) -> dict[str, dict[str, Any]]:
    """One fit for each setting of FSDP1 that so many processes allow."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    if size == 4:
        mesh = init_device_mesh("cpu", (2, 2))
        return {"hybrid": flat_fit(use_orig_params=True, sharding_strategy="HYBRID_SHARD", device_mesh=mesh)}
    return {"original": flat_fit(use_orig_params=True), "flat": flat_fit(use_orig_params=False)}


def fits(rank: int, size: int, folder: Path) -> dict[str, dict[str, Any]]:
    """One fit for each policy that so many processes allow."""
    chosen = {1: ["narrow"], 2: POLICIES, 4: ["hybrid"]}[size]
    return {policy: fit(size, policy) for policy in chosen}
