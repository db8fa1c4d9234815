"""Fits with both callbacks that processes share: run by `launch`, or as a script by Lightning's own launchers.

`python -m tests.distributed.fits STRATEGY FOLDER` fits in two processes that the strategy starts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from lightning_leaky import EnergyMonitor, LeakyResNetModule, PathFigures, StepSizeAdapter
from tests.distributed.collectives import counted_collectives

NUM_TRAIN, NUM_VAL, NUM_TEST, GLOBAL_BATCH = 24, 10, 7, 12
# Validation samples of each process where they are streamed: uneven, and with an empty share.
STREAMS = {1: [10], 2: [10, 0], 3: [7, 0, 3], 4: [4, 1, 0, 5]}


def samples(num: int, seed: int) -> TensorDataset:
    """Inputs and targets in float64."""
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(*(torch.randn(num, width, dtype=torch.float64, generator=generator) for width in (3, 2)))


class Stream(IterableDataset):
    """The share of one process, without a length."""

    def __init__(self, rank: int, size: int) -> None:
        start = sum(STREAMS[size][:rank])
        self.share = range(start, start + STREAMS[size][rank])

    def __iter__(self) -> Iterator[Any]:
        data = samples(NUM_VAL, seed=2)
        return (data[index] for index in self.share)


class Data(LightningDataModule):
    """Batches whose union over the processes, and over micro-batches, is the batch of one process."""

    def __init__(self, streamed: bool = False, accumulated: int = 1) -> None:
        super().__init__()
        self.streamed, self.accumulated = streamed, accumulated

    def train_dataloader(self) -> DataLoader:
        data, size = samples(NUM_TRAIN, seed=1), self.trainer.world_size
        # The sampler that Lightning would put in shuffles.
        in_order = DistributedSampler(data, size, self.trainer.global_rank, shuffle=False)
        return DataLoader(data, batch_size=GLOBAL_BATCH // size // self.accumulated, sampler=in_order)

    def val_dataloader(self) -> DataLoader:
        if self.streamed:
            return DataLoader(Stream(self.trainer.global_rank, self.trainer.world_size), batch_size=3)
        return DataLoader(samples(NUM_VAL, seed=2), batch_size=2)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(samples(NUM_TEST, seed=3), batch_size=2)


class Sharded(LeakyResNetModule):
    """A module whose parameters `fully_shard` spreads over the processes."""

    def configure_model(self) -> None:
        """Shard each layer, and then what is left."""
        for module in (*self.network.layers, self.network):
            fully_shard(module, mesh=self.device_mesh["data_parallel"])


@dataclass
class Recorder(Callback):
    """What each process sees: losses, step-sizes and readings of each optimizer step, and readings of evaluations."""

    monitor: EnergyMonitor
    losses: list[Tensor] = field(default_factory=list)
    step_sizes: list[Tensor] = field(default_factory=list)
    readings: dict[str, list[dict[str, Tensor]]] = field(default_factory=dict)

    def on_train_start(self, trainer, pl_module):
        self.first_step = trainer.global_step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].detach().clone())
        if trainer.global_step > len(self.step_sizes) + self.first_step:
            self.step_sizes.append(pl_module.network.step_sizes.clone())
            self._keep("train")

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self._keep("validate")

    def on_test_end(self, trainer, pl_module):
        self._keep("test")

    def found(self) -> dict[str, Any]:
        steps = {"losses": torch.stack(self.losses), "step_sizes": torch.stack(self.step_sizes)}
        return {**steps, **self.readings}

    def _keep(self, stage: str) -> None:
        self.readings.setdefault(stage, []).append(self.monitor.readings[stage].quantities)


class Saver(Callback):
    """Writes down what a recorder has found, in the process that has found it."""

    def __init__(self, recorder: Recorder, folder: Path) -> None:
        self.recorder, self.folder = recorder, folder

    def on_fit_end(self, trainer, pl_module):
        torch.save(self.recorder.found(), self.folder / f"{trainer.global_rank}_of_{trainer.world_size}.pt")


def make_module(cls: type[LeakyResNetModule] = LeakyResNetModule, num_layers: int = 4) -> LeakyResNetModule:
    torch.manual_seed(0)
    module = cls(3, 2, width=6, num_layers=num_layers, effective_depth=2.0, weight_decay=0.1)
    return module.double()  # by itself: not every strategy has a precision of 64 bits


def make_trainer(size: int, callbacks: list[Callback], **changes: Any) -> Trainer:
    settings = {
        "accelerator": "cpu",
        "devices": size,
        "strategy": DDPStrategy(timeout=timedelta(seconds=60)) if size > 1 else "auto",
        "max_epochs": 5,
        "logger": False,
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(callbacks=callbacks, **(settings | changes))


def make_callbacks() -> tuple[EnergyMonitor, StepSizeAdapter, Recorder]:
    monitor = EnergyMonitor()
    return monitor, StepSizeAdapter(every_n_steps=2, damping=0.5), Recorder(monitor)


def fit(size: int, streamed: bool = False, accumulated: int = 1, **changes: Any) -> dict[str, Any]:
    """Fit, then test, and return what a process has seen."""
    *callbacks, recorder = make_callbacks()
    trainer = make_trainer(size, [*callbacks, recorder], accumulate_grad_batches=accumulated, **changes)
    module, data = make_module(), Data(streamed, accumulated)
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    return recorder.found()


def fits(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """One fit after another, each of which is to be that of one process."""
    # DDP itself broadcasts buffers before the first batch of an evaluation: a process without one would miss it.
    strategy = DDPStrategy(forward_sync_buffers=False) if size > 1 else "auto"
    return {
        "plain": fit(size),
        "accumulated": fit(size, accumulated=3 if size == 4 else 2),
        "streamed": fit(size, streamed=True, strategy=strategy),
    }


def drawn_fits(rank: int, size: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Fits with figures, and what a process has seen of each."""
    sharded = ModelParallelStrategy(data_parallel_size=size, tensor_parallel_size=1)
    found = {}
    for name, strategy, cls in (("ddp", "ddp", LeakyResNetModule), ("sharded", sharded, Sharded)):
        *callbacks, recorder = make_callbacks()
        logger = TensorBoardLogger(folder, name, "")
        figures = PathFigures(every_n_steps=2)
        make_trainer(size, [*callbacks, figures, recorder], strategy=strategy, logger=logger).fit(
            make_module(cls), Data()
        )
        found[name] = recorder.found()
    return found


def collectives(rank: int, size: int, folder: Path) -> dict[tuple[int, str], list[tuple[str, int]]]:
    """What is said during a fit, by the number of layers and the callback."""
    said = {}
    for num_layers in (3, 12):
        for who, callbacks in (("nobody", []), ("monitor", [EnergyMonitor()]), ("adapter", [StepSizeAdapter(2)])):
            trainer = make_trainer(size, callbacks)
            with counted_collectives() as said[num_layers, who]:
                trainer.fit(make_module(num_layers=num_layers), Data())
    return said


if __name__ == "__main__":
    strategy, root = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    *own, recorder = make_callbacks()
    logger = CSVLogger(root)
    trainer = make_trainer(2, [*own, recorder, Saver(recorder, root)], strategy=strategy, logger=logger)
    module = make_module()
    trainer.fit(module, Data())
    if trainer.is_global_zero:
        torch.save(module.network.step_sizes, root / "afterwards.pt")
