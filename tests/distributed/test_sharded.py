"""Parameters that `fully_shard` spreads over processes in any way: the readings and step-sizes of one process."""

import pytest
import torch

from tests.distributed import fits, sharded
from tests.distributed.launch import launch
from tests.distributed.test_fits import assert_same_readings, assert_same_step_sizes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone():
    """What one process finds that shards nothing."""
    return fits.fit(1)


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What each of two processes finds by each policy, and each of four where two have copies of the other's shards."""
    two, four = (launch(sharded.fits, size, tmp_path_factory.mktemp("sharded")) for size in (2, 4))
    return {policy: [found[policy] for found in two] for policy in sharded.POLICIES} | {
        "hybrid": [found["hybrid"] for found in four]
    }


@pytest.mark.parametrize("policy", ["kept", "resharded", "offloaded", "checkpointed", "compiled", "hybrid"])
def test_shards_change_nothing(processes, alone, policy):
    assert_same_step_sizes(processes[policy], alone)
    for found in processes[policy]:
        for stage in ("train", "validate"):
            assert_same_readings(found, alone, stage)


def test_flat_parameters_change_nothing_that_is_read(tmp_path_factory):
    """FSDP1: no weights are read, and the L2 term acts all the same."""
    alone = sharded.flat_fit()
    of_weights = {"hamiltonian", "criticality_residual"}
    expected = {
        stage: [{key: one for key, one in found.items() if key not in of_weights} for found in alone[stage]]
        for stage in ("train", "validate")
    }
    for size in (2, 4):
        processes = launch(sharded.flat_fits, size, tmp_path_factory.mktemp("flat"))
        for name in processes[0]:
            assert_same_step_sizes([found[name] for found in processes], alone)
            for found in processes:
                for stage in expected:
                    assert_same_readings(found[name], expected, stage, rtol=1e-4)  # in float32


def test_narrow_parameters_are_read_as_they_act(processes, alone, tmp_path):
    """The first reading, before rounded steps drive the weights apart, is that of one process in bfloat16."""
    (narrow,) = (found["narrow"] for found in launch(sharded.fits, 1, tmp_path))
    first, second = processes["narrow"]
    assert torch.equal(first["step_sizes"], second["step_sizes"])
    for found in (first, second):
        for name in ("cost_of_identity", "kinetic_energy", "potential_energy"):
            values = found["train"][0][name]
            torch.testing.assert_close(values, narrow["train"][0][name], rtol=1e-5, atol=0)
            assert float((values / alone["train"][0][name] - 1).abs().max()) > 1e-4
        start = {"train": found["train"][:1]}, {"train": narrow["train"][:1]}
        assert_same_readings(*start, "train", rtol=1e-2)  # gradients are in bfloat16 too
