"""A training that goes on in another number of processes: in 2, then in 1, then in 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_leaky import EnergyMonitor, LeakyResNetModule, StepSizeAdapter
from tests.campaigns.settings import NUM_BATCHES, Batches
from tests.distributed.fits import NUM_VAL, Data, Recorder, Sharded, make_module, make_trainer, samples

GLOBAL_BATCH, EPOCHS = 12, 2
STEPS = EPOCHS * NUM_BATCHES
# Which optimizer steps each number of processes takes: it stops in the middle of an epoch, between two adaptations.
PHASES = {2: (0, 7), 1: (7, 14), 3: (14, STEPS)}
CASES = ("ddp", "sharded")


class Shares(Batches):
    """Batches of 12 in float64, of which every process has as many samples; where they are is the same for all."""

    def __init__(self, rank: int, processes: int) -> None:
        super().__init__(rank, processes)
        data = samples(NUM_BATCHES * GLOBAL_BATCH, seed=1)
        self.inputs, self.targets = data.tensors

    def batch(self, position: int) -> list[Tensor]:
        order = torch.randperm(len(self.inputs), generator=torch.Generator().manual_seed(self.epoch))
        rows = order[position * GLOBAL_BATCH :][:GLOBAL_BATCH][self.rank :: self.setting.processes]
        return [self.inputs[rows], self.targets[rows]]


class Resumable(Data):
    """Training data that know where they are, and a validation set that no number of processes divides."""

    def train_dataloader(self) -> Shares:
        return Shares(self.trainer.global_rank, self.trainer.world_size)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(samples(NUM_VAL, seed=2), batch_size=2)


class StoppedError(Exception):
    """Raised on purpose."""


class Stop(Callback):
    """Ends a run after an optimizer step, whose checkpoint has been written."""

    def __init__(self, last: int) -> None:
        self.last = last

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.last:
            raise StoppedError


def fit(size: int, folder: Path, case: str = "ddp", begin: int = 0, end: int = STEPS) -> dict[str, Any]:
    """Some optimizer steps of the training, from the checkpoint of those before them."""
    monitor, adapter = EnergyMonitor(), StepSizeAdapter(every_n_steps=3, damping=0.5)
    recorder = Recorder(monitor)
    checkpoints = ModelCheckpoint(folder / case, "{step}", every_n_train_steps=1, save_top_k=-1)
    is_sharded = case == "sharded"
    strategy = {"strategy": ModelParallelStrategy(size, 1)} if is_sharded else {}
    trainer = make_trainer(
        size,
        [monitor, adapter, recorder, checkpoints, Stop(end)],
        enable_checkpointing=True,
        max_epochs=EPOCHS,
        val_check_interval=3,
        num_sanity_val_steps=0,
        **strategy,
    )
    module = make_module(Sharded if is_sharded else LeakyResNetModule)
    resume = {"ckpt_path": folder / case / f"step={begin}.ckpt"} if begin else {}
    if end < STEPS:
        with pytest.raises(StoppedError):
            trainer.fit(module, Resumable(), weights_only=False, **resume)
    else:
        trainer.fit(module, Resumable(), weights_only=False, **resume)
    state = adapter.state_dict()
    return recorder.found() | {"counter": state["num_steps"], "master": state["step_sizes"]}


def work(rank: int, size: int, folder: Path) -> dict[str, dict[str, Any]]:
    """The phase of this number of processes."""
    return {case: fit(size, folder, case, *PHASES[size]) for case in CASES}
