"""Singular values and stable rank, from matrices and from second moments."""

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from lightning_leaky.functional import singular_values, singular_values_from_moments, stable_rank
from lightning_leaky.functional.spectrum import stable_rank_of
from tests import references
from tests.references import assert_close
from tests.strategies import generator_of, normal, problems, seeds

factors = st.floats(1e-250, 1e250) | st.floats(-1e250, -1e-250)


def rank_from_moments(second_moment):
    return stable_rank_of(singular_values_from_moments(second_moment))


def orthogonal(size, generator):
    return torch.linalg.qr(normal(size, size, generator=generator)).Q


@st.composite
def matrices_with_known_spectrum(draw):
    """U diag(s) Vᵀ of shape (N, w), its singular values spread over at most two decades, some of them zero."""
    generator = generator_of(draw(seeds))
    num_samples, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    exponents = draw(st.lists(st.floats(-2, 0), min_size=1, max_size=min(num_samples, width)))
    values = torch.zeros(min(num_samples, width), dtype=torch.float64)
    values[: len(exponents)] = 10 ** torch.tensor(sorted(exponents, reverse=True), dtype=torch.float64)
    values = draw(st.sampled_from([1.0, 1e6, 1e-6])) * values
    left, right = orthogonal(num_samples, generator), orthogonal(width, generator)
    return left[:, : len(values)] * values @ right[:, : len(values)].mT, values


@given(drawn=matrices_with_known_spectrum())
def test_singular_values_are_those_the_matrix_was_made_of(drawn):
    A, values = drawn
    found, from_moments = singular_values(A), singular_values_from_moments(A.mT @ A)
    assert found.dtype == from_moments.dtype == torch.float64
    assert from_moments.shape == (A.shape[1],)
    assert bool(((found - values).abs() <= 1e-13 * values[0]).all())
    shared = len(values)
    assert bool(((from_moments[:shared] - values).abs() <= 1e-11 * values[0]).all())
    assert not from_moments[shared:].any()


@given(drawn=matrices_with_known_spectrum())
def test_stable_rank_is_the_square_of_nuclear_over_frobenius_norm(drawn):
    A, values = drawn
    expected = float(values.sum() ** 2 / (values**2).sum())
    assert float(stable_rank(A)) == pytest.approx(expected, rel=1e-11)
    assert float(rank_from_moments(A.mT @ A)) == pytest.approx(expected, rel=1e-9)
    assert 1 - 1e-12 <= expected <= int((values > 0).sum()) + 1e-9


@given(problem=problems())
def test_stable_rank_equals_the_reference(problem):
    assert_close(stable_rank(problem.A), references.stable_rank(problem.A), rtol=1e-10)


@given(problem=problems())
def test_stable_rank_from_moments_equals_the_reference(problem):
    """Wherever no singular value lies in the rounding noise of AᵀA."""
    values = torch.linalg.svdvals(problem.A)
    ratios = values / values[..., :1].clamp(min=1e-300)
    assume(not bool(((ratios > 1e-12) & (ratios < 1e-4)).any()))
    assert_close(rank_from_moments(problem.A.mT @ problem.A), references.stable_rank(problem.A), rtol=1e-10)


@given(seed=seeds, factor=factors)
@example(seed=0, factor=1e200)
@example(seed=0, factor=1e-200)
def test_stable_rank_has_no_scale(seed, factor):
    A = normal(5, 4, generator=generator_of(seed))
    assert float(stable_rank(factor * A)) == pytest.approx(float(stable_rank(A)), rel=1e-12)


def test_noise_in_second_moments_reads_as_zero():
    moment = torch.diag(torch.tensor([1.0, 1e-10, 1e-14, -1e-16], dtype=torch.float64))
    found = singular_values_from_moments(moment)
    assert found.tolist() == pytest.approx([1.0, 1e-5, 0.0, 0.0], rel=1e-9)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_layer_is_nan_and_its_neighbours_are_right(value):
    moments = torch.stack([torch.eye(3), torch.full((3, 3), value), 4 * torch.eye(3)]).double()
    values = singular_values_from_moments(moments)
    assert values[1].isnan().all()
    assert values[[0, 2]].tolist() == [[1.0] * 3, [2.0] * 3]
    ranks = rank_from_moments(moments)
    assert ranks[1].isnan()
    assert ranks[[0, 2]].tolist() == pytest.approx([3.0, 3.0])


@pytest.mark.parametrize("num_samples", [3, 6], ids=["N<w", "N>=w"])
def test_derivatives(num_samples):
    A = normal(2, num_samples, 4, generator=generator_of(0)).requires_grad_()
    assert torch.autograd.gradcheck(stable_rank, A)
    assert torch.autograd.gradcheck(singular_values, A)


BAD = [torch.ones(3), torch.ones(2, 0), torch.ones(2, 3).long(), torch.full((2, 3), float("nan")), [[1.0]]]


@pytest.mark.parametrize("bad", BAD, ids=["one_dimension", "empty", "integers", "nan", "list"])
def test_bad_matrices_are_named(bad):
    with pytest.raises(ValueError, match="`matrix`"):
        singular_values(bad)


@pytest.mark.parametrize("bad", BAD, ids=["one_dimension", "empty", "integers", "nan", "list"])
def test_bad_representations_are_named(bad):
    with pytest.raises(ValueError, match="`representation`"):
        stable_rank(bad)
