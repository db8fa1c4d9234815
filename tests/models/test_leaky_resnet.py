"""The Leaky ResNet against networks written out by hand, and its promises about step-sizes, maps and weights."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lightning_leaky import LeakyResNet
from lightning_leaky.models import LeakyLayer

NUM_LAYERS = 4
positive_numbers = st.lists(st.floats(0.1, 10.0), min_size=NUM_LAYERS, max_size=NUM_LAYERS)


def random_network(**changes) -> LeakyResNet:
    """A float64 network between identity maps, so that its outputs are A_L."""
    sizes = {"in_features": 5, "out_features": 5, "width": 5, "num_layers": NUM_LAYERS, "effective_depth": 2.0}
    maps = {"input_map": "identity", "output_map": "identity"}
    return LeakyResNet(**(sizes | maps | changes)).double()


def normalised(numbers: list[float]) -> Tensor:
    rho = torch.tensor(numbers, dtype=torch.float64)
    return rho / rho.sum()


def inputs_of(network: LeakyResNet, num_samples: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num_samples, network.width, dtype=torch.float64, generator=generator)


# Limits and symmetries of THEORY: a ResNet, a fully-connected net, scaled leak factors.


@given(numbers=positive_numbers, seed=st.integers(0, 99))
def test_without_leak_is_a_resnet(numbers, seed):
    torch.manual_seed(seed)
    network = random_network(effective_depth=0.0)
    network.set_step_sizes(normalised(numbers))
    inputs = inputs_of(network)
    expected = inputs
    for layer, rho in zip(network.layers, network.step_sizes, strict=True):
        expected = expected + rho * (expected.relu() @ layer.weight.T + layer.bias)
    torch.testing.assert_close(network(inputs), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("constant_column", [True, False])
@given(seed=st.integers(0, 99))
def test_full_leak_is_a_fully_connected_net(constant_column, seed):
    torch.manual_seed(seed)
    network = random_network(effective_depth=float(NUM_LAYERS), constant_column=constant_column)
    inputs = inputs_of(network)
    expected = inputs
    for weight, rho in zip(network.weights(), network.step_sizes, strict=True):
        sigma = F.pad(expected.relu(), (0, 1), value=1.0) if constant_column else expected.relu()
        expected = sigma @ (rho * weight).T
    torch.testing.assert_close(network(inputs), expected, rtol=1e-13, atol=1e-13)


@given(
    scales=st.lists(st.floats(0.3, 3.0), min_size=NUM_LAYERS, max_size=NUM_LAYERS),
    numbers=positive_numbers,
    effective_depth=st.floats(0.0, 10.0),
)
def test_scaling_leak_and_weight_of_a_layer_scales_everything_after_it(scales, numbers, effective_depth):
    """(1 − ρ_l L̃) → s_l (1 − ρ_l L̃) with W_l → s_l W_l gives A_l Π s: relu is positively homogeneous."""
    network = random_network(effective_depth=effective_depth, constant_column=False)
    network.set_step_sizes(normalised(numbers))
    inputs = inputs_of(network)
    scaled = inputs
    for layer, rho, scale in zip(network.layers, network.step_sizes, scales, strict=True):
        scaled = scale * (1 - rho * effective_depth) * scaled + rho * scaled.relu() @ (scale * layer.weight).T
    torch.testing.assert_close(scaled, math.prod(scales) * network(inputs), rtol=1e-10, atol=1e-10)


@given(effective_depth=st.floats(0.0, 20.0, width=32), numbers=positive_numbers)
def test_without_noise_a_non_negative_representation_stays(effective_depth, numbers):
    network = random_network(effective_depth=effective_depth, init="identity", init_noise=0.0)
    network.set_step_sizes(normalised(numbers))
    start = inputs_of(network).abs()
    path = network.representations(start)
    torch.testing.assert_close(path, start.expand_as(path), rtol=1e-12, atol=0)


def test_plain_init_has_he_weights_without_an_identity():
    network = random_network(in_features=200, out_features=200, width=200, effective_depth=7.0, init="plain")
    weights = network.weights()[..., :-1]
    assert float(weights.std().detach()) == pytest.approx(math.sqrt(2 / 200), rel=0.05)
    assert float(weights.diagonal(dim1=-2, dim2=-1).mean().detach()) == pytest.approx(0.0, abs=0.03)


# The path.


def test_representations_are_what_the_layers_pass_on(make_network):
    network, inputs = make_network(), torch.randn(7, 3)
    seen = []
    for layer in network.layers:
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    network.output_map.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    outputs = network(inputs)
    for layer in network.layers:
        layer._forward_pre_hooks.clear()
    path = network.representations(inputs)
    assert torch.equal(torch.stack(seen), path)
    assert torch.equal(network.output_map(path[-1]), outputs)


def test_a_layer_takes_leading_dimensions():
    layer = LeakyLayer(width=3, effective_depth=2.0)
    torch.nn.init.normal_(layer.weight)
    tokens, rho = torch.randn(2, 5, 3), torch.tensor(0.25)
    torch.testing.assert_close(layer(tokens, rho).flatten(0, 1), layer(tokens.flatten(0, 1), rho))


def test_activation_is_applied():
    network = random_network(activation="tanh", constant_column=False, effective_depth=0.0)
    inputs = inputs_of(network)
    expected = inputs
    for weight in network.weights():
        expected = expected + expected.tanh() @ weight.T / NUM_LAYERS
    torch.testing.assert_close(network(inputs), expected, rtol=1e-12, atol=1e-12)


def test_weights_carry_the_biases_in_their_last_column(make_network):
    with_bias, without = make_network(), make_network(constant_column=False)
    assert with_bias.weights().shape == (4, 6, 7)
    assert torch.equal(with_bias.weights()[2, :, -1], with_bias.layers[2].bias)
    assert without.weights().shape == (4, 6, 6)
    assert without.layers[0].bias is None


# The regularizer.


@pytest.mark.parametrize("constant_column", [True, False])
@given(numbers=positive_numbers, effective_depth=st.floats(0.1, 10.0))
def test_regularizer_is_the_sum_of_theory(constant_column, numbers, effective_depth):
    network = random_network(effective_depth=effective_depth, constant_column=constant_column)
    network.set_step_sizes(normalised(numbers))
    total = sum(
        float(rho) * sum(float(parameter.detach().square().sum()) for parameter in layer.parameters())
        for rho, layer in zip(network.step_sizes, network.layers, strict=True)
    )
    assert float(network.regularizer().detach()) == pytest.approx(total / (2 * effective_depth), rel=1e-12)


def test_without_leak_the_factor_one_over_depth_is_dropped(make_network):
    network = make_network(effective_depth=0.0, input_map="fixed", output_map="fixed").double()
    expected = 0.5 * (network.step_sizes * network.weights().square().sum((-2, -1))).sum()
    torch.testing.assert_close(network.regularizer(), expected)


def test_learned_maps_pay_and_fixed_ones_do_not(make_network):
    learned, fixed = make_network(), make_network(input_map="fixed", output_map="fixed")
    paid = 0.5 * (learned.input_map.weight.square().sum() + learned.output_map.weight.square().sum())
    fixed.layers.load_state_dict(learned.layers.state_dict())
    torch.testing.assert_close(learned.regularizer() - paid, fixed.regularizer())


# The maps.


def test_learned_maps_train_and_have_no_bias(make_network):
    network = make_network()
    for linear in (network.input_map, network.output_map):
        assert linear.weight.requires_grad
        assert linear.bias is None


def test_fixed_maps_are_orthonormal_and_do_not_train(make_network):
    network = make_network(input_map="fixed", output_map="fixed")
    lift, read = network.input_map.weight, network.output_map.weight
    assert not lift.requires_grad
    assert not read.requires_grad
    torch.testing.assert_close(lift.T @ lift, torch.eye(3))
    torch.testing.assert_close(read @ read.T, torch.eye(2))


# Step-sizes.


def test_step_sizes_are_set_in_place(make_network):
    network = make_network()
    buffer, address, before = network.step_sizes, network.step_sizes.data_ptr(), network(torch.ones(2, 3))
    network.set_step_sizes([0.1, 0.2, 0.3, 0.4])
    assert network.step_sizes is buffer
    assert network.step_sizes.data_ptr() == address
    torch.testing.assert_close(network.step_sizes, torch.tensor([0.1, 0.2, 0.3, 0.4]))
    assert not torch.equal(network(torch.ones(2, 3)), before)


@pytest.mark.parametrize(
    "wrong", [[0.5, 0.5], [0.5, 0.5, 0.5, 0.5], [0.6, 0.6, -0.1, -0.1], [1.0, 0.0, 0.0, 0.0], [math.nan] * 4]
)
def test_wrong_step_sizes_are_refused_and_change_nothing(make_network, wrong):
    network = make_network()
    before = network.step_sizes.clone()
    with pytest.raises(ValueError, match="`step_sizes`"):
        network.set_step_sizes(wrong)
    assert torch.equal(network.step_sizes, before)


def test_irregular_step_sizes_are_smaller_at_the_ends(make_network):
    rho = make_network(num_layers=9, step_sizes="irregular").step_sizes
    assert float(rho.sum()) == pytest.approx(1.0, abs=1e-6)
    assert rho[0] < rho[4] > rho[-1]


def test_state_dict_round_trip_is_exact(make_network):
    network = make_network(seed=0)
    network.set_step_sizes([0.1, 0.2, 0.3, 0.4])
    copy, inputs = make_network(seed=1), torch.randn(4, 3)
    assert not torch.equal(copy(inputs), network(inputs))
    copy.load_state_dict(network.state_dict())
    assert torch.equal(copy.step_sizes, network.step_sizes)
    assert torch.equal(copy(inputs), network(inputs))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("in_features", 0),
        ("out_features", -1),
        ("width", 0),
        ("num_layers", 0),
        ("effective_depth", -1.0),
        ("activation", "relux"),
        ("step_sizes", "uneven"),
        ("step_sizes", [0.5, 0.5]),
        ("input_map", "identity"),
        ("output_map", "identity"),
        ("input_map", "orthogonal"),
        ("init", "zero"),
        ("init_noise", -0.1),
    ],
)
def test_wrong_arguments_are_named(make_network, name, wrong):
    with pytest.raises(ValueError, match=f"`{name}`"):
        make_network(**{name: wrong})


def test_compiled_network_equals_eager_and_survives_new_step_sizes(make_network):
    network, inputs = make_network(), torch.randn(5, 3)
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs), network(inputs))
    with torch._dynamo.config.patch(error_on_recompile=True):
        network.set_step_sizes([0.1, 0.2, 0.3, 0.4])
        torch.testing.assert_close(compiled(inputs), network(inputs))
    torch._dynamo.reset()


def test_a_network_can_be_traced_by_fx(make_network):
    network, inputs = make_network(), torch.randn(5, 3)
    torch.testing.assert_close(torch.fx.symbolic_trace(network)(inputs), network(inputs))


def test_layers_that_are_wrapped_keep_their_weights():
    network = random_network()
    weights, regularizer = network.weights(), network.regularizer()
    network.layers[0] = torch.compile(network.layers[0], backend="eager")
    assert torch.equal(network.weights(), weights)
    assert torch.equal(network.regularizer(), regularizer)
