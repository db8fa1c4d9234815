"""The checks of `tests.gpu.check` as tests where there is a GPU; and, anywhere, that the script hides no failure."""

import pytest
import torch

from tests.gpu import check


@pytest.mark.skipif(not torch.cuda.is_available(), reason=check.NO_CUDA)
@pytest.mark.parametrize("name", check.CHECKS)
def test_on_the_gpu(name):
    check.CHECKS[name](torch.device("cuda"))


def fails(device):
    raise ValueError(f"on {device} | and\nhere")


def passes(device):
    pass


def test_a_failed_check_is_told_and_stops_no_other(monkeypatch, capsys):
    monkeypatch.setattr(check, "ANYWHERE", {"one": fails, "two": passes})
    monkeypatch.setattr(check, "ON_CUDA", {"three": passes})
    assert check.main(["--device", "cpu"]) == 1
    printed = capsys.readouterr()
    assert "| one | FAILED: ValueError: on cpu / and here |" in printed.out
    assert "| two | passed |" in printed.out
    assert "| three | needs CUDA |" in printed.out
    assert "1 passed, 1 FAILED, 1 needs CUDA" in printed.out
    assert "Traceback" in printed.err


def test_checks_that_pass_end_well(monkeypatch):
    monkeypatch.setattr(check, "ANYWHERE", {"two": passes})
    assert check.main(["--device", "cpu"]) == 0


def test_without_cuda_nothing_runs_and_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(check, "ANYWHERE", {"one": fails})
    assert check.main([]) == 2
    assert check.NO_CUDA in capsys.readouterr().err
