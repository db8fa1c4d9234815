"""Fits in one, two, three and four processes, under every strategy: the same readings and step-sizes."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.callbacks.helpers import rows_of, steps_with
from tests.callbacks.test_path_figures import FIGURES
from tests.distributed import fits
from tests.distributed.launch import launch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STAGES = ["train", "validate", "test"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process finds, that is no part of a distributed run."""
    return fits.fits(0, 1, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module", params=[2, 3, 4])
def together(request, tmp_path_factory):
    """What each of several processes finds."""
    return launch(fits.fits, request.param, tmp_path_factory.mktemp("together"))


def assert_same_readings(found, expected, stage, rtol=1e-9):
    assert len(found[stage]) == len(expected[stage]) > 0
    for reading, one in zip(found[stage], expected[stage], strict=True):
        assert reading.keys() == one.keys()
        for name, values in one.items():
            assert values.isfinite().all()
            torch.testing.assert_close(reading[name], values, rtol=rtol, atol=1e-12)


def assert_same_step_sizes(processes, expected):
    """The same bits on all processes at every step, and those of one process to 1e-6."""
    first = processes[0]["step_sizes"]
    assert all(torch.equal(found["step_sizes"], first) for found in processes)
    torch.testing.assert_close(first, expected["step_sizes"], rtol=0, atol=1e-6)
    assert len(first) == 10
    assert float((first[-1] - 0.25).abs().max()) > 1e-2


@pytest.mark.parametrize("case", ["plain", "accumulated", "streamed"])
def test_step_sizes_are_those_of_one_process(together, alone, case):
    assert_same_step_sizes([found[case] for found in together], alone[case])


@pytest.mark.parametrize("case", ["plain", "accumulated", "streamed"])
@pytest.mark.parametrize("stage", STAGES)
def test_readings_are_those_of_one_process(together, alone, case, stage):
    """Of all samples, each once: those that a sampler repeats do not count twice, an empty share adds nothing."""
    for found in together:
        assert_same_readings(found[case], alone[case], stage)


def test_the_first_process_draws_and_nobody_feels_it(alone, tmp_path):
    processes = launch(fits.drawn_fits, 2, tmp_path)
    for name in ("ddp", "sharded"):
        assert_same_step_sizes([found[name] for found in processes], alone["plain"])
        (file,) = (tmp_path / name).glob("events.out.*")
        events = EventAccumulator(str(file), size_guidance={"images": 0}).Reload()
        weights = {"layers/singular_values_of_W"}  # gathered for a picture they would be a collective of one process
        assert set(events.Tags()["images"]) == (FIGURES if name == "ddp" else FIGURES - weights)


def test_what_the_callbacks_say_does_not_grow_with_the_network(tmp_path):
    """And an adaptation says two numbers a layer."""
    for said in launch(fits.collectives, 2, tmp_path):
        of_monitor = [Counter(said[length, "monitor"]) - Counter(said[length, "nobody"]) for length in (3, 12)]
        assert 0 < of_monitor[0].total() == of_monitor[1].total()
        assert {name for name, _ in of_monitor[0]} == {"all_gather", "all_reduce", "barrier"}

        for length in (3, 12):  # 10 optimizer steps, of which every second one adapts
            of_adapter = Counter(said[length, "adapter"]) - Counter(said[length, "nobody"])
            assert of_adapter == {("all_reduce", 2 * length): 5, ("all_gather", 5): 1}  # once: how much a layer sums


@pytest.fixture(scope="module", params=["ddp", "ddp_fork", "ddp_spawn"])
def launched(request, tmp_path_factory):
    """A folder to which two processes have written that Lightning itself has started."""
    folder = tmp_path_factory.mktemp(request.param)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, "-m", "tests.distributed.fits", request.param, str(folder)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=120, capture_output=True)
    return folder


def test_whoever_starts_the_processes_finds_the_same(launched, alone):
    processes = [torch.load(launched / f"{rank}_of_2.pt") for rank in (0, 1)]
    assert_same_step_sizes(processes, alone["plain"])
    for found in processes:
        assert_same_readings(found, alone["plain"], "train")
        assert_same_readings(found, alone["plain"], "validate")
    assert torch.equal(torch.load(launched / "afterwards.pt"), processes[0]["step_sizes"][-1])


def test_logs_are_written_once(launched):
    (file,) = launched.rglob("metrics.csv")
    rows = rows_of(file.parent)
    assert steps_with(rows, "train/loss") == steps_with(rows, "hamiltonian/layer_01") == list(range(10))
    assert steps_with(rows, "val_cost_of_identity/min") == [1, 3, 5, 7, 9]
    assert steps_with(rows, "step_size/layer_04") == list(range(10))
