"""A `data_parallel` that cannot be right is said: forgotten beside split tensors, or given beside DDP."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_leaky.reading import checks
from lightning_leaky.reading.checks import ranks_doubt


@pytest.fixture(autouse=True)
def four_processes(monkeypatch):
    monkeypatch.setattr(checks, "num_processes", lambda: 4)


def model_of(*placements, fully=False, ddp=None):
    """A model whose parameters have placements on a mesh, "S" for sharded and "R" for replicated."""
    kind = type("FSDPModule" if fully else "Plain", (nn.Linear,), {})
    model = kind(2, 2)
    for one, letters in zip(model.parameters(), placements, strict=False):
        one.placements = [SimpleNamespace(is_replicate=lambda letter=letter: letter == "R") for letter in letters]
    if ddp:
        wrapper = type("DistributedDataParallel", (nn.Module,), {})()
        wrapper.module, wrapper.process_group = model, SimpleNamespace(size=lambda: ddp)
        return wrapper
    return model


@pytest.mark.parametrize(
    ("placements", "fully"),
    [(["S"], False), (["RS"], False), (["SS"], True), (["S", "SS"], True)],
    ids=["tensors", "tensors beside copies", "tensors and fully_shard", "some tensors and fully_shard"],
)
def test_a_forgotten_rank_is_said(placements, fully):
    model = model_of(*placements, fully=fully)
    assert "`data_parallel` is None" in ranks_doubt(model, None)
    assert ranks_doubt(model, SimpleNamespace(size=2)) is None


@pytest.mark.parametrize(
    ("placements", "fully"), [([], False), (["R"], False), (["S"], True), (["RS"], True)], ids=lambda one: str(one)
)
def test_data_parallelism_alone_is_not(placements, fully):
    assert ranks_doubt(model_of(*placements, fully=fully), None) is None


def test_ddp_over_more_processes_than_ranks_is_said():
    assert "`data_parallel` has 1 ranks" in ranks_doubt(model_of(ddp=4), SimpleNamespace(size=1))
    assert ranks_doubt(model_of(ddp=2), SimpleNamespace(size=2)) is None
    assert ranks_doubt(model_of(ddp=4), None) is None


def test_one_process_has_no_doubt(monkeypatch):
    monkeypatch.setattr(checks, "num_processes", lambda: 1)
    assert ranks_doubt(model_of("S"), None) is None


def test_torch_calls_its_placements_so():
    from torch.distributed.tensor import Replicate, Shard

    assert Replicate().is_replicate()
    assert not Shard(0).is_replicate()
    assert torch.distributed.fsdp.FSDPModule.__name__ == "FSDPModule"
