"""A run that is resumed in another number of processes (2, then 1, then 3) is the run of one process."""

import pytest
import torch

from tests.distributed import elastic
from tests.distributed.launch import launch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process finds from the first step to the last."""
    return elastic.fit(1, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def phases(tmp_path_factory):
    """What each process of each phase finds."""
    folder = tmp_path_factory.mktemp("elastic")
    return [launch(elastic.work, size, folder) for size in elastic.PHASES]


def nearly_the_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", elastic.CASES)
def test_losses_are_those_of_one_process(phases, alone, case):
    """The mean over the processes, because all have as many samples."""
    losses = [torch.stack([found[case]["losses"] for found in processes]).mean(0) for processes in phases]
    nearly_the_same(torch.cat(losses), alone["losses"])


@pytest.mark.parametrize("case", elastic.CASES)
@pytest.mark.parametrize("stage", ["train", "validate"])
def test_readings_are_those_of_one_process(phases, alone, case, stage):
    for ranks in ((0, 0, 0), (1, 0, 1), (0, 0, 2)):
        readings = [one for rank, processes in zip(ranks, phases, strict=True) for one in processes[rank][case][stage]]
        assert len(readings) == len(alone[stage]) == (elastic.STEPS if stage == "train" else 6)
        for reading, expected in zip(readings, alone[stage], strict=True):
            assert reading.keys() == expected.keys()
            for name, values in expected.items():
                nearly_the_same(reading[name], values)


@pytest.mark.parametrize("case", elastic.CASES)
def test_step_sizes_follow(phases, alone, case):
    """The same bits on all processes, the buffer, the master and the counter of the adapter."""
    assert float((alone["step_sizes"][-1] - 0.25).abs().max()) > 1e-2
    for processes, (_, end) in zip(phases, elastic.PHASES.values(), strict=True):
        first = processes[0][case]
        for found in (one[case] for one in processes):
            assert found["counter"] == end
            assert torch.equal(found["master"], first["master"])
            assert torch.equal(found["step_sizes"], first["step_sizes"])
            assert torch.equal(found["master"], found["step_sizes"][-1])
    nearly_the_same(torch.cat([processes[0][case]["step_sizes"] for processes in phases]), alone["step_sizes"])
