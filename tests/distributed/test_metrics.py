"""Over two and three real processes with uneven shards, one of them empty, everything equals one process."""

import multiprocessing
import time

import pytest
import torch
import torch.multiprocessing as mp

from tests.distributed import workers

TIMEOUT = 120


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results by number of processes and rank; an error, never a skip, where the processes do not start or finish."""
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.set_forkserver_preload([workers.__name__])  # imports once, not once a process
    processes = mp.start_processes(workers.work, (str(folder),), nprocs=3, join=False, start_method="forkserver")
    deadline = time.monotonic() + TIMEOUT
    while not processes.join(timeout=1):
        if time.monotonic() > deadline:
            for process in processes.processes:
                process.kill()
            pytest.fail(f"The processes did not finish within {TIMEOUT} s.")
    return {size: [torch.load(folder / f"{rank}_of_{size}.pt") for rank in range(size)] for size in (2, 3)}


@pytest.mark.parametrize("name", workers.METRICS)
@pytest.mark.parametrize("world_size", [2, 3])
def test_a_metric_over_processes_equals_one_process(results, world_size, name):
    expected = workers.metric_value(name)
    for found in results[world_size]:
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("world_size", [2, 3])
def test_readings_by_hooks_equal_one_process_even_where_a_process_has_no_batch(results, world_size):
    expected = workers.observed()
    for found in results[world_size]:
        torch.testing.assert_close(found["observed"], expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found["samples"], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("world_size", [2, 3])
def test_layers_are_found_and_split_alike_even_where_a_process_has_no_batch(results, world_size):
    expected = workers.found()
    assert expected["segments"][-2:].tolist() == [2, 2]
    for found in results[world_size]:
        for name, values in expected.items():
            torch.testing.assert_close(found[name], values, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("world_size", [2, 3])
def test_where_processes_find_different_layers_those_of_the_first_are_read(results, world_size):
    """And nothing hangs: every process joins in the same collectives."""
    first = results[world_size][0]
    assert first["names"] == ("blocks.0", "blocks.1", "blocks.2")
    for found in results[world_size]:
        assert found["names"] == first["names"]
        assert torch.equal(found["otherwise"], first["otherwise"])
    assert first["otherwise"].isfinite().all()


@pytest.mark.parametrize("world_size", [2, 3])
def test_step_sizes_adapt_to_the_batches_of_all_processes(results, world_size):
    expected = workers.adapted_step_sizes()
    first = results[world_size][0]["step_sizes"]
    torch.testing.assert_close(first, expected, rtol=1e-9, atol=0)
    assert float((first - 1 / workers.NUM_LAYERS).abs().max()) > 1e-3
    assert all(torch.equal(found["step_sizes"], first) for found in results[world_size])


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_number_of_collectives_does_not_depend_on_the_number_of_layers(results, world_size):
    for found in results[world_size]:
        of_two_layers, of_twelve_layers = found["collectives"]
        assert 0 < of_two_layers == of_twelve_layers
