"""Fits of transformer blocks whose weights, and perhaps sequences, are split over the processes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_leaky import (
    DataParallelRank,
    EnergyMonitor,
    LeakyResNetModule,
    Readings,
    StepSizeAdapter,
    find_leaky_path,
    make_leaky,
    measure_path,
)
from tests.distributed.fits import GLOBAL_BATCH, NUM_TRAIN, NUM_VAL, Recorder, make_module, make_trainer, samples

Found = dict[str, Any]
WIDTH, TOKENS, NUM_BLOCKS = 6, 4, 4
QUANTITIES = (
    "cost_of_identity",
    "kinetic_energy",
    "stable_rank",
    "block_influence",
    "first_order",
    "pontryagin_hamiltonian",
    "pontryagin_residual",
    "momentum_norm",
)
STREAMS = ("whole", "pieces", "tensors")
"""What passes from block to block: all of a sequence, this process's tokens, or a DTensor of tokens."""


class Block(nn.Module):
    """A pre-norm block without attention, which would need every token."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return h + MLP(norm(h))."""
        following: Tensor = hidden + self.down(torch.tanh(self.up(self.norm(hidden))))
        return following


class Tokens(LightningModule):
    """Maps each token of a sequence, and learns the mean over them."""

    def __init__(self, stream: str = "whole") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stream = stream
        self.first, self.last = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 2)
        self.blocks = nn.Sequential(*(Block() for _ in range(NUM_BLOCKS)))
        self.double()
        make_leaky(self, "blocks.*")

    def forward(self, inputs: Tensor) -> Tensor:
        """Return one output for each token."""
        outputs: Tensor = self.last(self.blocks(self.first(inputs)))
        return outputs

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self(batch[0]) - batch[1]).square().mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self(batch[0])

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, weight_decay=0.1)


class Split(Tokens):
    """The same with tensors split over processes."""

    def configure_model(self) -> None:
        if isinstance(self.first.weight, DTensor):
            return
        split(self, self.device_mesh["tensor_parallel"], self.stream)
        if self.device_mesh["data_parallel"].size() > 1:
            fully_shard(self, mesh=self.device_mesh["data_parallel"])


def split(model: Tokens, mesh: DeviceMesh, stream: str) -> None:
    """Split a model's linear maps, and its sequences unless they stay whole."""
    is_local, in_pieces = stream != "tensors", stream != "whole"
    between = Shard(1) if in_pieces else Replicate()
    plan: dict[str, Any] = {
        "first": RowwiseParallel(input_layouts=Replicate(), output_layouts=between, use_local_output=is_local),
        "last": ColwiseParallel(input_layouts=between, output_layouts=Replicate()),
    }
    for index in range(NUM_BLOCKS):
        block = f"blocks.{index}"
        plan[f"{block}.down"] = RowwiseParallel(output_layouts=between, use_local_output=is_local)
        plan[f"{block}.up"] = ColwiseParallel(input_layouts=between)
        plan[f"{block}.norm"] = SequenceParallel(use_local_output=is_local) if in_pieces else Whole()
    parallelize_module(model, mesh, plan)


class Whole(SequenceParallel):
    """A norm of whole sequences, whose weights are tensors of the mesh too."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for name, parameter in list(module.named_parameters()):
            whole = nn.Parameter(distribute_tensor(parameter, device_mesh, [Replicate()]))
            module.register_parameter(name, whole)
        PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Replicate())._apply(module, device_mesh)
        return PrepareModuleOutput(output_layouts=Replicate(), desired_output_layouts=Replicate())._apply(
            module, device_mesh
        )


def sequences(num: int, seed: int) -> TensorDataset:
    """Sequences, and a target for each token."""
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(
        *(torch.randn(num, TOKENS, width, dtype=torch.float64, generator=generator) for width in (3, 2))
    )


class Ranked(LightningDataModule):
    """Batches whose union over the data-parallel ranks is the batch of one process."""

    def __init__(self, samples: Callable[[int, int], TensorDataset]) -> None:
        super().__init__()
        self.samples = samples

    def train_dataloader(self) -> DataLoader:
        ranks = {"num_replicas": 1, "rank": 0} | getattr(self.trainer.strategy, "distributed_sampler_kwargs", {})
        data = self.samples(NUM_TRAIN, 1)
        in_order = DistributedSampler(data, **ranks, shuffle=False)
        return DataLoader(data, batch_size=GLOBAL_BATCH // ranks["num_replicas"], sampler=in_order)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.samples(NUM_VAL, 2), batch_size=2)


class Told(Block):
    """A block that is told which tokens are real."""

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Return what the block does to each token."""
        return super().forward(hidden)


