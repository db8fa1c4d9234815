"""How far a layer moves its representation: exact values, limits and what changes nothing."""

from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lightning_leaky.functional import (
    KNorm,
    block_influence,
    features,
    first_order,
    kinetic_energy,
    potential_energy,
    relative_distance,
    relative_distances,
    relative_speed,
    velocity,
)
from tests import references
from tests.strategies import generator_of, k_norms, normal, problems, seeds

MOVEMENTS = {"relative_speed": relative_speed, "relative_distance": relative_distance, "influence": block_influence}
every_movement = pytest.mark.parametrize("movement", MOVEMENTS.values(), ids=MOVEMENTS)


def pair(seed, num_samples=9, width=5, size=0.3):
    generator = generator_of(seed)
    start = normal(num_samples, width, generator=generator)
    return start, start + size * normal(num_samples, width, generator=generator)


@given(problem=problems())
def test_all_equal_their_formulas(problem):
    start, end = problem.A, problem.A + problem.V
    assume(bool((references.squared_norm(start) > 0).all()) and bool((references.squared_norm(end) > 0).all()))
    assume(bool((references.k_square(problem.features, start, problem.k_norm).value > 1e-9).all()))
    expected = references.movements(start, end, problem.features, problem.B, problem.k_norm)
    references.assert_close(relative_distance(start, end), expected["relative_distance"])
    references.assert_close(first_order(problem.B, start, end), expected["first_order"])
    references.assert_close(relative_speed(start, end, problem.k_norm, problem.S).square(), expected["relative_speed"])
    lengths = references.squared_norm(start[..., None, :]) * references.squared_norm(end[..., None, :])
    if bool((lengths > 0).all()):
        references.assert_close(block_influence(start, end), expected["block_influence"])


@given(seed=seeds, depth=st.floats(0.1, 20.0), k_norm=k_norms())
def test_the_square_of_the_relative_speed_is_a_ratio_of_energies(seed, depth, k_norm):
    """−(ρL̃)² times kinetic over potential energy, where there is a leak."""
    start, end = pair(seed)
    rho = 0.125
    kinetic = kinetic_energy(start, velocity(start, end, rho), depth, k_norm)
    ratio = kinetic / potential_energy(start, depth, k_norm)
    torch.testing.assert_close(
        relative_speed(start, end, k_norm).square(), -((rho * depth) ** 2) * ratio, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("name", ["relu", "linear", "crelu"])
def test_for_a_large_stabiliser_it_is_the_relative_distance_from_where_the_layer_starts(name):
    start, end = pair(0)
    expected = (end - start).norm() / start.norm()
    found = [relative_speed(start, end, KNorm(gamma=gamma), features(start, name)) for gamma in (1e2, 1e4, 1e8)]
    errors = [float((value / expected - 1).abs()) for value in found]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-6


@every_movement
@given(seed=seeds, scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_units_repeated_samples_and_their_order_change_nothing(movement, seed, scale):
    start, end = pair(seed)
    kwargs = {"features": features(start, "linear", constant_column=False)} if movement is relative_speed else {}
    expected = movement(start, end, **kwargs)
    order = torch.randperm(len(start), generator=generator_of(seed))
    for change in (lambda M: scale * M, lambda M: torch.cat([M, M]), lambda M: M[order]):
        changed = {name: change(value) for name, value in kwargs.items()}
        torch.testing.assert_close(movement(change(start), change(end), **changed), expected, rtol=1e-7, atol=1e-9)


@every_movement
def test_what_does_not_move_reads_zero(movement):
    start, _ = pair(1)
    start[2] = 0
    assert float(movement(start, start.clone())) == pytest.approx(0, abs=1e-12)
    nothing = torch.zeros(3, 2)
    if movement is not relative_distance:  # 0/0
        assert float(movement(nothing, nothing)) == 0


def test_block_influence_of_turns_that_are_known():
    start = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [1.0, 1.0]])
    end = torch.tensor([[5.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])  # kept, a right angle, reversed, gone
    assert float(block_influence(start, end)) == pytest.approx((0 + 1 + 2 + 1) / 4)


def test_relative_distance_is_a_step_of_the_papers_distances():
    states = normal(4, 9, 5, generator=generator_of(2))
    rho = torch.tensor([0.5, 0.3, 0.2])
    found = torch.stack([relative_distance(*ends) for ends in pairwise(states)])
    torch.testing.assert_close(found, relative_distances(states, rho) * rho.double())


@given(seed=seeds)
def test_first_order_is_what_leaving_out_costs_where_the_cost_is_linear(seed):
    """Without absolute values exactly; with them at least that, and as much where all samples lose."""
    start, end = pair(seed)
    slope = normal(*start.shape, generator=generator_of(seed + 1))
    loss = (slope * (start - end)).sum()
    assert float(first_order(slope, start, end)) >= float(loss.abs()) * (1 - 1e-12)
    losing = slope * (slope * (start - end)).sum(-1, keepdim=True).sign()
    torch.testing.assert_close(first_order(losing, start, end), (losing * (start - end)).sum())


@pytest.mark.parametrize("movement", [*MOVEMENTS.values(), lambda start, end: first_order(start, start, end)])
def test_other_shapes_are_refused(movement):
    with pytest.raises(ValueError, match=r"must have the shape of .*\(3, 2\).*|must have the shape"):
        movement(torch.ones(3, 2), torch.ones(2, 2))
