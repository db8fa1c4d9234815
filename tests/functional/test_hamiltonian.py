"""The Hamiltonian: how its two forms are tied together, and its conservation along discrete Hamilton paths."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_leaky.functional import (
    KNorm,
    bottleneck_rank,
    cost_of_identity,
    energy_hamiltonian,
    hamiltonian,
    hamiltonian_spread,
    k_inner_products,
    kinetic_energy,
    potential_energy,
)
from tests.functional.conftest import EFFECTIVE_DEPTH, NUM_LAYERS
from tests.references import hamilton_path, observed_order, sigma, squared_norm
from tests.strategies import generator_of, k_norms, normal, problems, seeds

positive_depths = st.floats(0.1, 20.0)
stable_norms = k_norms(forms=("relative", "absolute"))


@given(problem=problems(norms=stable_norms, depths=positive_depths, scales=(1.0, 1e3, 1e-3), leading=((),)))
def test_identity_between_momentum_form_and_energies(problem):
    """−(2/L̃)H = ‖A‖²_{K+γ} − ‖V/L̃ + γB‖²_{K+γ} + γ‖B‖²_F for any A, B and V := L̃(KB − A)."""
    A, B, S, depth, k_norm = problem.A, problem.B, problem.features, problem.depth, problem.k_norm
    gamma = k_norm.gamma if k_norm.gamma is not None else k_norm.gamma_rel * float(torch.linalg.matrix_norm(S, 2)) ** 2
    absolute = KNorm(gamma=gamma)
    V = depth * (S @ (S.mT @ B) - A)
    shifted = V / depth + gamma * B
    terms = [
        cost_of_identity(A, absolute, S),
        -k_inner_products(A, shifted, k_norm=absolute, features=S)[0, 0],
        gamma * squared_norm(B),
    ]
    found = -2 / depth * hamiltonian(A, B, depth, S)
    size = sum(float(term.abs()) for term in terms)
    assert abs(float(found - sum(terms))) <= 1e-10 * size


@given(seed=seeds, depth=positive_depths, num_samples=st.integers(1, 5))
def test_both_forms_agree_where_the_features_reproduce_everything(seed, depth, num_samples):
    """Raw energy form = momentum form for V := L̃(KB − A): −(2/L̃)H = ‖A‖²_K − ‖V/L̃‖²_K once γ is gone."""
    generator = generator_of(seed)
    A = normal(num_samples, 9, generator=generator) + 5 * torch.eye(num_samples, 9, dtype=torch.float64)
    B = normal(num_samples, 9, generator=generator)
    K = sigma(A) @ sigma(A).mT
    energy_form = energy_hamiltonian(A, depth * (K @ B - A), depth, KNorm(gamma=0.0))
    scale = float(depth * (squared_norm(sigma(A).mT @ B) + squared_norm(A).sqrt() * squared_norm(B).sqrt()))
    assert float(energy_form) == pytest.approx(float(hamiltonian(A, B, depth)), abs=1e-10 * scale)


@given(problem=problems(activations=("relu",), constant_columns=(False,)), scale=st.floats(1e-3, 1e3))
def test_scaling_the_path_up_and_the_momentum_down_changes_nothing(problem, scale):
    A, B, S, depth = problem.A, problem.B, problem.S, problem.depth
    expected = hamiltonian(A, B, depth, S)
    found = hamiltonian(scale * A, B / scale, depth, scale * S)
    size = (depth + 1) * squared_norm(A).sqrt() * squared_norm(B).sqrt()
    assert bool(((found - expected).abs() <= 1e-12 * (size + expected.abs())).all())


@given(problem=problems(norms=stable_norms))
def test_energy_form_is_the_sum_of_its_energies(problem):
    A, V, depth, measure = problem.A, problem.V, problem.depth, (problem.k_norm, problem.S)
    kinetic, potential = kinetic_energy(A, V, depth, *measure), potential_energy(A, depth, *measure)
    found = energy_hamiltonian(A, V, depth, *measure)
    assert bool(((found - kinetic - potential).abs() <= 1e-9 * (kinetic.abs() + potential.abs())).all())


def test_momenta_of_the_discrete_path_are_those_of_back_propagation():
    """With the cost −⟨B_L, A_L⟩ (and λ = 1) back-propagation through the Euler steps returns every B_l."""
    depth, num_layers, generator = 2.0, 20, generator_of(1)
    start, momentum = normal(5, 4, generator=generator), 0.02 * normal(5, 4, generator=generator)
    path = hamilton_path(start, momentum, depth, num_layers)
    representations = [start.requires_grad_()]
    for W in path.weights:
        A = representations[-1]
        representations.append((1 - depth / num_layers) * A + sigma(A) @ W.mT / num_layers)
    cost = -(path.momenta[-1] * representations[-1]).sum()
    gradients = torch.autograd.grad(cost, representations)
    torch.testing.assert_close(torch.stack(representations), path.representations)
    torch.testing.assert_close(-torch.stack(gradients)[1:], path.momenta)
    torch.testing.assert_close(-gradients[0], momentum)


def spread_along(path, representations):
    return hamiltonian_spread(hamiltonian(representations, path.momenta, EFFECTIVE_DEPTH))


def test_conservation_is_of_first_order_in_the_step_size(hamilton_paths):
    """A_{l−1} paired with B_l."""
    spreads = [spread_along(path, path.representations[:-1]) for path in hamilton_paths.values()]
    energy = hamiltonian(hamilton_paths[320].representations[0], hamilton_paths[320].momenta[0], EFFECTIVE_DEPTH)
    assert observed_order(NUM_LAYERS, spreads) == pytest.approx(1.0, abs=0.15)
    assert observed_order(NUM_LAYERS[-2:], spreads[-2:]) == pytest.approx(1.0, abs=0.06)
    assert float(spreads[-1]) < 0.03 * abs(float(energy))


def test_no_conservation_where_momenta_are_paired_with_other_layers(hamilton_paths):
    path = hamilton_paths[320]
    paired = spread_along(path, path.representations[:-1])
    reversed_pairs = spread_along(path, path.representations[:-1].flip(0))
    assert float(reversed_pairs) > 20 * float(paired)


def test_bottleneck_rank_undoes_the_units_of_the_hamiltonian():
    energies = torch.tensor([[-10.5, -7.0], [0.0, 3.5]], dtype=torch.float64)
    assert bottleneck_rank(energies, 7.0).tolist() == [[3.0, 2.0], [0.0, -1.0]]


@pytest.mark.parametrize("depth", [0.0, -1.0, float("nan"), float("inf")])
def test_without_leak_there_is_no_bottleneck_rank(depth):
    with pytest.raises(ValueError, match=f"`effective_depth`.*got {depth}"):
        bottleneck_rank(torch.tensor(1.0), depth)


def test_spread_runs_over_the_last_dimension():
    energies = torch.tensor([[-3.0, -2.5, -2.0], [1.0, 1.0, 1.0]])
    assert hamiltonian_spread(energies).tolist() == [1.0, 0.0]
