"""A Leaky ResNet on other meshes: what its outputs do, what an optimizer and a checkpoint notice."""

import copy

import pytest
import torch
from torch import nn

from lightning_leaky import LeakyResNet
from lightning_leaky.functional import equidistant_step_sizes, irregular_step_sizes, normalise_step_sizes


@torch.no_grad()
def smooth_network(num_layers, step_sizes="equidistant"):
    """Weights that are a smooth function of p, read at the middles; a smooth nonlinearity; float64."""
    network = LeakyResNet(
        3, 3, 3, num_layers, 2.0, activation="tanh", step_sizes=step_sizes, input_map="identity", output_map="identity"
    ).double()
    generator = torch.Generator().manual_seed(0)
    constant, wave = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    rho = network.step_sizes
    for layer, middle in zip(network.layers, (rho.cumsum(0) - rho / 2).tolist(), strict=True):
        augmented = constant + wave * torch.sin(torch.tensor(4 * middle))
        layer.weight.copy_(augmented[:, :3])
        layer.bias.copy_(augmented[:, 3])
    return network


def halves_of(rho, index):
    return torch.cat([rho[:index], rho[index : index + 1].repeat(2) / 2, rho[index + 1 :]])


@pytest.fixture
def inputs():
    return torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("place", "order"), [(0.0, 2), (0.5, 2), (1.0, 2), (None, 1)], ids=str)
def test_splitting_changes_the_outputs_at_the_order_of_the_error(inputs, place, order):
    """One layer, wherever it is, at second order in ρ; all layers, in sum, at first."""
    changes = []
    for num_layers in (32, 64, 128):
        network = smooth_network(num_layers)
        before = network(inputs).detach()
        if place is None:
            network.remesh(equidistant_step_sizes(2 * num_layers))
        else:
            network.remesh(halves_of(network.step_sizes, round(place * (num_layers - 1))))
        changes.append(float((network(inputs).detach() - before).norm()))
    for coarse, fine in ((changes[0], changes[1]), (changes[1], changes[2])):
        assert coarse / fine == pytest.approx(2**order, rel=0.15)


def test_any_mesh_of_any_length_is_near_the_same_function(inputs):
    network = smooth_network(40)
    before = network(inputs).detach()
    for mesh in (irregular_step_sizes(40), equidistant_step_sizes(90), irregular_step_sizes(31), [1 / 40] * 40):
        network.remesh(mesh)
        assert len(network.layers) == len(network.step_sizes) == len(mesh)
        torch.testing.assert_close(network(inputs), before, rtol=0.05, atol=0.05)


def test_one_layer_and_back(inputs):
    network = smooth_network(3)
    network.remesh([1.0])
    network.remesh([0.5, 0.5])
    assert torch.equal(network.layers[0].weight, network.layers[1].weight)
    assert network(inputs).isfinite().all()


def test_numbers_keep_all_their_digits():
    network = LeakyResNet(2, 2, width=4, num_layers=2, effective_depth=1.0).double()
    network.step_sizes = network.step_sizes.double()
    network.remesh([0.1, 0.2, 0.7])
    assert network.step_sizes.tolist() == [0.1, 0.2, 0.7]


def test_the_network_stays_the_same_object():
    """Its list of layers, the layers that are kept, the buffer's name, dtype and mode."""
    network = smooth_network(4).eval()
    layers, kept = network.layers, list(network.layers)
    network.remesh(halves_of(network.step_sizes, 1))
    assert network.layers is layers
    assert [index for index, layer in enumerate(layers) if any(layer is one for one in kept)] == [0, 1, 3, 4]
    assert list(dict(network.named_buffers())) == ["step_sizes"]
    assert (network.step_sizes.dtype, layers[2].weight.dtype, layers[2].training) == (
        torch.float64,
        torch.float64,
        False,
    )
    assert [name for name in network.state_dict() if "weight" in name] == [
        f"layers.{index}.weight" for index in range(5)
    ]
    assert copy.deepcopy(network)(torch.zeros(1, 3).double()).shape == (1, 3)


