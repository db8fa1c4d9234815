"""The median along the path."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_leaky.functional import path_median

numbers = st.floats(-1e6, 1e6)
steps = st.floats(1e-3, 1.0)


@given(st.lists(numbers, min_size=1, max_size=20), steps)
def test_of_equal_steps_is_the_ordinary_median(values, step):
    found = path_median(torch.tensor(values, dtype=torch.float64), torch.full((len(values),), step))
    assert float(found) == pytest.approx(np.median(values), rel=1e-9, abs=1e-6)


@given(st.lists(st.tuples(numbers, steps), min_size=1, max_size=20), st.randoms())
def test_at_most_half_of_the_path_is_on_either_side(pairs, random):
    """And neither the order of the layers nor the sum of the steps plays a part."""
    values, weights = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    found = path_median(values, weights)
    half = weights.sum() * (0.5 + 1e-6)
    assert weights[values < found].sum() <= half
    assert weights[values > found].sum() <= half
    order = random.sample(range(len(pairs)), len(pairs))
    torch.testing.assert_close(path_median(values[order], 3 * weights[order]), found)


@given(st.lists(st.tuples(numbers, steps, st.integers(1, 5)), min_size=1, max_size=10))
def test_splitting_a_layer_does_not_move_it(layers):
    """Where the quantity does not change over the layer; the ordinary median would go where the layers are."""
    values, weights, counts = (torch.tensor(column, dtype=torch.float64) for column in zip(*layers, strict=True))
    times = counts.long()
    split = path_median(values.repeat_interleave(times), (weights / counts).repeat_interleave(times))
    torch.testing.assert_close(split, path_median(values, weights))


def test_what_is_not_finite_is_not_hidden():
    assert bool(path_median(torch.tensor([1.0, float("nan"), 2.0]), torch.ones(3)).isnan())
    assert float(path_median(torch.tensor([1.0, float("inf"), 2.0]), torch.ones(3))) == 2.0


def test_one_step_a_layer():
    with pytest.raises(ValueError, match="step_sizes"):
        path_median(torch.ones(3), torch.ones(2))