def masked(mesh: DeviceMesh | None, stream: str, is_told: bool = True) -> Readings:
    """Readings of padded sequences, whose mask every process has for all tokens; told which samples it has or not."""
    model = Tokens()
    model.blocks = nn.ModuleList(Told() for _ in range(NUM_BLOCKS)).double()
    if mesh is not None:
        split(model, mesh["tensor_parallel"], stream)
    mask = torch.arange(TOKENS) < torch.arange(1, NUM_VAL + 1)[:, None] % TOKENS + 1

    def run(inputs: Tensor) -> Tensor:
        hidden = model.first(inputs)
        for block in model.blocks:
            hidden = block(hidden, attention_mask=mask)
        return hidden

    model.forward = run
    ranks = None if mesh is None or not is_told else DataParallelRank.of_mesh(mesh["data_parallel"])
    (inputs, _), quantities = sequences(NUM_VAL, 2).tensors, ["cost_of_identity", "kinetic_energy"]
    return measure_path(model, [inputs], quantities, layers=Told, data_parallel=ranks)


def masks(rank: int, size: int, folder: Path) -> tuple[Readings, str, list[list[str]]]:
    """Readings beside whole sequences, what is said beside pieces, and of `data_parallel`, forgotten or not."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    mesh = init_device_mesh("cpu", (1, size), mesh_dim_names=("data_parallel", "tensor_parallel"))
    with pytest.raises(ValueError, match="`padding_mask`") as error:
        masked(mesh, "pieces")
    said = []
    for is_told in (False, True):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = masked(mesh, "whole", is_told)
        said.append([str(one.message) for one in caught if "`data_parallel`" in str(one.message)])
    return found, str(error.value), said


class SplitNeurons(ParallelStyle):
    """Each process has some neurons of a leaky layer; representations are whole."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return distribute_module(module, device_mesh, self._split, self._enter, self._leave)

    @staticmethod
    def _split(name: str, module: nn.Module, mesh: DeviceMesh) -> None:
        for key, parameter in list(module.named_parameters(recurse=False)):
            module.register_parameter(key, nn.Parameter(distribute_tensor(parameter, mesh, [Shard(0)])))

    @staticmethod
    def _enter(module: nn.Module, inputs: tuple[Tensor, Tensor], mesh: DeviceMesh) -> tuple[Tensor, ...]:
        return tuple(DTensor.from_local(one, mesh, [Replicate()]) for one in inputs)

    @staticmethod
    def _leave(module: nn.Module, output: DTensor, mesh: DeviceMesh) -> Tensor:
        return output.redistribute(placements=[Replicate()]).to_local()


class SplitLeaky(LeakyResNetModule):
    """A Leaky ResNet whose neurons are split."""

    def configure_model(self) -> None:
        plan = {f"layers.{index}": SplitNeurons() for index in range(len(self.network.layers))}
        parallelize_module(self.network, self.device_mesh["tensor_parallel"], plan)
        for module in (*self.network.layers, self.network):
            fully_shard(module, mesh=self.device_mesh["data_parallel"])


class ByBlocks(Recorder):
    """Takes the step-sizes of the path that is trained, and how many rows each reading is of."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(trainer.strategy.reduce(outputs["loss"].detach()))
        self.step_sizes.append(find_leaky_path(pl_module).step_sizes.clone())
        self._keep("train")

    def _keep(self, stage: str) -> None:
        super()._keep(stage)
        readings = self.monitor.readings[stage]
        rows = torch.tensor([*readings.num_samples, *readings.samples_read])
        self.readings.setdefault(f"rows of {stage}", []).append({"rows": rows})


def fit(module: LightningModule, data: LightningDataModule, ranks: int, split_over: int, **reading: Any) -> Found:
    """Fit with so many data-parallel ranks, each of which splits its tensors over so many processes."""
    monitor = EnergyMonitor(**reading)
    recorder = ByBlocks(monitor)
    strategy = {"strategy": ModelParallelStrategy(ranks, split_over)} if ranks * split_over > 1 else {}
    callbacks = [monitor, StepSizeAdapter(every_n_steps=2, damping=0.5), recorder]
    make_trainer(ranks * split_over, callbacks, max_epochs=2, **strategy).fit(module, data)
    return recorder.found()


def fits(ranks: int, split_over: int) -> dict[str, Found]:
    """One fit for each stream, one that reads a part of the data set, and one of a Leaky ResNet."""
    is_split = ranks * split_over > 1
    tokens, leaky = (Split, SplitLeaky) if is_split else (Tokens, LeakyResNetModule)
    everything = {"quantities": QUANTITIES, "weight_decay": 0.1}
    few = {"quantities": ["cost_of_identity", "kinetic_energy"], "max_rows": 13}
    found = {one: fit(tokens(one), Ranked(sequences), ranks, split_over, **everything) for one in STREAMS}
    found["part"] = fit(tokens(), Ranked(sequences), ranks, split_over, **few)
    found["leaky"] = fit(make_module(leaky), Ranked(samples), ranks, split_over)
    return found


def split_fits(rank: int, size: int, folder: Path) -> dict[str, Found]:
    """Tensors are split over two processes."""
    return fits(size // 2, 2)
