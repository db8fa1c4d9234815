"""Criticality residual and balancedness along discrete Hamilton paths, where the answer is known."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_leaky.functional import balancedness_defect, criticality_residual
from tests.functional.conftest import EFFECTIVE_DEPTH, NUM_LAYERS
from tests.references import observed_order, squared_norm
from tests.strategies import generator_of, normal, seeds


def equal_steps(num_layers):
    return torch.full((num_layers,), 1 / num_layers, dtype=torch.float64)


def defects_of(path):
    return balancedness_defect(path.weights, equal_steps(len(path.weights)), EFFECTIVE_DEPTH)


def test_residual_vanishes_along_the_path_in_the_right_pairing_only(hamilton_paths):
    path = hamilton_paths[20]
    paired = criticality_residual(path.weights, path.representations[:-1], path.momenta, EFFECTIVE_DEPTH)
    shifted = criticality_residual(path.weights, path.representations[1:], path.momenta, EFFECTIVE_DEPTH)
    assert float(paired.max()) < 1e-13
    assert float(shifted.min()) > 1e-3


@given(seed=seeds, error=st.floats(1e-6, 10.0))
def test_residual_is_the_relative_distance_from_the_critical_weight(seed, error):
    generator = generator_of(seed)
    A, B = (normal(6, 4, generator=generator) for _ in range(2))
    critical = 2.0 * B.mT @ torch.cat([A.clamp(min=0), torch.ones(6, 1, dtype=A.dtype)], dim=-1)
    W = (1 + error) * critical
    assert float(criticality_residual(W, A, B, 2.0)) == pytest.approx(error / (1 + error), rel=1e-9)


def test_zero_weights_are_critical_or_infinitely_far():
    A = torch.ones(2, 3)
    momenta = torch.stack([torch.zeros(2, 3), torch.ones(2, 3)])
    residual = criticality_residual(torch.zeros(2, 3, 4), A.expand(2, -1, -1), momenta, 2.0)
    assert residual.tolist() == [0.0, float("inf")]


def test_at_a_critical_point_the_derivatives_are_finite():
    A, B = (normal(5, 4, generator=generator_of(seed)).requires_grad_() for seed in range(2))
    W = (2.0 * B.mT @ torch.nn.functional.pad(A.relu(), (0, 1), value=1.0)).detach().requires_grad_()
    for gradient in torch.autograd.grad(criticality_residual(W, A, B, 2.0), (W, A, B)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("shape", [(4, 4), (5, 5)], ids=["no_bias_column", "width"])
def test_residual_names_a_weight_of_another_shape(shape):
    with pytest.raises(ValueError, match=rf"`weight` must have shape \(..., 4, 5\), got \({shape[0]}, {shape[1]}\)"):
        criticality_residual(torch.ones(shape), torch.ones(3, 4), torch.ones(3, 4), 2.0)


def test_balancedness_defect_is_of_first_order_in_the_step_size(hamilton_paths):
    defects = [defects_of(path)[-1].abs() for path in hamilton_paths.values()]
    assert observed_order(NUM_LAYERS, defects) == pytest.approx(1.0, abs=0.15)
    assert observed_order(NUM_LAYERS[-2:], defects[-2:]) == pytest.approx(1.0, abs=0.06)


def test_half_the_bias_term_balances_nothing(hamilton_paths):
    """A factor 1 in place of 2 leaves a defect that no finer mesh removes."""
    halves = [
        defects_of(path) + EFFECTIVE_DEPTH * path.weights[:-1, :, -1].square().sum() / len(path.weights)
        for path in (hamilton_paths[20], hamilton_paths[320])
    ]
    assert float(halves[1][-1]) > 0.5 * float(halves[0][-1]) > 0


@given(seed=seeds, depth=st.floats(0.0, 20.0), num_layers=st.integers(1, 6))
def test_balancedness_defect_is_its_formula(seed, depth, num_layers):
    generator = generator_of(seed)
    W, rho = normal(num_layers, 3, 4, generator=generator), torch.rand(num_layers, generator=generator).double() + 0.1
    rho = rho / rho.sum()
    norms, paid = squared_norm(W), [2 * depth * rho[i] * (W[i, :, -1] ** 2).sum() for i in range(num_layers)]
    expected = torch.stack([norms[i] - norms[0] - sum(paid[:i], torch.zeros(())) for i in range(num_layers)])
    torch.testing.assert_close(balancedness_defect(W, rho, depth), expected.double(), rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(balancedness_defect(W, rho, depth, constant_column=False), norms - norms[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": torch.ones(3, 4)}, r"`weights` must have shape \(L, rows, columns\), got \(3, 4\)"),
        ({"weights": torch.ones(2, 3, 4).long()}, "`weights`.*int64"),
        ({"weights": torch.full((2, 3, 4), float("nan"))}, "`weights`.*24 NaN"),
        ({"step_sizes": torch.ones(3) / 3}, r"`step_sizes` must have shape \(2,\)"),
        ({"step_sizes": torch.ones(2)}, "`step_sizes` must sum to 1"),
        ({"effective_depth": -1.0}, "`effective_depth`.*-1.0"),
    ],
    ids=["shape", "integers", "nan", "length", "sum", "depth"],
)
def test_balancedness_defect_names_bad_arguments(changes, message):
    arguments = {"weights": torch.ones(2, 3, 4), "step_sizes": equal_steps(2), "effective_depth": 1.0}
    with pytest.raises(ValueError, match=message):
        balancedness_defect(**(arguments | changes))


def test_a_diverged_weight_is_named():
    A = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"`weight`.*NaN"):
        criticality_residual(torch.full((3, 4), float("nan")), A, A, 1.0)
