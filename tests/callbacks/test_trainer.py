"""What the callbacks ask of a trainer: which samples are repeats, and which strategies can be followed."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch.loops.fetchers import _DataLoaderIterDataFetcher
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, TensorDataset

from lightning_leaky import EnergyMonitor
from lightning_leaky.callbacks._trainer import fresh_samples


def sampler_of(kind, data, size, rank, shuffle):
    if kind is DistributedSamplerWrapper:
        return kind(RandomSampler(data, generator=torch.Generator().manual_seed(0)), size, rank, shuffle=False)
    return kind(data, size, rank, shuffle=shuffle)


@given(
    num_samples=st.integers(1, 20),
    size=st.integers(1, 5),
    batch_size=st.integers(1, 7),
    shuffle=st.booleans(),
    kind=st.sampled_from([DistributedSampler, DistributedSamplerWrapper, UnrepeatedDistributedSampler]),
)
def test_each_sample_is_fresh_once(num_samples, size, batch_size, shuffle, kind):
    """Over all processes and batches, whatever a sampler repeats."""
    assume(kind is not UnrepeatedDistributedSampler or num_samples >= size)  # it wants a sample for each process
    data = TensorDataset(torch.arange(num_samples))
    fresh = []
    for rank in range(size):
        loader = DataLoader(data, batch_size, sampler=sampler_of(kind, data, size, rank, shuffle))
        loop = SimpleNamespace(_combined_loader=CombinedLoader([loader], "sequential"))
        for batch_idx, (numbers,) in enumerate(loader):
            mask = fresh_samples(SimpleNamespace(_evaluation_loop=loop), batch_idx, 0)
            fresh += (numbers if mask is None else numbers[mask]).tolist()
            assert mask is None or len(mask) == len(numbers)
    assert sorted(fresh) == list(range(num_samples))


@pytest.mark.parametrize(
    ("mode", "kind", "in_order", "fetcher", "expected"),
    [
        ("sequential", DistributedSampler, True, None, [True, False]),
        ("max_size_cycle", DistributedSampler, True, None, None),
        ("sequential", type("Own", (DistributedSampler,), {}), True, None, None),
        ("sequential", DistributedSampler, False, None, None),
        ("sequential", DistributedSampler, True, _DataLoaderIterDataFetcher(), None),
    ],
)
def test_where_the_order_is_not_known_all_samples_are_read(mode, kind, in_order, fetcher, expected):
    data = TensorDataset(torch.arange(3))
    loader = DataLoader(data, 2, sampler=kind(data, 2, 1), in_order=in_order)
    loop = SimpleNamespace(_combined_loader=CombinedLoader([loader], mode), _data_fetcher=fetcher)
    mask = fresh_samples(SimpleNamespace(_evaluation_loop=loop), 0, 0)
    assert (mask if mask is None else mask.tolist()) == expected


def strategy_named(name):
    return type(name, (SingleDeviceStrategy,), {})(torch.device("cpu"))


def test_of_flat_parameters_there_is_no_residual(make_module, make_data, make_trainer):
    monitor = EnergyMonitor()
    make_trainer(monitor, strategy=strategy_named("FSDPStrategy")).fit(make_module(), datamodule=make_data())
    assert "cost_of_identity" in monitor.readings["train"].quantities
    assert "criticality_residual" not in monitor.readings["train"].quantities
    trainer = make_trainer(EnergyMonitor(quantities=["criticality_residual"]), strategy=strategy_named("FSDPStrategy"))
    with pytest.raises(ValueError, match="under FSDP1"):
        trainer.fit(make_module(), datamodule=make_data())
