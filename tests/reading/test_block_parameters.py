"""Pontryagin's Hamiltonian and its residual over a data set, and which parameters they are of."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from lightning_leaky import LeakyResNet, measure_path
from lightning_leaky.functional import objective_weight_decay, pontryagin_hamiltonian, pontryagin_residual
from tests.references import hamilton_path
from tests.strategies import generator_of, normal

OF_BLOCKS = ["pontryagin_hamiltonian", "pontryagin_residual"]
WIDTH, DECAY = 6, 0.02


class Tanh(nn.Module):
    """h + W₂ tanh(W₁h), small at the start."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.first, self.second = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        for linear in (self.first, self.second):
            nn.init.normal_(linear.weight, std=0.3)

    def forward(self, hidden):
        return hidden + self.second(torch.tanh(self.first(hidden)))


class Normalised(nn.Module):
    """h + W₂ LN(W₁h + b₁): no scale of (W₁, b₁) changes it."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH, eps=1e-12)
        self.second = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, hidden):
        return hidden + self.second(self.norm(self.first(hidden)))


def body(make=Tanh, num_layers=4):
    torch.manual_seed(0)
    return nn.Sequential(*(make() for _ in range(num_layers))).double()


def data(rows=12):
    generator = generator_of(1)
    inputs = normal(rows, WIDTH, generator=generator)
    return inputs, torch.sin(2 * inputs).roll(1, -1)


def by_hand(blocks, inputs, targets, parameters_of, decay=DECAY):
    """Both readings of each block from autograd; C + (d/2)Σ‖θ‖² over some of the parameters of each."""
    path = [inputs.clone().requires_grad_()]
    for block in blocks:
        path.append(block(path[-1]))
    cost = mse_loss(path[-1], targets)
    found = []
    for number, block in enumerate(blocks):
        theta = parameters_of(block)
        gradients = torch.autograd.grad(cost, [path[number + 1], *theta], retain_graph=True)
        paid = decay / 2 * sum(one.square().sum() for one in theta)
        ends = (one.detach() for one in path[number : number + 2])
        found.append(
            (
                pontryagin_hamiltonian(gradients[0], *ends, paid.detach(), 1 / len(blocks)),
                pontryagin_residual([one.detach() for one in theta], gradients[1:], [decay] * len(theta)),
            )
        )
    return dict(zip(OF_BLOCKS, map(torch.stack, zip(*found, strict=True)), strict=True))


def measured(blocks, batches, quantities=OF_BLOCKS, **settings):
    lam = objective_weight_decay(DECAY, len(blocks), 0.0)
    return measure_path(blocks, batches, quantities, **({"cost": mse_loss, "weight_decay": lam} | settings))


def everything(block):
    return list(block.parameters())


@pytest.mark.parametrize("cuts", [[], [4], [5, 6, 10]])
def test_readings_are_those_of_autograd_over_any_batches(cuts):
    blocks, (inputs, targets) = body(), data()
    kept = [one.grad for one in blocks.parameters()]
    ends = [0, *cuts, len(inputs)]
    readings = measured(blocks, [(inputs[a:b], targets[a:b]) for a, b in itertools.pairwise(ends)])
    expected = by_hand(blocks, inputs, targets, everything)
    for key in OF_BLOCKS:
        torch.testing.assert_close(readings[key], expected[key], rtol=1e-10, atol=0)
    assert [one.grad for one in blocks.parameters()] == kept


def test_a_cost_that_is_a_sum():
    blocks, (inputs, targets) = body(), data()
    halves = [(inputs[:5], targets[:5]), (inputs[5:], targets[5:])]
    whole = measured(blocks, [(inputs, targets)])
    found = measured(blocks, halves, cost=lambda out, y: (out - y).square().sum() / 12 / WIDTH, loss_reduction="sum")
    for key in OF_BLOCKS:
        torch.testing.assert_close(found[key], whole[key], rtol=1e-10, atol=0)


def test_of_a_critical_leaky_resnet_it_is_lambda_times_the_papers():
    generator, lam, num_layers = generator_of(0), 0.3, 10
    A, B = normal(20, 8, generator=generator), 0.02 * normal(20, 8, generator=generator)
    path = hamilton_path(A, B, 2.0, num_layers)
    network = LeakyResNet(8, 8, 8, num_layers, 2.0, input_map="identity", output_map="identity").double()
    network.step_sizes.fill_(1 / num_layers)
    with torch.no_grad():
        for layer, weight in zip(network.layers, path.weights, strict=True):
            layer.weight.copy_(weight[:, :-1])
            layer.bias.copy_(weight[:, -1])
    readings = measure_path(
        network, [(A, path.momenta[-1])], cost=lambda out, last: -lam * (out * last).sum(), weight_decay=lam
    )
    assert {"hamiltonian", *OF_BLOCKS} <= set(readings.quantities)
    expected = readings["hamiltonian"]
    torch.testing.assert_close(readings["pontryagin_hamiltonian"] / lam, expected, rtol=1e-8, atol=0)
    assert float(readings.summaries()["pontryagin_residual/max"]) < 1e-7


class Plain(nn.Module):
    """h + W tanh(h), nothing at the start."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, hidden):
        return hidden + self.linear(torch.tanh(hidden))


