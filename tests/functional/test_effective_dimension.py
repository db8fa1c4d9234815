"""The cost of identity with linear features [A, 1] is an effective dimension, at most the width."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_leaky.functional import KNorm, cost_of_identity, features
from tests.strategies import generator_of, normal, problems, seeds

GAMMAS = (1e-1, 1e-2, 1e-3, 1e-6)


def dimension(A, k_norm):
    return cost_of_identity(A, k_norm, features(A, "linear"))


def of_rank(rank, num_samples=30, width=8, seed=0, spread=1.0):
    """A representation of a rank, its singular values alike, its columns orthogonal to the constant one."""
    generator = generator_of(seed)
    left = normal(num_samples, rank, generator=generator)
    left = torch.linalg.qr(left - left.mean(0))[0]
    right = torch.linalg.qr(normal(width, width, generator=generator))[0][:, :rank]
    return spread * left @ right.mT


@given(problem=problems(), gamma_rel=st.sampled_from(GAMMAS))
def test_it_is_that_of_ridge_regression_and_at_most_the_width(problem, gamma_rel):
    """Σ s²/(s² + γ) − 1ᵀ(K + γ)⁻¹1, s the singular values of [A, 1] and γ relative to the largest."""
    A = problem.A
    S = torch.cat([A, torch.ones_like(A[..., :1])], dim=-1)
    vectors, values, _ = torch.linalg.svd(S, full_matrices=False)
    squares = values.square()
    gamma = gamma_rel * squares[..., :1]
    ones = (vectors.mT @ torch.ones_like(A[..., :1])).squeeze(-1)
    expected = ((squares - ones.square()) / (squares + gamma)).sum(-1)
    found = dimension(A, KNorm(gamma_rel=gamma_rel))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
    assert bool((found <= A.shape[-1] * (1 + 1e-9)).all())


@pytest.mark.parametrize("rank", [1, 2, 5, 8])
def test_without_a_stabiliser_it_is_the_rank(rank):
    A = of_rank(rank)
    assert float(dimension(A, KNorm(gamma=0.0))) == pytest.approx(rank, rel=1e-9)
    found = [float(dimension(A, KNorm(gamma=gamma))) for gamma in (1e-1, 1e-3, 1e-5)]
    assert found == pytest.approx([rank / (1 + gamma) for gamma in (1e-1, 1e-3, 1e-5)], rel=1e-6)


def test_the_constant_direction_is_free():
    """The bias expresses what all samples share: it counts no dimension."""
    A = torch.ones(30, 8, dtype=torch.float64)
    assert float(dimension(A, KNorm(gamma=1e-6))) == pytest.approx(8 / 9, rel=1e-3)
    far = A * 1e4
    assert float(dimension(far, KNorm(gamma=1e-3))) == pytest.approx(1.0, rel=1e-3)
    shifted = of_rank(3) + 1e-3 * A
    assert float(dimension(shifted, KNorm(gamma=0.0))) == pytest.approx(3, rel=1e-3)


@pytest.mark.parametrize("width", [2, 5, 9])
@pytest.mark.parametrize("gamma", [1e-3, 0.5, 10.0])
def test_for_an_orthogonal_matrix_it_is_known(width, gamma):
    """K = I + 11ᵀ has the eigenvalues 1, N − 1 times, and 1 + N."""
    A = torch.linalg.qr(normal(width, width, generator=generator_of(width)))[0]
    expected = (width - 1) / (1 + gamma) + 1 / (1 + width + gamma)
    assert float(dimension(A, KNorm(gamma=gamma))) == pytest.approx(expected, rel=1e-9)


@given(seed=seeds)
def test_relu_features_cannot_express_the_negative_part_and_both_signs_can(seed):
    """Why the paper's features say hundreds of a block that is no leaky step."""
    A = normal(60, 6, generator=generator_of(seed))
    costs = {name: float(cost_of_identity(A, KNorm(), features(A, name))) for name in ("relu", "crelu", "linear")}
    assert costs["linear"] <= 6
    assert costs["crelu"] <= 12
    assert costs["relu"] > 20
    positive = A.abs()
    of_positive = [float(cost_of_identity(positive, KNorm(), features(positive, name))) for name in ("relu", "crelu")]
    assert of_positive[0] == pytest.approx(of_positive[1], rel=1e-9)
    assert of_positive[0] == pytest.approx(float(dimension(positive, KNorm())), rel=1e-9)
