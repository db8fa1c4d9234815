"""Distributed checkpoints of leaky models at L̃ = 0: step-sizes come back in any number of processes and in one file."""

import runpy
import sys

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from tests.distributed import checkpoints
from tests.distributed.launch import launch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def saved(folder):
    """What two processes have saved, by kind of model."""
    first, second = launch(checkpoints.save, 2, folder)
    assert torch.equal(first["Lightning"]["step_sizes"], second["Lightning"]["step_sizes"])
    assert float((first["Lightning"]["step_sizes"] - 0.25).abs().max()) > 1e-3
    return first


def assert_same(found, expected):
    """Step-sizes to the last bit; outputs to the order of sums."""
    assert found.keys() == expected.keys()
    assert torch.equal(found["step_sizes"], expected["step_sizes"])
    if "outputs" in expected:
        torch.testing.assert_close(found["outputs"], expected["outputs"])


@pytest.mark.parametrize("size", [1, 3])
def test_other_numbers_of_processes_and_other_wrappers_read_it(saved, folder, size):
    for found in launch(checkpoints.load, size, folder):
        assert len(found) == 3 * 3 * (3 + 2) + 1
        for case, loaded in found.items():
            assert_same(loaded, saved[case.partition(":")[0]])


@pytest.mark.parametrize("wrapper", checkpoints.WRAPPERS)
@pytest.mark.parametrize("kind", checkpoints.KINDS)
def test_one_file_is_a_state_dict(saved, folder, tmp_path, kind, wrapper):
    dcp_to_torch_save(folder / f"{kind}, {wrapper}", tmp_path / "one.pt")
    model = checkpoints.made(kind, seed=1)
    model.load_state_dict(torch.load(tmp_path / "one.pt"))
    assert_same(checkpoints.content(model), saved[kind])


@pytest.mark.parametrize("kind", checkpoints.KINDS)
def test_a_process_alone_asks_for_the_step_sizes_by_name(saved, folder, kind):
    """Outside torch.distributed the state of a new model has none, so that it is that of the original."""
    model = checkpoints.made(kind, seed=1)
    (name,) = (name for name, _ in model.named_buffers())
    state = get_model_state_dict(model) | {name: checkpoints.path_of(model).step_sizes}
    dcp.load(state, checkpoint_id=folder / f"{kind}, sharded")
    model.load_state_dict(state)
    assert_same(checkpoints.content(model), saved[kind])


def test_lightning_consolidates_its_folder(saved, folder, tmp_path, monkeypatch):
    output = tmp_path / "consolidated.ckpt"
    monkeypatch.setattr(sys, "argv", ["", str(folder / "Lightning"), "--output_file", str(output)])
    runpy.run_module("lightning.fabric.utilities.consolidate_checkpoint", run_name="__main__")
    module = checkpoints.Made()
    module.load_state_dict(torch.load(output, weights_only=False)["state_dict"])
    assert_same({"step_sizes": module.leaky_steps.step_sizes}, saved["Lightning"])
