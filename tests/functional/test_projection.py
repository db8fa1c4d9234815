"""The plane of a path: what it keeps, and how it is turned."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_leaky.functional import path_projection, principal_coordinate


def random_path(seed: int, samples: int = 7, width: int = 5) -> torch.Tensor:
    return torch.randn(4, samples, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(0, 1000))
def test_a_path_in_a_plane_keeps_all_its_inner_products(seed):
    flat = random_path(seed, width=2) @ torch.linalg.qr(random_path(seed + 1)[0][:5].mT)[0][:, :2].mT
    points, rows = path_projection(flat).flatten(0, 1), flat.flatten(0, 1)
    assert torch.allclose(points @ points.mT, rows @ rows.mT)


@given(st.integers(0, 1000))
def test_the_plane_holds_as_much_as_the_two_largest_singular_values(seed):
    path = random_path(seed)
    largest = torch.linalg.svdvals(path.flatten(0, 1))[:2]
    assert torch.allclose(path_projection(path).square().sum((0, 1)), largest.square())


@given(st.integers(0, 1000))
def test_turning_the_neurons_changes_nothing(seed):
    path, turn = random_path(seed), torch.linalg.qr(random_path(seed + 1)[0][:5, :5])[0]
    torch.testing.assert_close(path_projection(path @ turn), path_projection(path))


def test_the_path_is_on_the_positive_side():
    path = random_path(3) + 1
    assert (path_projection(path).mean((0, 1)) >= 0).all()
    torch.testing.assert_close(path_projection(-path), path_projection(path))


def test_one_neuron_has_a_second_coordinate_of_zero():
    points = path_projection(torch.ones(3, 2, 1))
    assert points.shape == (3, 2, 2)
    assert not points[..., 1].any()


def test_refuses_what_is_no_path():
    with pytest.raises(ValueError, match="`representations` must have shape"):
        path_projection(torch.ones(3, 2))


@given(st.integers(0, 1000), st.floats(1.5, 100.0))
def test_the_principal_coordinate_is_along_the_longest_axis(seed, ratio):
    """Points of a turned ellipse whose long axis is known, far from the origin."""
    first, second = torch.linalg.qr(random_path(seed, samples=40)[0])[0][:, :2].mT
    turn = torch.linalg.qr(random_path(seed + 1)[0][:5, :5])[0]
    centred = torch.stack([first - first.mean(), second - second.mean()], dim=1)
    whitened = torch.linalg.qr(centred)[0] * torch.tensor([ratio, 1.0], dtype=torch.float64)
    found = principal_coordinate(whitened @ turn[:2] + 7.0)
    expected = whitened[:, 0]
    assert torch.allclose(found * (found @ expected).sign(), expected, atol=1e-8 * ratio)


def test_points_of_the_principal_coordinate_are_a_matrix():
    with pytest.raises(ValueError, match="`points` must have shape"):
        principal_coordinate(torch.ones(3))


@given(st.integers(0, 1000))
def test_the_principal_coordinate_does_not_turn_with_the_samples(seed):
    """Of a batch in another order, or of half of it, where one direction is far the longest."""
    points = random_path(seed, samples=40)[0] * torch.tensor([1.0, 1.0, 30.0, 1.0, 1.0])
    whole, half = principal_coordinate(points), principal_coordinate(points[::2])
    assert torch.corrcoef(torch.stack([whole[::2], half]))[0, 1] > 0.9
    assert torch.corrcoef(torch.stack([whole, points[:, 2]]))[0, 1] > 0.9
