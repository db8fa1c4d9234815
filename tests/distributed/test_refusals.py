"""What several processes cannot read is refused at the start, by all of them, or left out with a warning."""

import warnings
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.utils.data import DataLoader, TensorDataset

from lightning_leaky import EnergyMonitor, LeakyResNet, StepSizeHook
from tests.distributed.fits import Data, make_module, make_trainer
from tests.distributed.launch import launch

pytestmark = pytest.mark.slow


SHARDED = {
    "FSDP1": partial(FullyShardedDataParallel, device_id=torch.device("cpu"), use_orig_params=True),
    "FSDP1, flat parameters": partial(FullyShardedDataParallel, device_id=torch.device("cpu")),
    "FSDP2": lambda network: fully_shard(network, mesh=init_device_mesh("cpu", (dist.get_world_size(),))),
}


def scaled(rank: int, size: int, folder: Path) -> dict[str, str]:
    """Ask for scaled gradients of sharded networks; return what is said of each."""
    said = {}
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for name, shard in SHARDED.items():
        network = LeakyResNet(3, 2, width=6, num_layers=3, effective_depth=2.0)
        parameters = shard(network).parameters()
        hook = StepSizeHook(network, scale_gradients=True)
        with pytest.raises(ValueError, match="`scale_gradients`") as error:
            hook.attach(torch.optim.SGD(parameters, lr=0.1))
        said[name] = f"{error.value} Attached: {hook.is_attached}"
    dist.destroy_process_group()
    return said


def test_gradients_of_sharded_parameters_are_not_left_unscaled_in_silence(tmp_path):
    """Hooks of a parameter that FSDP has sharded or flattened are not called."""
    for said in launch(scaled, 2, tmp_path):
        assert said.keys() == SHARDED.keys()
        for of_one in said.values():
            assert "must be False for sharded parameters, got True" in of_one
            assert of_one.endswith("Attached: False")


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
