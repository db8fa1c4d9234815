"""The bar of a long computation: seen in a terminal, on the first process, and nowhere else."""

import io

import pytest
import torch

from lightning_leaky import LeakyResNet, measure_path
from lightning_leaky.utilities import progress
from lightning_leaky.utilities.progress import watched


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def sit_down(monkeypatch):
    """Put a terminal where errors go: within a test, for pytest takes it away between fixtures and tests."""

    def sit() -> Terminal:
        terminal = Terminal()
        monkeypatch.setattr("sys.stderr", terminal)
        return terminal

    return sit


def test_a_terminal_shows_it_with_the_number_of_batches(sit_down):
    terminal = sit_down()
    assert list(watched([1, 2, 3], most=2)) == [1, 2]
    assert "reading" in terminal.getvalue()
    assert "/2 [" in terminal.getvalue()


def test_other_processes_are_quiet(sit_down, monkeypatch):
    terminal = sit_down()
    monkeypatch.setattr(progress, "number_of_process", lambda: 1)
    assert list(watched([1, 2])) == [1, 2]
    assert terminal.getvalue() == ""


def test_what_is_no_terminal_is_quiet(capsys):
    """As a notebook is not, nor a log."""
    assert list(watched(iter([1, 2]))) == [1, 2]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("shown", [True, False])
def test_measuring_shows_it_on_request(sit_down, shown):
    terminal = sit_down()
    network = LeakyResNet(3, 3, width=6, num_layers=2, effective_depth=1.0)
    readings = measure_path(network, [torch.eye(3)] * 2, progress=shown)
    assert len(readings.step_sizes) == 2
    assert ("/2 [" in terminal.getvalue()) == shown
