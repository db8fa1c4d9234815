"""The Lagrangian is the least weight cost of a velocity, and splits into two energies and a cross term."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_leaky.functional import KNorm, cross_term, kinetic_energy, lagrangian, potential_energy
from tests.functional.readings import ENERGIES
from tests.references import Reference, assert_close, sigma, squared_norm
from tests.strategies import generator_of, normal, problems, seeds

positive_depths = st.floats(0.1, 20.0)


@given(seed=seeds, num_samples=st.integers(1, 5), depth=positive_depths)
def test_raw_lagrangian_is_the_cost_of_the_least_weight(seed, num_samples, depth):
    """(1/(2L̃))‖W‖² of the least-norm W with V = −L̃A + σ(A)Wᵀ, wherever the features reproduce it."""
    generator = generator_of(seed)
    A, V = (normal(num_samples, 9, generator=generator) for _ in range(2))
    A = A + torch.eye(num_samples, 9, dtype=A.dtype) * 5
    W = torch.linalg.lstsq(sigma(A), depth * A + V, driver="gelsd").solution.mT
    torch.testing.assert_close(-depth * A + sigma(A) @ W.mT, V, rtol=1e-9, atol=1e-9)
    assert_close(lagrangian(A, V, depth, KNorm(gamma=0.0)), squared_norm(W) / (2 * depth))


@given(problem=problems(depths=positive_depths))
def test_lagrangian_is_kinetic_less_potential_energy_plus_cross_term(problem):
    A, V, depth, measure = problem.A, problem.V, problem.depth, (problem.k_norm, problem.S)
    parts = kinetic_energy(A, V, depth, *measure) - potential_energy(A, depth, *measure) + cross_term(A, V, *measure)
    size = ENERGIES["lagrangian"].reference(problem).size
    assert_close(lagrangian(A, V, depth, *measure), Reference(parts, size))


@given(problem=problems(depths=positive_depths))
def test_what_the_leak_does_alone_costs_nothing(problem):
    leaking = problem._replace(V=-problem.depth * problem.A)
    size = ENERGIES["lagrangian"].reference(leaking).size
    assert_close(ENERGIES["lagrangian"].from_tensors(leaking), Reference(torch.zeros_like(size), size))


@given(problem=problems(depths=st.just(0.0)))
def test_without_leak_the_lagrangian_is_the_kinetic_energy(problem):
    A, V, measure = problem.A, problem.V, (problem.k_norm, problem.S)
    assert_close(lagrangian(A, V, 0.0, *measure), kinetic_energy(A, V, 0.0, *measure))


@given(problem=problems(), factor=st.floats(-10, 10))
def test_cross_term_is_linear_in_the_velocity_and_the_cost_of_identity_at_the_representation(problem, factor):
    A, V = problem.A, problem.V
    coi, cross = (ENERGIES[name].reference(problem) for name in ("cost_of_identity", "cross_term"))
    expected = Reference(factor * cross.value + coi.value, abs(factor) * cross.size + coi.size)
    assert_close(cross_term(A, factor * V + A, problem.k_norm, problem.S), expected)


def test_a_layer_without_features_can_still_leak_for_nothing():
    dead = -torch.ones(2, 3)
    assert float(lagrangian(dead, -2.0 * dead, 2.0, features=torch.zeros(2, 3))) == 0.0
