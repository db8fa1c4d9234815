"""Each layer's part of the path: by hand, and what it does not depend on."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_leaky.functional import fewest_layers, layer_shares

energies = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12)


def test_work_is_energy_times_step_size_and_length_is_its_root_times_step_size():
    """Exact: energies are squares, so that all speeds are whole numbers."""
    rho, speeds = (1, 2, 3, 4), (6, 1, 0, 2)
    found = layer_shares(torch.tensor([float(v * v) for v in speeds]), torch.tensor(rho) / 10)
    for shares, power in ((found.work, 2), (found.length, 1)):
        parts = [Fraction(r * v**power, 10) for r, v in zip(rho, speeds, strict=True)]
        assert shares.tolist() == pytest.approx([float(part / sum(parts)) for part in parts], rel=1e-6)


@given(energies, st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_neither_unit_nor_sum_of_the_step_sizes_matters(values, unit, total):
    kinetic = torch.tensor(values, dtype=torch.float64)
    rho = torch.arange(1, len(values) + 1, dtype=torch.float64)
    for shares, scaled in zip(layer_shares(kinetic, rho), layer_shares(unit * kinetic, total * rho), strict=True):
        assert shares.sum() == pytest.approx(1.0)
        torch.testing.assert_close(scaled, shares)


@pytest.mark.parametrize("values", [(0.0, 0.0), (0.0, -1e-18), (float("nan"), 1.0)])
def test_nothing_that_moves_has_no_shares(values):
    found = layer_shares(torch.tensor(values), torch.tensor([0.5, 0.5]))
    assert not found.work.any()
    assert not found.length.any()
    assert fewest_layers(found.work, 0.8) == []


@given(energies, st.floats(0.0, 1.0))
def test_the_fewest_layers_have_the_share_and_one_less_has_not(values, least):
    shares = layer_shares(torch.tensor(values), torch.ones(len(values))).work
    few = fewest_layers(shares, least)
    assert few == sorted(few)
    assert shares[few].sum() >= least - 1e-9
    assert shares.topk(len(few) - 1).values.sum() < least + 1e-9


@pytest.mark.parametrize("broken", [float("inf"), float("nan")])
def test_an_energy_that_is_not_finite_leaves_no_shares(broken):
    shares = layer_shares(torch.tensor([broken, 1.0]), torch.tensor([0.5, 0.5]))
    assert shares.work.tolist() == shares.length.tolist() == [0.0, 0.0]


def test_one_step_size_a_layer():
    with pytest.raises(ValueError, match="`step_sizes` must have the shape of `kinetic_energies`"):
        layer_shares(torch.ones(3), torch.ones(2))


def test_a_share_is_no_percentage():
    with pytest.raises(ValueError, match=r"`least` must be in \[0, 1\], got 80"):
        fewest_layers(torch.ones(2) / 2, 80)
