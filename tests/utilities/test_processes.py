"""Who of several processes speaks; what they agree on is in `tests.distributed`."""

import warnings

import pytest

from lightning_leaky.utilities import processes


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
