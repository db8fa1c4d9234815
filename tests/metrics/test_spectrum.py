"""Spectra of a data set that came in batches."""

import pytest
import torch
from hypothesis import given, settings

from lightning_leaky.functional import KNorm
from lightning_leaky.metrics import SingularValues, StableRank
from tests import references
from tests.metrics.cases import CASES, paths_in_batches, random_path
from tests.references import assert_close


@settings(max_examples=50)
@given(drawn=paths_in_batches())
def test_spectra_equal_the_references_over_any_batches(drawn):
    path, batches = drawn
    values = CASES["SingularValues"].read(path, batches).reshape(path.num_layers, path.width)
    expected = torch.linalg.svdvals(path.previous())
    shared = expected.shape[-1]
    assert bool(((values[:, :shared] - expected).abs() <= 1e-9 * expected[:, :1]).all())
    assert not values[:, shared:].any()
    assert_close(CASES["StableRank"].read(path, batches).reshape(-1), references.stable_rank(path.previous()))


def test_the_rank_of_a_data_set_is_not_that_of_its_batches():
    metric = StableRank(num_layers=1, width=3)
    for row in torch.eye(3):
        assert float(metric([row[None]])) == pytest.approx(1.0)
    assert float(metric.compute()) == pytest.approx(3.0)


def test_singular_values_fall():
    values = CASES["SingularValues"].read(random_path(num_samples=20, width=8))
    assert bool((values.diff(dim=-1) <= 0).all())
    assert values.shape == (3, 8)


def test_the_k_norm_is_no_matter():
    path = random_path()
    plain, other = (SingularValues(3, 4, k_norm) for k_norm in (None, KNorm(gamma=1.0, constant_column=False)))
    plain.update(path.previous())
    other.update(path.previous())
    assert torch.equal(plain.compute(), other.compute())
