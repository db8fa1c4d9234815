"""The features σ(A), and the names of their activations."""

import pytest
import torch
from hypothesis import given, settings

from lightning_leaky.functional import features, resolve_activation, resolve_features
from tests.references import ACTIVATIONS, sigma
from tests.strategies import problems


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("constant_column", [True, False])
@settings(max_examples=20)
@given(problem=problems())
def test_features_equal_the_reference(activation, constant_column, problem):
    found = features(problem.A, activation, constant_column)
    torch.testing.assert_close(found, sigma(problem.A, activation, constant_column), rtol=1e-12, atol=1e-300)


def test_by_default_relu_and_a_last_column_of_ones():
    assert features(torch.tensor([[-1.0, 2.0], [3.0, -4.0]])).tolist() == [[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_features_keep_the_dtype(dtype):
    assert features(torch.ones(2, 3, dtype=dtype)).dtype == dtype


def test_features_are_a_new_tensor():
    A = torch.ones(2, 3)
    features(A, "identity", constant_column=False).zero_()
    assert A.sum() == 6


def test_a_function_is_its_own_activation():
    assert resolve_activation(torch.sin) is torch.sin
    assert torch.equal(features(torch.ones(1, 2), torch.sin, constant_column=False), torch.ones(1, 2).sin())


def test_linear_features_are_the_representation_and_crelu_can_put_it_together():
    A = torch.tensor([[-1.0, 2.0], [3.0, -4.0]])
    assert features(A, "linear").tolist() == [[-1.0, 2.0, 1.0], [3.0, -4.0, 1.0]]
    both = features(A, "crelu", constant_column=False)
    assert both.tolist() == [[0.0, 2.0, 1.0, 0.0], [3.0, 0.0, 0.0, 4.0]]
    assert torch.equal(both[:, :2] - both[:, 2:], A)


@pytest.mark.parametrize("name", ["linear", "crelu"])
def test_features_that_are_no_entrywise_nonlinearity_are_no_activation(name):
    with pytest.raises(ValueError, match="`activation` must be one of"):
        resolve_activation(name)


@pytest.mark.parametrize("name", ["ReLU", "", "softmax", 3])
def test_unknown_features_are_named_with_their_value(name):
    with pytest.raises(ValueError, match=rf"`features` must be one of .*crelu.*linear.*got {name!r}"):
        resolve_features(name)
    assert resolve_features(torch.sin) is torch.sin


@pytest.mark.parametrize("activation", ["ReLU", "", "softmax", 3])
def test_an_unknown_activation_is_named_with_its_value(activation):
    with pytest.raises(ValueError, match=rf"`activation` must be one of .*relu.*got {activation!r}"):
        resolve_activation(activation)


def test_a_function_may_write_into_what_it_takes():
    A = torch.tensor([[-1.0, 2.0]])
    assert features(A, torch.nn.ReLU(inplace=True)).tolist() == [[0.0, 2.0, 1.0]]
    assert A.tolist() == [[-1.0, 2.0]]


@pytest.mark.parametrize("function", [torch.sum, lambda A: A.mT, lambda A: A[:1]])
def test_a_row_of_features_belongs_to_a_row(function):
    with pytest.raises(
        ValueError, match=r"`features` must map \(N, w\) to \(N, d\), got a function from shape \(3, 2\) to"
    ):
        features(torch.ones(3, 2), function)
