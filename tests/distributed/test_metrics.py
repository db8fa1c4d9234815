"""Over several real processes with uneven shards, most with an empty one, everything equals one process."""

import math

import pytest
import torch

from lightning_leaky.functional import RULES
from tests.distributed import workers
from tests.distributed.launch import launch


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def processes(request, tmp_path_factory):
    """What each of several processes finds."""
    return launch(workers.work, request.param, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("name", workers.METRICS)
def test_a_metric_over_processes_equals_one_process(processes, name):
    expected = workers.metric_value(name)
    for found in processes:
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-9)


def test_readings_by_hooks_equal_one_process_even_where_a_process_has_no_batch(processes):
    expected = workers.observed()
    for found in processes:
        torch.testing.assert_close(found["observed"], expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found["samples"], expected, rtol=1e-9, atol=1e-9)


def test_processes_choose_a_form_together(processes):
    """Also where some of them could keep their samples and others could not; records of one's own are read, too."""
    expected = workers.automatic(form="moments")
    assert all(found.keys() >= {record.key for record in workers.OWN} for found in expected.values())
    for found in processes:
        torch.testing.assert_close(found["automatic"], expected, rtol=1e-9, atol=1e-9)


def test_layers_are_found_and_split_alike_even_where_a_process_has_no_batch(processes):
    expected = workers.found()
    assert expected["segments"][-2:].tolist() == [2, 2]
    for found in processes:
        for name, values in expected.items():
            torch.testing.assert_close(found[name], values, rtol=1e-9, atol=1e-9)


def test_where_processes_find_different_layers_those_of_the_first_are_read(processes):
    """And nothing hangs: every process joins in the same collectives."""
    first = processes[0]
    assert first["names"] == ("blocks.0", "blocks.1", "blocks.2")
    for found in processes:
        assert found["names"] == first["names"]
        assert torch.equal(found["otherwise"], first["otherwise"])
    assert first["otherwise"].isfinite().all()


def test_the_same_part_of_a_data_set_is_read_and_its_layers_are_shared_out(processes):
    expected, rows, samples, num_layers = workers.thinned()
    assert num_layers == 5
    assert rows == (samples[0],) * 5
    assert 10 < samples[0] <= 40 < samples[1] == 300
    for found in processes:
        values, *numbers, factorised = found["thinned"]
        torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-12)
        assert numbers == [rows, samples]
        assert factorised <= math.ceil(num_layers / len(processes))


@pytest.mark.parametrize("rule", RULES)
def test_step_sizes_adapt_to_the_batches_of_all_processes(processes, rule):
    expected = workers.adapted_step_sizes(rule)
    first = processes[0]["step_sizes"][rule]
    torch.testing.assert_close(first, expected, rtol=1e-9, atol=0)
    assert float((first - 1 / workers.NUM_LAYERS).abs().max()) > 1e-3
    assert all(torch.equal(found["step_sizes"][rule], first) for found in processes)


def test_the_number_of_collectives_does_not_depend_on_the_number_of_layers(processes):
    for found in processes:
        for of_two_layers, of_twelve_layers in found["collectives"].values():
            assert 0 < of_two_layers == of_twelve_layers


def test_where_one_process_cannot_compare_none_adapts(processes):
    """A step-size that changed on some of them only would never be the same again."""
    for found in processes:
        assert len(found["complaining"].unique()) == 1
