"""Spearman's rank correlation of scores, against SciPy's."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightning_leaky.functional.path_median import rank_correlation

numbers = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=12)


@given(pairs=numbers)
@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_it_is_scipys_with_ties(pairs):
    values, others = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    expected = float(stats.spearmanr(values, others).statistic)
    assert rank_correlation(values, others) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_what_is_no_number_has_no_rank():
    found = rank_correlation(torch.tensor([1.0, float("nan"), 2.0]), torch.arange(3.0))
    assert math.isnan(found)
