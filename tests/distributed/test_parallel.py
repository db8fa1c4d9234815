"""Tensors and sequences split over processes: the readings and step-sizes of one process."""

import pytest
import torch

from tests.distributed import parallel
from tests.distributed.launch import launch
from tests.distributed.test_fits import assert_same_readings

pytestmark = pytest.mark.slow

CASES = [*parallel.STREAMS, "part", "leaky"]


@pytest.fixture(scope="module")
def alone():
    """What one process finds."""
    return parallel.fits(1, 1)


@pytest.fixture(scope="module", params=[2, 4])
def split(request, tmp_path_factory):
    """What each process finds: one data-parallel rank of two processes, and two such ranks."""
    return launch(parallel.split_fits, request.param, tmp_path_factory.mktemp("split"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stage", ["train", "validate"])
def test_readings_are_those_of_one_process(split, alone, case, stage):
    """Samples that several processes have count once; pieces of sequences add up."""
    for found in split:
        assert_same_readings(found[case], alone[case], stage)
        assert_same_readings(found[case], alone[case], f"rows of {stage}")


@pytest.mark.parametrize("case", CASES)
def test_step_sizes_are_the_same_bits_on_all_processes(split, alone, case):
    first = split[0][case]["step_sizes"]
    assert all(torch.equal(found[case]["step_sizes"], first) for found in split)
    torch.testing.assert_close(first, alone[case]["step_sizes"], rtol=0, atol=1e-9)
    assert float((first[-1] - 0.25).abs().max()) > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_of_one_process(split, alone, case):
    for found in split:
        torch.testing.assert_close(found[case]["losses"], alone[case]["losses"], rtol=1e-9, atol=0)


def test_a_mask_of_whole_sequences_is_not_taken_for_one_of_pieces(tmp_path):
    alone = parallel.masked(None, "whole")
    assert 0 < alone.num_samples[0] < parallel.NUM_VAL * parallel.TOKENS
    for rank, (found, said, of_ranks) in enumerate(launch(parallel.masks, 2, tmp_path)):
        assert found.num_samples == alone.num_samples
        for key, values in alone.quantities.items():
            torch.testing.assert_close(found[key], values, rtol=1e-9, atol=0)
        assert "must have shape (10, 2), one entry for each position, got (10, 4)" in said
        forgotten, told = of_ranks
        assert (len(forgotten), told) == (1 - rank, [])  # the first process speaks
