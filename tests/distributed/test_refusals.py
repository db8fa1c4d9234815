"""What several processes cannot read is refused at the start, by all of them, or left out with a warning."""

import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.utils.data import DataLoader, TensorDataset

from lightning_leaky import EnergyMonitor, StepSizeAdapter
from tests.distributed.fits import Data, Sharded, make_module, make_trainer
from tests.distributed.launch import launch


def split_tensors(rank: int, size: int, folder: Path) -> list[str]:
    """Start where tensors may be split over the processes, and return what each callback says."""
    said = []
    for callback in (EnergyMonitor(), StepSizeAdapter()):
        trainer = make_trainer(size, [callback], strategy=ModelParallelStrategy(1, tensor_parallel_size=size))
        with pytest.raises(ValueError, match="`strategy`") as error:
            trainer.fit(make_module(Sharded), Data())
        said.append(str(error.value))
    return said


def test_tensor_parallelism_is_refused_by_all_processes(tmp_path):
    for of_monitor, of_adapter in launch(split_tensors, 2, tmp_path):
        assert "EnergyMonitor can follow, got ModelParallelStrategy: with tensor_parallel_size > 1" in of_monitor
        assert "StepSizeAdapter can follow" in of_adapter


class Lacking(Data):
    """Lets the last process have no validation batch, and says so."""

    def __init__(self) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def val_dataloader(self) -> DataLoader:
        num = 0 if self.trainer.global_rank == self.trainer.world_size - 1 else 4
        return DataLoader(TensorDataset(torch.zeros(num, 3), torch.zeros(num, 2)), sampler=range(num))


def lacking(rank: int, size: int, folder: Path) -> tuple[set[str], list[str]]:
    """Fit where a process skips validation; return what was read and what was warned of."""
    monitor = EnergyMonitor()
    strategy = DDPStrategy(forward_sync_buffers=False)
    trainer = make_trainer(size, [monitor], strategy=strategy, use_distributed_sampler=False, max_epochs=2)
    module = make_module()
    module.validation_step = lambda *args: None  # with metrics of its own, the module would wait for the other too
    module.on_validation_epoch_end = lambda: None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, Lacking())
    return set(monitor.readings), [str(one.message) for one in caught if "EnergyMonitor reads no" in str(one.message)]


def test_where_a_process_may_skip_validation_none_reads_it(tmp_path):
    """It would be waited for in vain."""
    (first, said), (second, _) = launch(lacking, 2, tmp_path)
    assert first == second == {"train"}
    assert len(said) == 1
    assert "allow_zero_length_dataloader_with_multiple_devices" in said[0]
