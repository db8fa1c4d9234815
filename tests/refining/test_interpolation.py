"""Layers as functions of p: what is kept exactly, and where the old layers are found again."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_leaky.functional import equidistant_step_sizes, normalise_step_sizes
from lightning_leaky.refining import interpolate_layers, interpolation_of
from tests.strategies import generator_of, normal, seeds

meshes = st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=12).map(
    lambda sizes: normalise_step_sizes(torch.tensor(sizes))
)


def middles(rho):
    return rho.cumsum(0) - rho / 2


def split(rho, index):
    """The mesh with one layer in halves."""
    half = rho[index : index + 1] / 2
    return torch.cat([rho[:index], half, half, rho[index + 1 :]])


@given(old=meshes, new=meshes, seed=seeds)
def test_constants_are_kept_exactly(old, new, seed):
    constant = normal(3, generator=generator_of(seed))
    found = interpolate_layers(constant.expand(len(old), 3), old, new)
    assert torch.equal(found, constant.expand(len(new), 3))


@given(old=meshes, new=meshes, seed=seeds)
def test_is_linear_between_the_middles_and_constant_beyond(old, new, seed):
    slope, offset = normal(2, 3, generator=generator_of(seed))
    places = middles(new).clamp(middles(old)[0], middles(old)[-1])
    found = interpolate_layers(middles(old)[:, None] * slope + offset, old, new)
    torch.testing.assert_close(found, places[:, None] * slope + offset, rtol=1e-11, atol=1e-11)


@given(old=meshes, new=meshes, seed=seeds)
def test_equals_a_search_by_hand(old, new, seed):
    values = normal(len(old), 2, 3, generator=generator_of(seed))
    expected, knots = [], middles(old).tolist()
    for place in middles(new).tolist():
        after = next((index for index, knot in enumerate(knots) if knot >= place), len(knots) - 1)
        before = max(0, after - 1) if knots[after] >= place else after
        width = knots[after] - knots[before]
        share = min(1.0, max(0.0, (place - knots[before]) / width)) if width > 0 else 0.0
        expected.append((1 - share) * values[before] + share * values[after])
    torch.testing.assert_close(interpolate_layers(values, old, new), torch.stack(expected), rtol=1e-9, atol=1e-9)


@given(old=meshes, new=meshes, seed=seeds, dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_stays_within_the_values(old, new, seed, dtype):
    """So that second moments stay non-negative; zeros among them are what rounding could push below."""
    values = normal(len(old), 4, generator=generator_of(seed)).relu().to(dtype)
    found = interpolate_layers(values, old, new)
    assert found.dtype == dtype
    assert found.shape == (len(new), 4)
    assert bool((found >= 0).all())
    assert bool((found <= values.amax(0)).all())


@given(rho=meshes, data=st.data())
def test_layers_of_both_meshes_are_found_bit_for_bit(rho, data):
    """All but the one that is split, however p is summed up."""
    index = data.draw(st.integers(0, len(rho) - 1))
    values = normal(len(rho), 3, generator=generator_of(0))
    found = interpolate_layers(values, rho, split(rho, index))
    assert torch.equal(found[:index], values[:index])
    assert torch.equal(found[index + 2 :], values[index + 1 :])
    assert torch.equal(interpolate_layers(values, rho, rho), values)


@given(rho=meshes.filter(lambda rho: len(rho) > 2), data=st.data())
def test_inserting_and_removing_comes_back(rho, data):
    """Exactly where values are linear in p around the layer; the others never move."""
    index = data.draw(st.integers(1, len(rho) - 2))
    fine = split(rho, index)
    values = middles(rho)[:, None] * torch.tensor([2.0, -1.0]).double() + 3
    back = interpolate_layers(interpolate_layers(values, rho, fine), fine, rho)
    torch.testing.assert_close(back, values, rtol=1e-12, atol=0)


@pytest.mark.parametrize("num_layers", [1, 5])
def test_one_layer_stands_for_all(num_layers):
    one, many = equidistant_step_sizes(1), equidistant_step_sizes(num_layers)
    assert interpolate_layers(torch.tensor([7.0]), one, many).tolist() == num_layers * [7.0]
    assert interpolate_layers(torch.arange(1.0, num_layers + 1), many, one).tolist() == [(num_layers + 1) / 2]


def test_the_order_of_the_error_is_two():
    """Of a smooth function, in the bulk: four times less on a mesh twice as fine."""
    new = equidistant_step_sizes(1000)
    inside = (middles(new) > 0.2) & (middles(new) < 0.8)
    errors = []
    for num_layers in (20, 40, 80):
        old = equidistant_step_sizes(num_layers)
        found = interpolate_layers(torch.sin(5 * middles(old)), old, new)
        errors.append(float((found - torch.sin(5 * middles(new)))[inside].abs().max()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("values", [torch.zeros(3), torch.zeros(2, dtype=torch.long), torch.tensor(1.0)])
def test_values_must_be_one_a_layer(values):
    with pytest.raises(ValueError, match="`values` must be floating-point of shape"):
        interpolate_layers(values, equidistant_step_sizes(2), equidistant_step_sizes(3))


def test_meshes_must_be_distributions():
    with pytest.raises(ValueError, match="`step_sizes` must sum to 1"):
        interpolation_of(torch.tensor([0.5, 0.4]), equidistant_step_sizes(3))
