"""Momenta of batches, each the gradient of its own loss, make those of the data set; weights come beside them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_leaky.metrics import CriticalityResidual, Hamiltonian, PathMomenta
from tests import references
from tests.metrics.cases import MOMENTUM_CASES, assert_same_reading, momentum_readings_of, paths_in_batches, random_path
from tests.references import assert_close

REDUCTIONS = {"mean": torch.mean, "sum": torch.sum}


def momenta_by_autograd(representations, weight_decay, reduction):
    """B = −(1/λ) ∂C/∂A, with a cost of every sample that is not linear in A, reduced over the samples of a batch."""
    leaves = representations.clone().requires_grad_()
    per_sample = (leaves**3 + leaves.cosh()).sum((0, 2))
    return -torch.autograd.grad(REDUCTIONS[reduction](per_sample), leaves)[0] / weight_decay


@pytest.mark.parametrize("reduction", REDUCTIONS)
@settings(max_examples=60)
@given(drawn=paths_in_batches(), weight_decay=st.floats(0.01, 10.0))
def test_losses_of_unequal_batches_make_the_momentum_of_the_data_set(reduction, drawn, weight_decay):
    path, batches = drawn
    metric = PathMomenta(path.num_layers, path.width, path.depth, reduction, path.k_norm)
    for rows in batches:
        momenta = momenta_by_autograd(path.current(rows), weight_decay, reduction)
        metric.update(path.previous(rows), momenta, path.weights)
    whole = momenta_by_autograd(path.current(), weight_decay, reduction)
    assert_same_reading(metric.compute(), momentum_readings_of(path, whole))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@settings(max_examples=50)
@given(drawn=paths_in_batches())
def test_readings_equal_the_references_over_any_batches(reduction, drawn):
    path, batches = drawn
    found = MOMENTUM_CASES[f"PathMomenta-{reduction}"].read(path, batches)
    A, B = path.previous(), path.momenta(reduction=reduction)
    S = references.sigma_of(A, path.k_norm)
    assert_close(found["hamiltonian"].reshape(-1), references.hamiltonian(A, B, path.depth, path.k_norm))
    residual = references.criticality_residual(path.weights, A, B, path.depth, path.k_norm)
    assert_close(found["criticality_residual"].reshape(-1), residual)
    assert_close(found["momentum_norm"].reshape(-1), torch.linalg.matrix_norm(B))
    assert_close(found["features_momentum_norm"].reshape(-1), torch.linalg.matrix_norm(B.mT @ S))


def test_each_layer_weighs_its_batches_by_its_own_samples():
    """As where a loss is a mean over images, and some layers see more positions of each than others."""
    path, rows = random_path(num_layers=2), (slice(0, 6), slice(0, 3))
    metric = Hamiltonian(2, path.width, path.depth)
    metric.update(*([matrix[layer, rows[layer]] for layer in range(2)] for matrix in (path.previous(), path.momenta())))
    for layer, found in enumerate(metric.compute()):
        A, B = path.previous()[layer, rows[layer]], path.momenta()[layer, rows[layer]]
        assert_close(found, references.hamiltonian(A, B, path.depth, path.k_norm))


def test_without_weights_there_is_no_residual():
    """Nor one with the weights of an earlier update."""
    path = random_path()
    metric = PathMomenta(path.num_layers, path.width, path.depth)
    metric.update(path.previous(), path.momenta(), path.weights)
    metric.update(path.previous(), path.momenta())
    assert metric.compute().keys() == {"hamiltonian", "momentum_norm", "features_momentum_norm"}


def test_a_residual_wants_weights():
    path = random_path()
    metric = CriticalityResidual(path.num_layers, path.width, path.depth)
    metric.update(path.previous(), path.momenta())
    with pytest.raises(ValueError, match="`weights` must be given"):
        metric.compute()


def test_a_residual_names_weights_of_another_shape():
    path = random_path()
    metric = CriticalityResidual(path.num_layers, path.width, path.depth)
    metric.update(path.previous(), path.momenta(), path.weights[..., :-1])
    with pytest.raises(ValueError, match=r"`weight` must have shape \(..., 4, 5\), got \(4, 4\)"):
        metric.compute()


def test_weights_are_those_of_the_update():
    path = random_path()
    metric, live = MOMENTUM_CASES["CriticalityResidual"].make(path), path.weights.clone()
    metric.update(path.previous(), path.momenta(), live)
    live.zero_()
    assert_same_reading(metric.compute(), MOMENTUM_CASES["CriticalityResidual"].expected(path))


@pytest.mark.parametrize("value", ["none", "MEAN", None])
def test_an_unknown_reduction_is_named_with_its_value(value):
    with pytest.raises(ValueError, match=f'`loss_reduction` must be "mean" or "sum", got {value!r}'):
        PathMomenta(1, 2, 1.0, loss_reduction=value)


def test_weights_that_diverged_read_nan_and_harm_nobody():
    path = random_path()
    metric = PathMomenta(path.num_layers, path.width, path.depth)
    weights = path.weights.clone()
    weights[1] = torch.nan
    metric.update(path.previous(), path.momenta(), weights)
    assert metric.compute()["criticality_residual"].isnan().tolist() == [False, True, False]
