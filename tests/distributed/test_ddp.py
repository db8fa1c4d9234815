"""Lightning's ddp on two real processes with both callbacks: the same step-sizes, readings and logs as on one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.callbacks.helpers import rows_of, steps_with
from tests.distributed.fit import fit

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes have written; an error, never a skip, where they do not start or finish."""
    found = tmp_path_factory.mktemp("ddp")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "MASTER_ADDR": "127.0.0.1"}
    subprocess.run(
        [sys.executable, "-m", "tests.distributed.fit", str(found)],
        cwd=ROOT,
        env=environment,
        check=True,
        timeout=120,
        capture_output=True,
    )
    return found


@pytest.fixture(scope="module")
def processes(folder):
    return [torch.load(folder / f"rank_{rank}.pt") for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("alone"), devices=1)


def test_step_sizes_are_the_same_bits_on_both_processes(processes):
    assert [found["rank"] for found in processes] == [0, 1]
    assert torch.equal(processes[0]["step_sizes"], processes[1]["step_sizes"])


def test_step_sizes_are_those_of_one_process(processes, alone):
    assert float((alone["step_sizes"] - 0.25).abs().max()) > 1e-3
    torch.testing.assert_close(processes[0]["step_sizes"], alone["step_sizes"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("stage", ["train", "validate"])
def test_readings_are_those_of_one_process(processes, alone, stage):
    """The same on both processes, over all samples; the momenta are of the mean over all processes."""
    for found in processes:
        assert set(found["readings"][stage]) == set(alone["readings"][stage])
        for name, values in alone["readings"][stage].items():
            torch.testing.assert_close(found["readings"][stage][name], values, rtol=1e-9, atol=1e-9)


def test_logs_are_written_once(folder):
    (file,) = folder.rglob("metrics.csv")
    rows = rows_of(file.parent)
    assert steps_with(rows, "train/loss") == steps_with(rows, "hamiltonian/layer_01") == list(range(6))
    assert steps_with(rows, "val_cost_of_identity/min") == list(range(6))
    assert steps_with(rows, "step_size/layer_04") == list(range(6))
