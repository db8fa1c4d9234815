"""Pontryagin's Hamiltonian of any block: the paper's at a critical point of leaky steps, and constant elsewhere too."""

import pytest
import torch

from lightning_leaky.functional import hamiltonian, pontryagin_hamiltonian, pontryagin_residual
from tests.functional.conftest import EFFECTIVE_DEPTH as DEPTH
from tests.references import sigma

LAMBDA = 0.3


def of_leaky_steps(path, weights):
    """H of leaky steps with these weights: R_l = (λ/(2L̃))ρ‖W_l‖²."""
    rho = 1 / len(weights)
    cost = LAMBDA / (2 * DEPTH) * rho * weights.square().sum((-2, -1))
    start = path.representations[:-1]
    end = (1 - rho * DEPTH) * start + rho * sigma(start) @ weights.mT
    return pontryagin_hamiltonian(-LAMBDA * path.momenta, start, end, cost, rho)


def test_of_critical_leaky_steps_it_is_lambda_times_the_papers(hamilton_paths):
    path = hamilton_paths[20]
    expected = hamiltonian(path.representations[:-1], path.momenta, DEPTH)
    torch.testing.assert_close(of_leaky_steps(path, path.weights) / LAMBDA, expected, rtol=1e-10, atol=0)


def test_critical_weights_maximise_it(hamilton_paths):
    """As Pontryagin has it: by ‖W − L̃Bᵀσ‖² λ/(2L̃) others have less."""
    path = hamilton_paths[20]
    other = path.weights + 0.1 * torch.randn(path.weights.shape, generator=torch.Generator().manual_seed(0)).double()
    less = LAMBDA / (2 * DEPTH) * (other - path.weights).square().sum((-2, -1))
    torch.testing.assert_close(of_leaky_steps(path, path.weights) - of_leaky_steps(path, other), less)


def test_unequal_steps_divide_by_their_own_size():
    generator = torch.Generator().manual_seed(0)
    G, A, B = torch.randn(3, 2, 5, 4, generator=generator, dtype=torch.float64)
    rho, cost = torch.tensor([0.25, 0.75]), torch.tensor([1.0, 3.0], dtype=torch.float64)
    expected = torch.stack([(-(G[i] * (B[i] - A[i])).sum() - cost[i]) / rho[i] for i in range(2)])
    torch.testing.assert_close(pontryagin_hamiltonian(G, A, B, cost, rho), expected)


def test_the_residual_weighs_each_tensor_by_its_own_decay():
    theta, bias, slope, other = (
        torch.tensor([[3.0], [4.0]]),
        torch.ones(2),
        torch.tensor([[-0.3], [-0.2]]),
        torch.ones(2),
    )
    expected = (torch.tensor([0.0, 0.2, 1.0, 1.0]).double().norm() / 0.5).double()
    torch.testing.assert_close(
        pontryagin_residual([theta, bias], [slope, other], [0.1, 0.0]), expected, rtol=1e-6, atol=0
    )


def test_without_decay_what_is_left_is_infinitely_far():
    one = torch.ones(2)
    assert float(pontryagin_residual([one], [one], [0.0])) == float("inf")
    assert float(pontryagin_residual([one], [0 * one], [0.0])) == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([torch.ones(2)], [torch.ones(3)], [0.1]), r"`gradients` must have the shapes of `parameters`.*\(3,\)"),
        (([torch.ones(2)], [], [0.1]), "`gradients` must have the shapes"),
        (([torch.ones(2)], [torch.ones(2)], []), "`weight_decays` must be one number for each of 1"),
        (([], [], []), "`weight_decays` must be one number for each of 0 >= 1"),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        pontryagin_residual(*arguments)


def test_bad_tensors_are_named():
    with pytest.raises(ValueError, match="`current` must have the shape"):
        pontryagin_hamiltonian(torch.ones(2, 2), torch.ones(2, 2), torch.ones(3, 2), 0.0, 1.0)
