"""Second moments and momentum moments are the sums over samples that they say, and add up over batches."""

import pytest
import torch
from hypothesis import given

from lightning_leaky.functional import momentum_moments, second_moments
from tests.strategies import generator_of, normal, problems


def assert_moments(found, expected):
    for part, wanted in zip(found, expected, strict=True):
        assert part.dtype == torch.float64
        torch.testing.assert_close(part, wanted, rtol=1e-12, atol=1e-12 * float(wanted.abs().max()))


@given(problem=problems())
def test_second_moments_are_sums_over_samples(problem):
    S, matrices = problem.features, torch.stack([problem.A, problem.V], dim=-3)
    expected = (
        torch.einsum("...nd,...ne->...de", S, S),
        torch.einsum("...nd,...knw->...kdw", S, matrices),
        torch.einsum("...inw,...jnw->...ij", matrices, matrices),
    )
    assert_moments(problem.moments(), expected)
    alone = second_moments(problem.A, features=problem.S)
    assert_moments(alone, (expected[0], expected[1][..., :1, :, :], expected[2][..., :1, :1]))


@given(problem=problems())
def test_momentum_moments_are_sums_over_samples(problem):
    A, B = problem.A, problem.B
    expected = (
        torch.einsum("...nd,...nw->...dw", problem.features, B),
        torch.einsum("...nw,...nw->...", B, A),
        torch.einsum("...nw,...nw->...", B, B),
    )
    found = momentum_moments(A, B, problem.S)
    torch.testing.assert_close(found.momentum_square, expected[2], rtol=1e-12, atol=0)
    size = (A.abs() * B.abs()).sum((-2, -1)).max()
    assert_moments(found._replace(momentum_representation=expected[1]), expected)
    assert bool(((found.momentum_representation - expected[1]).abs() <= 1e-12 * size).all())


@pytest.mark.parametrize("moments", [second_moments, momentum_moments])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_moments_of_a_data_set_are_the_sum_of_those_of_its_batches(moments, num_layers):
    A, V = (normal(num_layers, 9, 4, generator=generator_of(seed)) for seed in range(2))
    first, second = (moments(A[:, rows], V[:, rows]) for rows in (slice(0, 2), slice(2, 9)))
    assert_moments(moments(A, V), [left + right for left, right in zip(first, second, strict=True)])
