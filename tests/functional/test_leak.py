"""λ from an optimizer's weight decay: the gradient of the objective vanishes where the weights are critical."""

import pytest
import torch
from torch import nn

from lightning_leaky import LeakyResidual, LeakyResNet
from lightning_leaky.functional import features, leak_scale, objective_weight_decay

WIDTH, LAYERS, DECAY = 4, 3, 0.2


class Block(nn.Module):
    """h + θ [relu(h), 1]."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.randn(WIDTH, WIDTH + 1).double())

    def forward(self, hidden):
        return hidden + features(hidden) @ self.theta.T


def gradients(parameters, path, cost):
    """Gradients of cost + (d/2) Σ‖θ‖², and ∂C/∂A_l."""
    objective = cost + DECAY / 2 * sum(parameter.square().sum() for parameter in parameters)
    return torch.autograd.grad(objective, parameters, retain_graph=True), torch.autograd.grad(cost, path[1:])


@pytest.mark.parametrize("depth", [0.0, 0.7, 3.0])
def test_of_blocks(depth):
    """Exactly, for any weights: ∂(C + (d/2)Σ‖θ‖²)/∂θ_l = (d/L)(W_l − (1/s) B_lᵀσ(A)), W_l = L θ_l, s = 1/L̃ (or 1)."""
    torch.manual_seed(0)
    blocks = [Block() for _ in range(LAYERS)]
    LeakyResidual(blocks, depth)
    path = [torch.randn(9, WIDTH, dtype=torch.float64, requires_grad=True)]
    for block in blocks:
        path.append(block(path[-1]))
    found, costs = gradients([block.theta for block in blocks], path, path[-1].square().sum(1).mean())
    lam = objective_weight_decay(DECAY, LAYERS, depth)
    for index, block in enumerate(blocks):
        momentum = -costs[index] / lam
        critical = momentum.T @ features(path[index]) / leak_scale(depth)
        torch.testing.assert_close(found[index], DECAY / LAYERS * (LAYERS * block.theta - critical))


@pytest.mark.parametrize("depth", [0.0, 0.7, 3.0])
def test_of_weights_that_act_per_unit_of_p(depth):
    """The parameters of a LeakyResNet are the W_l: ∂(…)/∂W_l = d (W_l − (1/s) B_lᵀσ(A))."""
    network = LeakyResNet(WIDTH, WIDTH, WIDTH, LAYERS, depth, input_map="identity", output_map="identity").double()
    path = list(network.representations(torch.randn(9, WIDTH).double().requires_grad_()).unbind())
    outputs = [path[0]]
    for layer, rho in zip(network.layers, network.step_sizes, strict=True):
        outputs.append(layer(outputs[-1], rho))
    weights = [layer.weight for layer in network.layers]
    found, costs = gradients(weights, outputs, outputs[-1].square().sum(1).mean())
    lam = objective_weight_decay(DECAY, LAYERS, depth, acts_per_layer=False)
    for index, weight in enumerate(weights):
        critical = (-costs[index] / lam).T @ torch.relu(outputs[index]) / leak_scale(depth)
        torch.testing.assert_close(found[index], DECAY * (weight - critical))
