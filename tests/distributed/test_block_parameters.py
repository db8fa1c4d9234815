"""Pontryagin's Hamiltonian over two real processes: measured, under DDP and with sharded parameters."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_leaky import EnergyMonitor, LeakyResNetModule, measure_path
from tests.distributed.collectives import counted_collectives
from tests.distributed.fits import NUM_TRAIN, Data, Sharded, make_module, make_trainer, samples
from tests.distributed.launch import launch

OF_BLOCKS = ("pontryagin_hamiltonian", "pontryagin_residual")


def measured(rank: int = 0, size: int = 1) -> dict[str, torch.Tensor]:
    """Readings of a data set of which the first of two processes has most and a third would have none."""
    rows = slice(None) if size == 1 else (slice(0, 20), slice(20, None))[rank]
    module, data = make_module(), samples(NUM_TRAIN, seed=1)
    batch = tuple(tensor[rows] for tensor in data.tensors)
    return measure_path(module, [batch], OF_BLOCKS, module.cost, weight_decay=0.1).quantities


def fit(size: int, cls: type[LeakyResNetModule] = LeakyResNetModule, **changes: Any) -> tuple[Any, int]:
    """Readings in training, and how many collectives the last of them took."""
    monitor = EnergyMonitor(quantities=OF_BLOCKS, on_validation=False)
    trainer = make_trainer(size, [monitor], **({"max_epochs": 2} | changes))
    calls: list[int] = []
    original = EnergyMonitor.on_before_optimizer_step

    def counted(*args: Any) -> None:
        with counted_collectives() as one:
            original(monitor, *args)
        calls.append(len(one))

    monitor.on_before_optimizer_step = counted
    trainer.fit(make_module(cls), Data())
    return monitor.readings["train"].quantities, calls[-1]


def work(rank: int, size: int, folder: Path) -> dict[str, Any]:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    found = {"measured": measured(rank, size), "ddp": fit(size)}
    strategy = ModelParallelStrategy(data_parallel_size=size, tensor_parallel_size=1)
    found["sharded"] = fit(size, Sharded, strategy=strategy)
    return found


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    return launch(work, 2, tmp_path_factory.mktemp("parameters"))


def test_measured_over_shards_they_are_of_the_whole(processes):
    for found in processes:
        torch.testing.assert_close(found["measured"], measured(), rtol=1e-9, atol=1e-12)


def test_in_training_they_are_of_the_batch_of_all_processes(processes):
    """Sharded parameters take one collective more."""
    expected, _ = fit(1)
    for found in processes:
        for case in ("ddp", "sharded"):
            torch.testing.assert_close(found[case][0], expected, rtol=1e-7, atol=1e-12)
        assert found["sharded"][1] == found["ddp"][1] + 1