def test_refine_ends_below_the_tolerance(inputs):
    """And then changes nothing; each call says what it found."""
    network = smooth_network(6)
    for _ in range(20):
        before = len(network.layers)
        found = network.refine(inputs, tolerance=0.1)
        assert (found.num_layers, found.new_num_layers) == (before, len(network.layers))
        if not found.has_changed:
            break
    assert 24 < len(network.layers) < 64
    assert found.error <= 0.1
    assert not found.has_changed
    fine = smooth_network(2000)
    assert (network(inputs) - fine(inputs)).norm() / fine(inputs).norm() < 0.1


def test_refine_merges_what_needs_no_layers(inputs):
    """A network that leaks only and hardly that: few layers are enough, and no fewer than are asked for."""
    network = LeakyResNet(3, 3, 3, 16, 0.1, input_map="identity", output_map="identity").double()
    for parameter in network.layers.parameters():
        nn.init.zeros_(parameter)
    before = network(inputs).detach()
    for _ in range(10):
        network.refine(inputs, tolerance=0.05, min_layers=4)
    assert len(network.layers) == 4
    torch.testing.assert_close(network(inputs), before, rtol=1e-3, atol=1e-3)


def test_merging_keeps_the_leak_of_a_layer_below_one(inputs):
    network = smooth_network(16)
    for _ in range(10):
        network.refine(inputs, tolerance=1e3)
    assert bool((network.step_sizes * network.effective_depth <= 1 + 1e-6).all())
    assert len(network.layers) == 2


@pytest.mark.parametrize("every", [7, None], ids=["refined", "no-op"])
@pytest.mark.parametrize("make", [torch.optim.Adam, lambda parameters, lr: torch.optim.SGD(parameters, lr, 0.9)])
def test_training_goes_on(inputs, every, make):
    """A refinement that finds nothing to do is not felt, bit for bit; one that does leaves no jump in the loss."""
    losses, ends = [], []
    for refines in (False, True):
        network = smooth_network(5)
        optimizer = make(network.parameters(), lr=1e-3)
        identities = [id(parameter) for parameter in network.parameters()]
        for step in range(21):
            loss = (network(inputs) - inputs.flip(1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if refines and step % (every or 1) == 0:
                network.refine(inputs, 0.2 if every else 50.0, optimizer, min_layers=5)
        losses.append(float(loss))
        ends.append(network)
        assert [id(one) for one in optimizer.param_groups[0]["params"]] == [id(one) for one in network.parameters()]
    if every:
        assert len(ends[1].layers) > 5
        assert losses[1] == pytest.approx(losses[0], rel=0.3)
    else:
        assert identities == [id(parameter) for parameter in network.parameters()]
        assert all(map(torch.equal, ends[0].parameters(), ends[1].parameters()))


# States.


@pytest.mark.parametrize("sizes", [[1.0], [1.0, 2.0], [1.0, 1.0, 3.0, 1.0, 1.0, 1.0]], ids=len)
@pytest.mark.parametrize("nested", [False, True])
def test_a_state_brings_its_number_of_layers(make_network, sizes, nested):
    source, target = make_network(seed=1), make_network(seed=2)
    source.remesh(normalise_step_sizes(torch.tensor(sizes)))
    one, other = (nn.ModuleDict({"inner": network}) if nested else network for network in (source, target))
    other.load_state_dict(one.state_dict())
    assert len(target.layers) == len(sizes)
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in source.state_dict().items())


def test_a_state_of_as_many_layers_keeps_the_parameters(make_network):
    network = make_network()
    parameters = list(network.parameters())
    network.load_state_dict(make_network(seed=1).state_dict())
    assert all(one is other for one, other in zip(network.parameters(), parameters, strict=True))


# Refusals.


def test_a_single_layer_cannot_be_estimated(inputs):
    with pytest.raises(ValueError, match="at least 2 layers"):
        smooth_network(1).refine(inputs, 0.1)


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_compiled_layers_are_refused(inputs, how):
    network = smooth_network(3)
    if how == "wrapped":
        network.layers[1] = torch.compile(network.layers[1], backend="eager")
    else:
        network.layers[1].compile(backend="eager")
    with pytest.raises(ValueError, match="plain modules"):
        network.remesh([0.5, 0.5])
    with pytest.raises(ValueError, match="plain modules"):
        network.refine(inputs, 0.1)


def test_a_mesh_must_be_a_distribution():
    with pytest.raises(ValueError, match="`step_sizes` must sum to 1"):
        smooth_network(3).remesh([0.5, 0.4])
