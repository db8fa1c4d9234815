"""A run that is resumed, wherever it was stopped, is the run that was not: losses, step-sizes and readings."""

import pytest
import torch

from tests.campaigns.fit import NUM_BATCHES
from tests.distributed import resumes
from tests.distributed.launch import launch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What each of two processes finds."""
    return launch(resumes.work, 2, tmp_path_factory.mktemp("resumes"))


def assert_same_ends(found, step, same):
    """What a run found that was resumed after an optimizer step is the end of what the whole one found."""
    whole, again = found[0], found[step]
    assert len(again["step_sizes"]) == len(whole["step_sizes"]) - step > 0
    assert float((whole["step_sizes"][-1] - 0.25).abs().max()) > 1e-2
    same(again["step_sizes"], whole["step_sizes"][step:])
    same(again["losses"], whole["losses"][-len(again["losses"]) :])
    assert len(again["train"]) == len(again["step_sizes"])
    for stage in ("train", "validate"):
        for reading, expected in zip(again[stage], whole[stage][-len(again[stage]) :], strict=True):
            assert reading.keys() == expected.keys()
            for name, values in expected.items():
                same(reading[name], values)


def same_bits(tensor, other):
    assert torch.equal(tensor, other)


def nearly_the_same(tensor, other):
    torch.testing.assert_close(tensor, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("accumulated", [1, 2, 3])
def test_one_process_resumes_anywhere(tmp_path, accumulated):
    """In the middle of an epoch, between two adaptations, at the end of an epoch."""
    steps = range(1, resumes.EPOCHS * -(-NUM_BATCHES // accumulated))
    found = resumes.resumed(1, tmp_path, steps, accumulated=accumulated)
    for step in steps:
        assert_same_ends(found, step, same_bits)


@pytest.mark.parametrize("case", ["ddp", "accumulated"])
def test_ddp_resumes_to_the_same_bits(processes, case):
    for found in processes:
        for step in set(found[case]) - {0}:
            assert_same_ends(found[case], step, same_bits)


@pytest.mark.parametrize("case", ["shards", "gathered"])
def test_sharded_parameters_resume(processes, case):
    for found in processes:
        for step in set(found[case]) - {0}:
            assert_same_ends(found[case], step, nearly_the_same)


def test_a_sharded_checkpoint_brings_step_sizes_back_without_callbacks(tmp_path):
    for adapted, loaded in launch(resumes.made_leaky, 2, tmp_path):
        assert float((adapted - 0.25).abs().max()) > 1e-3
        assert torch.equal(loaded, adapted)
