"""A bounded history: what it keeps, and what it forgets."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_leaky.plotting.heat_map import History


@given(st.integers(2, 9), st.integers(1, 100))
def test_stays_bounded_and_keeps_the_first_and_the_last(most, count):
    history = History(most)
    for step in range(count):
        history.add(step, torch.tensor([float(step)]))
    steps, rows = history.table()
    assert len(history) <= most
    assert (steps[0], steps[-1]) == (0, count - 1)
    assert rows[:, 0].tolist() == steps.tolist() == sorted(steps.tolist())


def test_rows_of_fewer_layers_end_with_nothing():
    history = History()
    history.add(0, torch.ones(1))
    history.add(1, torch.ones(3))
    assert history.table()[1].isnan().tolist() == [[False, True, True], [False, False, False]]


def test_a_row_is_a_copy():
    history, row = History(), torch.ones(2)
    history.add(0, row)
    row.zero_()
    assert history.table()[1].tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_goes_on_from_its_state(count):
    history = History()
    for step in range(count):
        history.add(step, torch.tensor([float(step), 1.0]))
    restored = History.of(history.state_dict())
    restored.add(9, torch.zeros(2))
    history.add(9, torch.zeros(2))
    assert all(map(torch.equal, restored.table(), history.table()))
