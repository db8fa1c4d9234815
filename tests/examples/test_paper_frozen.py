import math

import pytest
import torch
from torch import Tensor

from examples.paper.frozen import (
    distance_to_fixed_point,
    eigenvalues,
    frozen_path,
    frozen_weights,
    iterate,
    relative_steps,
)
from lightning_leaky import LeakyResNet
from lightning_leaky.functional import relative_distances

UNEVEN = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)


def exponential(step_sizes: Tensor) -> Tensor:
    """exp(3p): a relative step depends on nothing but its ρ_l, so equal ones are the answer."""
    positions = torch.cat([step_sizes.new_zeros(1), step_sizes.cumsum(0)])
    return (3 * positions).exp()[:, None, None].expand(-1, 2, 1)


def square(step_sizes: Tensor) -> Tensor:
    """(1 + p)², which moves faster at its beginning."""
    positions = torch.cat([step_sizes.new_zeros(1), step_sizes.cumsum(0)])
    return (1 + positions).square()[:, None, None]


@pytest.fixture
def network() -> LeakyResNet:
    torch.manual_seed(0)
    network = LeakyResNet(5, 2, width=8, num_layers=4, effective_depth=2.0)
    network.set_step_sizes(UNEVEN)
    return network


def test_relative_steps_are_step_sizes_times_relative_distances() -> None:
    path = torch.rand(5, 7, 3, dtype=torch.float64)
    torch.testing.assert_close(relative_steps(path), UNEVEN * relative_distances(path, UNEVEN))


def test_the_distance_is_the_spread_of_their_logarithm() -> None:
    # Relative steps 1/2 and 1/4: logarithms ln 2 apart, half of it from their mean.
    assert distance_to_fixed_point(torch.tensor([1.0, 2.0, 8 / 3])[:, None, None]) == pytest.approx(math.log(2) / 2)
    equidistant = torch.full((4,), 0.25, dtype=torch.float64)
    assert distance_to_fixed_point(exponential(equidistant)) == pytest.approx(0, abs=1e-12)


def test_frozen_weights_are_the_network_on_any_mesh(network: LeakyResNet) -> None:
    inputs = torch.rand(6, 5)
    path_of = frozen_weights(network, inputs)
    network = network.double()
    for step_sizes in (UNEVEN, UNEVEN.flip(0)):
        network.set_step_sizes(step_sizes)
        torch.testing.assert_close(path_of(step_sizes), network.representations(inputs.double()))


def test_a_frozen_path_has_the_same_points_wherever_two_meshes_meet(network: LeakyResNet) -> None:
    path_of = frozen_path(network, torch.rand(6, 5))
    halves = path_of(torch.tensor([0.5, 0.5], dtype=torch.float64))
    quarters = path_of(torch.full((4,), 0.25, dtype=torch.float64))
    torch.testing.assert_close(quarters[::2], halves)
    torch.testing.assert_close(path_of(UNEVEN)[[0, 2, 4]], halves)


def test_a_frozen_path_is_linear_between_the_points_of_its_mesh(network: LeakyResNet) -> None:
    first, between, last = frozen_path(network, torch.rand(6, 5), num_points=1)(torch.tensor([0.25, 0.75]).double())
    torch.testing.assert_close(between, 0.75 * first + 0.25 * last)
    assert not torch.equal(first, last)


@pytest.mark.parametrize("damping", [0.1, 0.5, 1.0])
def test_the_eigenvalues_say_how_fast_the_iteration_converges(damping: float) -> None:
    rate = float((1 - damping + damping * eigenvalues(square, 3)).abs().max())
    distances = iterate(square, 3, damping, 12 if damping == 1 else 60)
    assert distances[-1] < distances[0]
    first, last = (3, 8) if damping == 1 else (30, 60)
    assert (distances[last] / distances[first]) ** (1 / (last - first)) == pytest.approx(rate, rel=0.05)


def test_an_adaptation_that_sees_few_samples_does_not_settle(network: LeakyResNet) -> None:
    path_of = frozen_weights(network, torch.rand(100, 5))
    assert iterate(path_of, 4, 1.0, 60)[-1] < 1e-6
    noisy = {damping: sum(iterate(path_of, 4, damping, 300, batch_size=10)[200:]) for damping in (0.1, 1.0)}
    assert 1e-2 < noisy[0.1] < noisy[1.0] / 2
