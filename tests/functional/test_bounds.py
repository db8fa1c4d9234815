"""Both bounds of Theorem 4: the second at any point whatever, the first along a finely discretised Hamilton path."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_leaky.functional import KNorm, hamiltonian, hamiltonian_spread, rank_gap_bounds, speed_bounds, velocity
from tests.functional.conftest import EFFECTIVE_DEPTH
from tests.references import k_square, path_length, sigma, squared_norm
from tests.strategies import k_norms, problems

positive_depths = st.floats(0.1, 20.0)
positive = st.floats(1e-3, 1e3)


def slack(bounds):
    """By how much the value may miss its bounds through rounding alone."""
    return 1e-9 * torch.stack([part.abs() for part in bounds]).amax(0) + 1e-12


@given(problem=problems(norms=k_norms(forms=("absolute",)), depths=positive_depths, scales=(1.0, 1e3, 1e-3)))
def test_speed_bounds_hold_at_any_point(problem):
    """For any A and B with V := L̃(KB − A) and H of (A, B); ‖B‖² alone serves as c."""
    A, B, depth, k_norm = problem.A, problem.B, problem.depth, problem.k_norm
    S = problem.features
    energy = hamiltonian(A, B, depth, problem.S)
    coi, _ = k_square(S, A, k_norm)
    speed = k_square(S, depth * (S @ (S.mT @ B) - A), k_norm).value.sqrt()
    bounds = speed_bounds(energy, coi, speed, depth, k_norm.gamma, squared_norm(B))
    # The radicand is a difference: its rounding is that of its terms, and a square root of it enters the value.
    rounding = depth * (1e-13 * (coi + 2 / depth * energy.abs() + squared_norm(B) * k_norm.gamma)).sqrt()
    assert bool((bounds.lower <= bounds.value + slack(bounds) + rounding).all())
    assert bool((bounds.value <= bounds.upper + slack(bounds) + rounding).all())


@pytest.mark.parametrize("gamma", [1e-6, 1e-3, 1e-1, 10.0])
def test_both_bounds_hold_along_a_hamilton_path(hamilton_paths, gamma):
    """Up to what the mesh leaves of the constancy of H."""
    path, k_norm = hamilton_paths[320], KNorm(gamma=gamma)
    A, rho = path.representations[:-1], torch.full((320,), 1 / 320, dtype=torch.float64)
    V = velocity(A, path.representations[1:], 1 / 320)
    energies = hamiltonian(A, path.momenta, EFFECTIVE_DEPTH)
    mesh = float(2 / EFFECTIVE_DEPTH * hamiltonian_spread(energies))
    size_bound = max(squared_norm(A).max(), squared_norm(path.momenta).max())
    S = sigma(A)
    coi, length = k_square(S, A, k_norm).value, path_length(V, S, rho, k_norm).value

    gap = rank_gap_bounds(energies.median(), coi, length, EFFECTIVE_DEPTH, gamma, size_bound)
    assert gap.lower - mesh <= gap.value <= gap.upper + mesh

    speed = k_square(S, V, k_norm).value.sqrt()
    bounds = speed_bounds(energies, coi, speed, EFFECTIVE_DEPTH, gamma, size_bound)
    assert bool((bounds.lower <= bounds.value + slack(bounds)).all())
    assert bool((bounds.value <= bounds.upper + slack(bounds)).all())


def test_without_stabiliser_the_rank_gap_is_bounded_by_the_length_over_the_depth():
    bounds = rank_gap_bounds(torch.tensor(-1.0), torch.tensor([4.0, 2.0, 3.0]), torch.tensor(6.0), 2.0, 0.0, 5.0)
    assert [float(part) for part in bounds] == [-9.0, -1.0, 0.0]


@given(energy=st.floats(-1e3, 1e3), length=positive, depth=positive, gamma=positive, size_bound=positive)
def test_rank_gap_bounds_are_their_formula(energy, length, depth, gamma, size_bound):
    coi = torch.tensor([5.0, 3.0, 4.0], dtype=torch.float64)
    tensors = (torch.tensor(number, dtype=torch.float64) for number in (energy, length))
    lower, value, upper = rank_gap_bounds(next(tensors), coi, next(tensors), depth, gamma, size_bound)
    assert float(lower) == pytest.approx(-((length / depth + (gamma * size_bound) ** 0.5) ** 2), rel=1e-12)
    assert float(value) == pytest.approx(-(2 / depth) * energy - 3.0, rel=1e-12, abs=1e-12 * abs(energy) / depth)
    assert float(upper) == pytest.approx(gamma * size_bound, rel=1e-12)


@given(energy=st.floats(-1e3, 1e3), coi=positive, speed=positive, depth=positive, gamma=positive, size_bound=positive)
def test_speed_bounds_are_their_formula(energy, coi, speed, depth, gamma, size_bound):
    tensors = [torch.tensor([number], dtype=torch.float64) for number in (energy, coi, speed)]
    lower, value, upper = (float(part) for part in speed_bounds(*tensors, depth, gamma, size_bound))
    noise, radicand = (gamma * size_bound) ** 0.5, max(0.0, coi + 2 * energy / depth)
    assert lower == pytest.approx(-depth * noise, rel=1e-12)
    assert value == pytest.approx(speed - depth * radicand**0.5, rel=1e-6, abs=1e-6 * (speed + depth))
    assert upper == pytest.approx(2 * depth * noise, rel=1e-12)


def test_bounds_keep_the_shapes_of_what_they_bound():
    layers = torch.ones(2, 5, dtype=torch.float64)
    gap = rank_gap_bounds(-layers[:, 0], layers, layers[:, 0], 1.0, 0.1 * layers[:, 0], 2.0)
    speed = speed_bounds(-layers[:, :1], layers, layers, 1.0, 0.1 * layers, 2.0)
    assert {part.shape for part in gap} == {(2,)}
    assert {part.shape for part in speed} == {(2, 5)}


@pytest.mark.parametrize("bounds", [rank_gap_bounds, speed_bounds])
@pytest.mark.parametrize("depth", [0.0, -1.0, float("nan")])
def test_bounds_want_a_leak(bounds, depth):
    with pytest.raises(ValueError, match=f"`effective_depth`.*got {depth}"):
        bounds(torch.tensor(-1.0), torch.ones(3), torch.tensor(1.0), depth, 0.1, 1.0)
