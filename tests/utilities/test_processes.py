"""Who of several processes speaks; what they agree on is in `tests.distributed`."""

import warnings

import pytest
import torch
import torch.distributed as dist

from lightning_leaky.metrics import base
from lightning_leaky.utilities import harmless as harmless_module
from lightning_leaky.utilities import processes
from lightning_leaky.utilities.harmless import harmless


@pytest.mark.parametrize(
    ("number", "is_own", "said"),
    [(0, False, ["look"]), (0, True, ["look"]), (3, False, []), (3, True, ["Process 3: look"])],
)
def test_other_processes_speak_of_their_own_only(monkeypatch, number, is_own, said):
    monkeypatch.setattr(processes, "number_of_process", lambda: number)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        processes.warn("look", is_own)
    assert [str(warning.message) for warning in caught] == said


@pytest.mark.parametrize("join", [processes.summed, base.gathered, lambda one: processes.first_of(one, True)])
def test_a_lost_process_is_not_harmless(monkeypatch, join):
    def fail(*_, **__):
        raise RuntimeError("Connection closed by peer")

    for module in (processes, base):
        monkeypatch.setattr(module, "num_processes", lambda: 2)
    monkeypatch.setattr(processes, "number_of_process", lambda: 1)
    monkeypatch.setattr(dist, "all_reduce", fail)
    monkeypatch.setattr(dist, "all_gather", fail)
    monkeypatch.setattr(base, "gather_all_tensors", fail)
    said = r"A reading, at optimizer step 7: Process 1 .*closed by peer"
    with pytest.raises(processes.LostProcessError, match=said), harmless("A reading", set(), step=7):
        join(torch.tensor([1]))


def test_a_collective_of_a_signal_handler_is_not_harmless_either(monkeypatch):
    """Lightning's handler of SIGTERM broadcasts wherever it interrupts."""
    monkeypatch.setattr(harmless_module, "num_processes", lambda: 2)
    said = "A reading, at optimizer step 7"
    with pytest.raises(processes.LostProcessError, match=said), harmless("A reading", set(), step=7):
        dist.broadcast_object_list([None])  # there is no group
