"""The K-norm beyond its energies: several matrices at once, both limits of γ, and layers that have diverged or died."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_leaky.functional import (
    KNorm,
    cost_of_identity,
    k_inner_products,
    k_inner_products_from_moments,
    kinetic_energy,
    operator_norm,
    relative_gamma,
    second_moments,
)
from tests.references import Reference, assert_close, k_product, k_square, sigma
from tests.strategies import generator_of, k_norms, normal, problems


@given(problem=problems())
def test_all_inner_products_at_once(problem):
    matrices = (problem.A, problem.V, problem.B)
    products = k_inner_products(problem.A, *matrices, k_norm=problem.k_norm, features=problem.S)
    sizes = [k_square(problem.features, matrix, problem.k_norm).size for matrix in matrices]
    for i, left in enumerate(matrices):
        for j, right in enumerate(matrices):
            expected = k_product(problem.features, left, right, problem.k_norm)
            assert_close(products[..., i, j], Reference(expected, (sizes[i] * sizes[j]).sqrt()))


@given(problem=problems(), gamma_rel=st.floats(1e-6, 10.0))
def test_relative_gamma_is_a_share_of_the_operator_norm(problem, gamma_rel):
    S = problem.features
    norm = torch.linalg.matrix_norm(S @ S.mT, ord=2)
    assert_close(relative_gamma(problem.A, gamma_rel, problem.S), gamma_rel * norm, rtol=1e-12)
    assert_close(operator_norm(S.mT @ S), norm, rtol=1e-12)


SPECTRA = {
    "separated": lambda n: torch.linspace(0, 1, n) ** 4,
    "degenerate": lambda n: torch.ones(n),
    "two leading": lambda n: torch.cat([torch.ones(2), torch.full((n - 2,), 0.1)]),
    "slow": lambda n: 0.999 ** torch.arange(n),
    "rank one": lambda n: torch.eye(n)[0],
    "zero": torch.zeros,
}


def basis_of(size, seed=0):
    """Orthonormal columns in random directions."""
    return torch.linalg.qr(normal(size, size, generator=generator_of(seed)))[0]


def symmetric(spectrum, seed=0):
    """A matrix with these eigenvalues, in a random basis."""
    basis = basis_of(spectrum.shape[-1], seed)
    return basis * spectrum.double()[..., None, :] @ basis.mT


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
@pytest.mark.parametrize("size", [47, 48, 130])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_operator_norm_of_large_matrices_is_their_largest_eigenvalue(name, size, scale):
    gram = symmetric(scale * SPECTRA[name](size).double())
    expected = torch.linalg.eigvalsh(gram)[-1]
    torch.testing.assert_close(operator_norm(gram), expected, rtol=1e-9, atol=0)


@given(gap=st.floats(-14, 0), seed=st.integers(0, 99))
def test_leading_eigenvalues_that_nearly_agree_do_not_mislead_the_operator_norm(gap, seed):
    """Not by more than where power iteration turns by less than it can see.

    With shares p and 1 − p of the second and the first direction the estimate is too small by g p, and grows by
    16 g² p (1 − p) between two looks, 8 powers apart. It stops below 32 eps, so that g p ≤ √(2 eps p / (1 − p)), and p
    is at most what it was at the start.
    """
    spectrum = torch.full((60,), 0.5, dtype=torch.float64)
    spectrum[:2] = torch.tensor([1.0, 1 - 10**gap], dtype=torch.float64)
    start = torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first, second = (basis_of(60, seed)[:, :2].mT @ start).square()
    bound = (2 * torch.finfo(torch.float64).eps * second / first).sqrt()
    found = operator_norm(symmetric(spectrum, seed))
    assert -1e-12 <= 1 - found <= min(10**gap, 1.05 * bound) + 1e-12


def test_the_operator_norm_finds_a_block_that_is_far_smaller_than_the_others():
    """One entry among many, larger than all of their eigenvalues by little."""
    gram = symmetric(torch.linspace(0, 1, 100))
    gram = torch.block_diag(gram, torch.tensor([[1.5]], dtype=torch.float64))
    torch.testing.assert_close(float(operator_norm(gram)), 1.5, rtol=1e-9, atol=0)


def test_each_of_several_matrices_has_its_own_operator_norm():
    spectra = torch.stack([make(64).double() for make in SPECTRA.values()])
    found = operator_norm(torch.stack([symmetric(spectrum) for spectrum in spectra]))
    torch.testing.assert_close(found, spectra.amax(-1), rtol=1e-9, atol=0)


def test_the_operator_norm_uses_up_no_random_numbers():
    state = torch.get_rng_state()
    first = operator_norm(symmetric(torch.linspace(0, 1, 100)))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(operator_norm(symmetric(torch.linspace(0, 1, 100))), first)


@given(problem=problems(norms=k_norms(forms=("relative",))))
def test_relative_form_is_the_absolute_form_at_its_gamma(problem):
    relative = KNorm(gamma_rel=problem.k_norm.gamma_rel)
    for A, S in zip(*(each.reshape(-1, *each.shape[-2:]) for each in (problem.A, problem.features)), strict=True):
        gamma = float(relative_gamma(A, relative.gamma_rel, S))
        if gamma > 0:
            assert_close(cost_of_identity(A, KNorm(gamma=gamma), S), cost_of_identity(A, relative, S))


@given(problem=problems(kinds=("generic",), scales=(1.0,), norms=st.just(KNorm(gamma=0.0)), activations=("tanh",)))
def test_stable_form_tends_to_raw_form_inside_the_column_space(problem):
    inside = problem.S @ problem.W.mT
    raw, stable = (
        k_inner_products(problem.A, inside, k_norm=KNorm(gamma=gamma), features=problem.S) for gamma in (0.0, 1e-10)
    )
    torch.testing.assert_close(stable, raw, rtol=1e-3, atol=1e-9)


def test_outside_the_column_space_raw_counts_nothing_and_stable_counts_the_square_over_gamma():
    A = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    outside = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    assert k_inner_products(A, outside, k_norm=KNorm(gamma=0.0), features=A).item() == 0
    assert k_inner_products(A, outside, k_norm=KNorm(gamma=0.5), features=A).item() == pytest.approx(50.0)


@pytest.mark.parametrize("num_samples", [2, 6], ids=["N<d", "N>=d"])
def test_without_features_the_relative_form_takes_its_limit(num_samples):
    """All features zero: γ = 0, and ‖M‖²/γ is infinite unless M is zero."""
    dead = -torch.ones(num_samples, 3)
    velocities = torch.stack([torch.zeros_like(dead), torch.ones_like(dead)])
    no_features = torch.zeros(2, num_samples, 3)
    energies = kinetic_energy(dead.expand(2, -1, -1), velocities, 2.0, features=no_features)
    assert energies.tolist() == [0.0, float("inf")]


@pytest.mark.parametrize("num_samples", [2, 6], ids=["N<d", "N>=d"])
def test_gamma_too_small_to_be_seen_is_nan_or_right_but_never_wrong(num_samples):
    A = torch.ones(num_samples, 3)
    values = torch.stack([cost_of_identity(A, KNorm(gamma_rel=gamma_rel)) for gamma_rel in (1e-30, 1e-18)])
    expected = k_square(sigma(A.double()), A.double(), KNorm(gamma=0.0)).value
    assert all(value.isnan() or value == pytest.approx(float(expected), rel=1e-3) for value in values)


@pytest.mark.parametrize("k_norm", [KNorm(), KNorm(gamma=1.0), KNorm(gamma=0.0)], ids=["relative", "absolute", "raw"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("spoilt", [("gram",), ("gram", "cross", "inner")], ids=["gram", "all"])
def test_a_diverged_layer_is_nan_and_its_neighbours_are_right(k_norm, value, spoilt):
    A = normal(3, 6, 4, generator=generator_of(0))
    expected = k_inner_products(A, A, k_norm=k_norm)
    moments = second_moments(A)
    for name in spoilt:
        getattr(moments, name)[1] = value
    products = k_inner_products_from_moments(moments, k_norm)
    assert products[1].isnan().all()
    torch.testing.assert_close(products[[0, 2]], expected[[0, 2]], rtol=1e-8, atol=0)


@pytest.mark.parametrize("field", ["gamma", "gamma_rel", "rtol"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_bad_numbers_are_named_with_their_value(field, value):
    with pytest.raises(ValueError, match=rf"`{field}`.*got {value}"):
        KNorm(**{field: value})


def test_a_relative_gamma_of_zero_is_refused_while_it_is_in_use():
    with pytest.raises(ValueError, match=r"`gamma_rel`.*gamma=0"):
        KNorm(gamma_rel=0.0)
    assert KNorm(gamma=1.0, gamma_rel=0.0).gamma == 1.0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.ones(2, 4), r"`matrices\[1\]` must have the shape of `representation`"),
        (torch.ones(2, 3).int(), r"`matrices\[1\]`.*int32"),
        (torch.full((2, 3), float("nan")), r"`matrices\[1\]`.*6 NaN"),
    ],
    ids=["shape", "integers", "nan"],
)
def test_a_bad_matrix_is_named_by_its_place(bad, message):
    A = torch.ones(2, 3)
    with pytest.raises(ValueError, match=message):
        k_inner_products(A, A, bad)


def test_relative_gamma_names_a_bad_representation():
    with pytest.raises(ValueError, match="`representation`"):
        relative_gamma(torch.ones(3))
