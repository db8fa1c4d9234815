import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from examples.paper.continuous import gap
from lightning_leaky import LeakyResNet

EFFECTIVE_DEPTH = 2.0
UNEVEN = [0.1, 0.4, 0.2, 0.3]
READINGS = ("constant", "linear")


def network_of(
    step_sizes: list[float],
    weights: Callable[[float], Tensor],
    activation: str = "identity",
    constant_column: bool = True,
) -> LeakyResNet:
    """A network in float64 whose layers sample W(p) in the middles of their intervals, the bias as last column."""
    torch.manual_seed(0)
    sizes = (3, 2, 3, len(step_sizes), EFFECTIVE_DEPTH)
    network = LeakyResNet(*sizes, activation, constant_column, input_map="identity").double()
    network.set_step_sizes(step_sizes)
    start = 0.0
    for layer, step_size in zip(network.layers, step_sizes, strict=True):
        weight = weights(start + step_size / 2)
        layer.weight.data.copy_(weight[:, :3])
        if constant_column:
            layer.bias.data.copy_(weight[:, 3])
        start += step_size
    return network.requires_grad_(False)


def smooth(position: float) -> Tensor:
    """A W(p) that is not linear in p and does not commute with itself."""
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    return first + 2 * position**2 * second


def relative_errors(network: LeakyResNet, inputs: Tensor, exact: list[Tensor]) -> list[float]:
    path = network.representations(inputs)[1:]
    return [float((one - other).norm() / other.norm()) for one, other in zip(path, exact, strict=True)]


@pytest.fixture
def inputs() -> Tensor:
    return torch.rand(20, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.5


@pytest.mark.parametrize("constant_column", [True, False])
def test_with_every_feature_active_the_exact_path_is_a_matrix_exponential(
    inputs: Tensor, constant_column: bool
) -> None:
    network = network_of(UNEVEN, smooth, constant_column=constant_column)
    exact, state = [], torch.cat([inputs, torch.ones(20, 1, dtype=torch.float64)], dim=1)
    for layer, step_size in zip(network.layers, UNEVEN, strict=True):
        generator = torch.zeros(4, 4, dtype=torch.float64)
        generator[:3, :3] = layer.weight - EFFECTIVE_DEPTH * torch.eye(3, dtype=torch.float64)
        if constant_column:
            generator[:3, 3] = layer.bias
        state = state @ torch.linalg.matrix_exp(step_size * generator).mT
        exact.append(state[:, :3])
    found = gap(network, inputs, "constant")
    expected = relative_errors(network, inputs, exact)
    assert found["errors"] == pytest.approx(expected, rel=1e-5)
    assert found["largest_error"] == pytest.approx(max(expected), rel=1e-5)
    assert found["last_error"] == pytest.approx(expected[-1], rel=1e-5)
    outputs, exact_outputs = network(inputs), network.output_map(exact[-1])
    assert found["output_error"] == pytest.approx(
        float((outputs - exact_outputs).norm() / exact_outputs.norm()), rel=1e-5
    )


def test_weights_linear_in_p_where_they_commute(inputs: Tensor) -> None:
    """A diagonal W(p) without bias: every neuron grows by exp ∫(W(p) − L̃)dp, by hand over the linear pieces."""
    values = [1.0, 4.0, 2.0, 3.0]
    diagonal = torch.cat([torch.eye(3), torch.zeros(3, 1)], dim=1).double()
    network = network_of(UNEVEN, lambda _: diagonal)
    for layer, value in zip(network.layers, values, strict=True):
        layer.weight.mul_(value)
    # W at p = 0.1, 0.5 and 0.7, between the middles 0.05, 0.3, 0.6 and 0.85.
    inner = [1 + 3 * 0.05 / 0.25, 4 - 2 * 0.2 / 0.3, 2 + 1 * 0.1 / 0.25]
    ends = [values[0], *inner, values[-1]]
    integral, exact = 0.0, []
    for left, middle, right, length in zip(ends, values, ends[1:], UNEVEN, strict=False):
        integral += length / 4 * (left + 2 * middle + right) - EFFECTIVE_DEPTH * length
        exact.append(inputs * torch.tensor(integral).double().exp())
    assert gap(network, inputs, "linear")["errors"] == pytest.approx(relative_errors(network, inputs, exact), rel=1e-5)


@pytest.mark.parametrize("weights", READINGS)
@pytest.mark.parametrize("activation", ["identity", "relu", "tanh"])
def test_the_error_is_of_first_order_and_step_doubling_finds_it(inputs: Tensor, weights: str, activation: str) -> None:
    found = {
        num_layers: gap(network_of([1 / num_layers] * num_layers, smooth, activation), inputs, weights)
        for num_layers in (64, 128)
    }
    for quantity in ("largest", "last", "output"):
        coarse, fine = (found[num_layers][f"{quantity}_error"] for num_layers in (64, 128))
        assert coarse / fine == pytest.approx(2, rel=0.05)
        assert found[128][f"{quantity}_estimate"] == pytest.approx(fine, rel=0.05)


@pytest.mark.parametrize("weights", READINGS)
def test_the_tolerance_does_not_matter_once_it_is_tight(inputs: Tensor, weights: str) -> None:
    network = network_of(UNEVEN, smooth, "relu")
    loose, tight = (gap(network, inputs, weights, tolerance)["errors"] for tolerance in (1e-7, 1e-10))
    assert loose == pytest.approx(tight, rel=1e-4)
    assert loose != tight


def test_both_readings_agree_where_the_weights_do_not_change(inputs: Tensor) -> None:
    network = network_of(UNEVEN, lambda _: smooth(0.5), "relu")
    constant, linear = (gap(network, inputs, weights) for weights in READINGS)
    assert constant.pop("errors") == pytest.approx(linear.pop("errors"), rel=1e-5)
    assert constant == pytest.approx(linear, rel=1e-5)


def test_a_straight_path_has_no_error(inputs: Tensor) -> None:
    """W = [L̃·I, b]: the velocity is the bias, which Euler's method integrates exactly."""
    straight = torch.cat([EFFECTIVE_DEPTH * torch.eye(3), torch.ones(3, 1)], dim=1).double()
    found = gap(network_of(UNEVEN, lambda _: straight), inputs)
    assert max(found.pop("errors")) < 1e-12
    assert max(found.values()) < 1e-12


def test_the_network_stays_as_it_is(inputs: Tensor) -> None:
    network = LeakyResNet(3, 2, 3, 4, EFFECTIVE_DEPTH)
    before = copy.deepcopy(network.state_dict())
    gap(network, inputs.float(), "linear")
    after = network.state_dict()
    assert all(torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items())
    assert all(parameter.grad is None for parameter in network.parameters())
