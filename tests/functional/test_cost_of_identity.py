"""The cost of identity counts dimensions, and is the least cost of a weight."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lightning_leaky.functional import (
    KNorm,
    cost_of_identity,
    k_inner_products_from_moments,
    potential_energy,
    second_moments,
    stable_rank,
)
from tests.references import ACTIVATIONS, assert_close, sigma, squared_norm
from tests.strategies import SCALES, generator_of, k_norms, normal, problems, seeds

RAW = KNorm(gamma=0.0)


def raw_cost(A):
    """Without the constant column."""
    return float(cost_of_identity(A, RAW, A.relu()))


@st.composite
def non_negative_of_rank(draw, max_rank=5):
    """A non-negative matrix and its rank: non-negative factors with an identity block in each."""
    rank = draw(st.integers(1, max_rank))
    extra_samples, extra_neurons = draw(st.integers(0, 6)), draw(st.integers(0, 6))
    generator = generator_of(draw(seeds))
    rows, columns = (
        torch.cat([torch.eye(rank, dtype=torch.float64), normal(extra, rank, generator=generator).abs()])
        for extra in (extra_samples, extra_neurons)
    )
    return draw(st.sampled_from(SCALES)) * rows @ columns.mT, rank


@given(drawn=non_negative_of_rank())
def test_raw_cost_of_a_non_negative_representation_is_its_rank(drawn):
    A, rank = drawn
    assert raw_cost(A) == pytest.approx(rank, rel=1e-8)
    from_moments = k_inner_products_from_moments(second_moments(A, features=A.relu()), RAW)
    assert float(from_moments) == pytest.approx(rank, rel=1e-8)


@given(drawn=non_negative_of_rank(), gamma_rel=st.floats(1e-6, 10.0))
def test_stable_cost_of_a_non_negative_representation_is_below_its_rank(drawn, gamma_rel):
    A, rank = drawn
    assert 0 < float(cost_of_identity(A, KNorm(gamma_rel=gamma_rel), A.relu())) < rank * (1 + 1e-9)


@given(seed=seeds, num_samples=st.integers(1, 8))
def test_stable_rank_is_below_the_raw_cost_of_whatever_the_features_reproduce(seed, num_samples):
    """Proposition 1 for A of any sign; the part of A that no weight reproduces would count zero in the raw form."""
    A = normal(num_samples, 12, generator=generator_of(seed))
    assume(torch.linalg.cond(A.clamp(min=0)) < 1e3)
    assert float(stable_rank(A)) <= raw_cost(A) * (1 + 1e-9)


@given(drawn=non_negative_of_rank())
def test_stable_rank_is_below_the_raw_cost_of_a_non_negative_representation(drawn):
    A, _ = drawn
    assert float(stable_rank(A)) <= raw_cost(A) * (1 + 1e-9)


@pytest.mark.parametrize("constant_column", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(seed=seeds, num_samples=st.integers(1, 9))
@settings(max_examples=20)
def test_stable_cost_is_the_least_cost_of_a_weight_that_may_miss(activation, constant_column, seed, num_samples):
    """‖A‖²_{K+γ} = min_W ‖W‖² + ‖σ(A)Wᵀ − A‖²/γ, the minimum by least squares."""
    gamma, A = 0.3, normal(num_samples, 4, generator=generator_of(seed))
    S = sigma(A, activation, constant_column)
    stacked = torch.cat([S / gamma**0.5, torch.eye(S.shape[-1], dtype=S.dtype)])
    target = torch.cat([A / gamma**0.5, torch.zeros(S.shape[-1], 4, dtype=S.dtype)])
    W = torch.linalg.lstsq(stacked, target).solution
    expected = squared_norm(W) + squared_norm(S @ W - A) / gamma
    assert_close(cost_of_identity(A, KNorm(gamma=gamma), S), expected)


@given(problem=problems(norms=k_norms(forms=("relative",)), leading=((),)))
def test_more_stabiliser_costs_less_and_a_constant_column_more_cheaply(problem):
    def cost(gamma, constant_column=False):
        return float(cost_of_identity(problem.A, KNorm(gamma=gamma), sigma(problem.A, "relu", constant_column)))

    gamma = 1e-3 * float(problem.A.square().sum()) + 1e-12
    assert cost(2 * gamma) <= cost(gamma) * (1 + 1e-9)
    assert cost(gamma, constant_column=True) <= cost(gamma) * (1 + 1e-9)


def test_potential_energy_of_a_plain_resnet_is_zero():
    assert float(potential_energy(torch.ones(2, 3), 0.0)) == 0.0


def test_without_leak_even_a_dead_layer_has_no_potential_energy():
    assert float(potential_energy(-torch.ones(2, 3), 0.0, features=torch.zeros(2, 3))) == 0.0