def trained(num_layers, lam=0.01):
    """Blocks that SGD with weight decay has brought to a minimum, what they pay for it, and their readings."""
    blocks, (inputs, _) = body(Plain, num_layers), data()
    targets, decay = inputs.roll(1, -1), lam * num_layers
    optimizer = torch.optim.SGD(blocks.parameters(), 3 / num_layers, momentum=0.95, weight_decay=decay)
    for _ in range(500):
        optimizer.zero_grad()
        mse_loss(blocks(inputs), targets).backward()
        optimizer.step()
    paid = [num_layers * decay / 2 * float(one.detach().square().sum()) for one in blocks.parameters()]
    return paid, measured(blocks, [(inputs, targets)], weight_decay=lam)


def test_it_is_constant_along_an_optimum_of_blocks_that_are_no_leaky_steps():
    """Up to the discretisation: half the spread with twice the layers."""
    relative = []
    for num_layers in (8, 16):
        paid, readings = trained(num_layers)
        assert float(readings.summaries()["pontryagin_residual/max"]) < 1e-3
        relative.append(float(readings.summaries()["pontryagin_hamiltonian/spread"]) / max(paid))
    assert relative[0] < 0.1
    assert 0.4 < relative[1] / relative[0] < 0.6


def test_weights_before_a_normalisation_are_left_out():
    blocks, (inputs, targets) = body(Normalised), data()
    readings = measured(blocks, list(zip(inputs.chunk(2), targets.chunk(2), strict=True)))
    expected = by_hand(blocks, inputs, targets, lambda block: [*block.norm.parameters(), block.second.weight])
    for key in OF_BLOCKS:
        torch.testing.assert_close(readings[key], expected[key], rtol=1e-9, atol=0)


def test_frozen_parameters_are_no_part_of_it():
    blocks, (inputs, targets) = body(), data()
    for block in blocks:
        block.first.weight.requires_grad_(False)
    expected = by_hand(blocks, inputs, targets, lambda block: [block.second.weight])
    readings = measured(blocks, [(inputs, targets)])
    for key in OF_BLOCKS:
        torch.testing.assert_close(readings[key], expected[key], rtol=1e-10, atol=0)


def test_by_default_blocks_without_leaky_weights_have_it_in_place_of_the_papers():
    blocks, batch = body(), data()
    assert {*OF_BLOCKS} <= set(measured(blocks, [batch], None).quantities)
    assert "hamiltonian" not in measured(blocks, [batch], None).quantities
    assert "hamiltonian" in measured(blocks, [batch], ["hamiltonian"]).quantities
    assert not {*OF_BLOCKS} & set(measured(blocks, [batch], None, weight_decay=None).quantities)
    assert not {*OF_BLOCKS} & set(measured(blocks.requires_grad_(False), [batch], None).quantities)


@pytest.mark.parametrize("layers", [None, "*"])
def test_without_a_decay_or_parameters_it_is_refused(layers):
    blocks, batch = body(), data()
    with pytest.raises(ValueError, match=r"`quantities` cannot include \['pontryagin_residual'\].*`weight_decay`"):
        measured(blocks, [batch], ["pontryagin_residual"], weight_decay=None, layers=layers)
    with pytest.raises(ValueError, match="without trainable parameters"):
        measured(blocks.requires_grad_(False), [batch], layers=layers)
