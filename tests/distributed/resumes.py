"""Fits that are resumed from checkpoints of every kind of moment, in one process or several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

from lightning_leaky import LeakyResNetModule, StepSizeAdapter, make_leaky
from tests.campaigns.fit import NUM_BATCHES, Batches
from tests.distributed.fits import NUM_VAL, Sharded, make_callbacks, make_module, make_trainer, samples

EPOCHS = 2
Found = dict[str, Any]


class Resumable(LightningDataModule):
    """Training data that know where they are in an epoch."""

    def train_dataloader(self) -> Batches:
        return Batches(self.trainer.global_rank, self.trainer.world_size)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(*(tensor.float() for tensor in samples(NUM_VAL, seed=2).tensors)), batch_size=5)


def fit(size: int, folder: Path, accumulated: int = 1, sharded: bool | None = None, **resume: Any) -> Found:
    """Fit in float32 with a checkpoint at every optimizer step; `sharded` says whether those are of shards."""
    *callbacks, recorder = make_callbacks()
    strategy: dict[str, Strategy] = {}
    if sharded is not None:
        strategy["strategy"] = ModelParallelStrategy(size, 1, save_distributed_checkpoint=sharded)
    checkpoints = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = make_trainer(
        size,
        [*callbacks, recorder, checkpoints],
        enable_checkpointing=True,
        accumulate_grad_batches=accumulated,
        max_epochs=EPOCHS,
        **strategy,
    )
    module = make_module(LeakyResNetModule if sharded is None else Sharded).float()
    trainer.fit(module, Resumable(), **resume)
    return recorder.found()


def resumed(size: int, folder: Path, steps: Sequence[int], **settings: Any) -> dict[int, Found]:
    """What is found by a run from the start, number 0, and by those that are resumed from its checkpoints."""
    whole = folder / "whole"
    found = {0: fit(size, whole, **settings)}
    for step in steps:
        again = folder / f"from_{step}"
        found[step] = fit(size, again, ckpt_path=whole / f"step={step}.ckpt", weights_only=False, **settings)
    return found


def work(rank: int, size: int, folder: Path) -> dict[str, dict[int, Found]]:
    """From the middle of an epoch, before and after an adaptation, and from the end of an epoch."""
    torch.set_num_threads(1)
    return {
        "ddp": resumed(size, folder / "ddp", [3, 4, NUM_BATCHES]),
        "accumulated": resumed(size, folder / "accumulated", [3, 4], accumulated=2),
        "shards": resumed(size, folder / "shards", [3, 4], sharded=True),
        "gathered": resumed(size, folder / "gathered", [4], sharded=False),
    }


class Residual(torch.nn.Module):
    """A block of a network that is nothing special."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(6, 6)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return h + relu(Wh)."""
        return hidden + torch.relu(self.linear(hidden))


class Made(LightningModule):
    """A network made leaky at L̃ = 0, whose state says nothing of step-sizes until they adapt."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        blocks = [Residual() for _ in range(4)]
        self.network = torch.nn.Sequential(torch.nn.Linear(3, 6), *blocks, torch.nn.Linear(6, 2))
        make_leaky(self, Residual)

    def configure_model(self) -> None:
        for module in (*self.leaky_steps.layers, self.network):
            fully_shard(module, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return (self.network(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def made_leaky(rank: int, size: int, folder: Path) -> list[torch.Tensor]:
    """Step-sizes that have adapted, and as a sharded checkpoint brings them back where no callback is."""
    found = []
    for callbacks, epochs, resume in (([StepSizeAdapter(1)], 1, {}), ([], 1, {"ckpt_path": folder / "sharded.ckpt"})):
        trainer = make_trainer(size, callbacks, max_epochs=epochs, strategy=ModelParallelStrategy(size, 1))
        module = Made()
        trainer.fit(module, Resumable(), weights_only=False, **resume)
        found.append(module.leaky_steps.step_sizes.clone())
        if not resume:
            trainer.save_checkpoint(folder / "sharded.ckpt")
    return found
