"""Parameters and optimizer state on another mesh: their values, whose they are, and where they stand in the groups."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_leaky.functional import equidistant_step_sizes, normalise_step_sizes
from lightning_leaky.refining import interpolate_layers
from lightning_leaky.refining.remesh import move_parameters, remeshed_layers
from tests.distributed.launch import launch

meshes = st.lists(st.floats(1e-2, 1.0), min_size=1, max_size=9).map(
    lambda sizes: normalise_step_sizes(torch.tensor(sizes))
)
OPTIMIZERS = {
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1, amsgrad=True),
    "fused AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=True),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "SGD without momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.1, momentum=0.5, centered=True),
    "NAdam": lambda parameters: torch.optim.NAdam(parameters, lr=0.1),
}


def stack_of(num_layers, seed=0):
    torch.manual_seed(seed)
    return [nn.Linear(3, 2).double() for _ in range(num_layers)]


def train(layers, optimizer, steps=3):
    """Gradients of every layer, of the same sizes whatever the layer."""
    for step in range(steps):
        for index, layer in enumerate(layers):
            for parameter in layer.parameters():
                parameter.grad = torch.full_like(parameter, 0.1 * (1 + index) * (step - 0.7))
        optimizer.step()
        optimizer.zero_grad()


def parameters_of(layers):
    return [parameter for layer in layers for parameter in layer.parameters()]


def values_of(layers, name):
    return torch.stack([getattr(layer, name).detach() for layer in layers])


def moving_keys(optimizer, parameter):
    return [
        key
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape
    ]


@given(old=meshes, new=meshes, seed=st.integers(0, 99))
def test_values_are_those_of_the_interpolation(old, new, seed):
    layers = stack_of(len(old), seed)
    weights, biases = (values_of(layers, name).clone() for name in ("weight", "bias"))
    found = remeshed_layers(layers, old, new)
    torch.testing.assert_close(
        values_of(found, "weight"), interpolate_layers(weights, old, new), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(values_of(found, "bias"), interpolate_layers(biases, old, new), rtol=1e-12, atol=1e-12)
    assert len({id(parameter) for parameter in parameters_of(found)}) == 2 * len(new)


@given(data=st.data(), seed=st.integers(0, 99))
def test_moving_is_in_place(data, seed):
    old = data.draw(meshes)
    new = normalise_step_sizes(
        torch.tensor(data.draw(st.lists(st.floats(1e-2, 1.0), min_size=len(old), max_size=len(old))))
    )
    layers = stack_of(len(old), seed)
    before, weights = parameters_of(layers), values_of(layers, "weight").clone()
    move_parameters(layers, old, new)
    assert all(one is other for one, other in zip(parameters_of(layers), before, strict=True))
    torch.testing.assert_close(
        values_of(layers, "weight"), interpolate_layers(weights, old, new), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize("sizes", [[1.0, 2.0, 1.0], [1.0, 1.0, 2.0, 3.0, 1.0], [1.0, 3.0], [1.0]], ids=len)
def test_the_optimizers_state_moves_too(make, sizes):
    """Tensors of a parameter's shape by interpolation; step counts are those of the parent; nothing is left over."""
    old, new = equidistant_step_sizes(3), normalise_step_sizes(torch.tensor(sizes))
    layers = stack_of(3)
    optimizer = make(parameters_of(layers))
    train(layers, optimizer)
    keys = moving_keys(optimizer, layers[0].weight)
    before = {key: torch.stack([optimizer.state[layer.weight][key].clone() for layer in layers]) for key in keys}
    others = {key: copy.deepcopy(value) for key, value in optimizer.state[layers[0].weight].items() if key not in keys}
    found = remeshed_layers(layers, old, new, optimizer)
    for key in keys:
        moved = torch.stack([optimizer.state[layer.weight][key] for layer in found])
        torch.testing.assert_close(moved, interpolate_layers(before[key], old, new), rtol=1e-12, atol=1e-15)
    for layer in found:
        assert {key: optimizer.state[layer.weight][key] for key in others} == others
    assert [id(one) for one in optimizer.param_groups[0]["params"]] == [id(one) for one in parameters_of(found)]
    assert {id(one) for one in optimizer.state} <= {id(one) for one in parameters_of(found)}
    train(found, optimizer)
    states = [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]
    assert len({value.data_ptr() for value in states}) == len(states)


def test_the_same_mesh_changes_nothing():
    """Bit for bit, and of a layer that both meshes have."""
    old = normalise_step_sizes(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    new = torch.cat([old[:1], old[1:2] / 2, old[1:2] / 2, old[2:]])
    layers = stack_of(4)
    optimizer = OPTIMIZERS["Adam"](parameters_of(layers))
    train(layers, optimizer)
    modules, tensors = list(layers), copy.deepcopy([parameters_of(layers), list(optimizer.state.values())])
    for found in (remeshed_layers(layers, old, old.clone(), optimizer), layers):
        assert all(one is other for one, other in zip(found, modules, strict=True))
        assert all(map(torch.equal, parameters_of(found), tensors[0]))
        move_parameters(layers, old, old.clone(), optimizer)
    for state, before in zip(optimizer.state.values(), tensors[1], strict=True):
        assert all(torch.equal(state[key], before[key]) for key in before)
    found = remeshed_layers(layers, old, new, optimizer)
    assert [found.index(module) for module in modules] == [0, 1, 3, 4]
    for kept in (0, 2, 3):
        assert all(map(torch.equal, modules[kept].parameters(), tensors[0][2 * kept : 2 * kept + 2]))


@pytest.mark.parametrize("sizes", [[1.0], [3.0, 1.0], [1.0, 1.0, 2.0, 2.0], [0.5, 0.5, 1.0, 0.2, 0.2, 0.6]], ids=len)
@pytest.mark.parametrize("named", [False, True])
def test_groups_keep_the_order_of_the_modules(sizes, named):
    """Layer after layer where a group has both, weight after weight where it has weights only; settings stay."""
    layers, head = stack_of(3), nn.Linear(2, 2).double()

    def groups(stack):
        model = nn.ModuleDict({"layers": nn.ModuleList(stack), "head": head})
        of_layers, of_head = (
            list(model[part].named_parameters(prefix=part)) if named else list(model[part].parameters())
            for part in ("layers", "head")
        )
        half = [of_layers[0::2], of_layers[1::2]]
        return [
            [{"params": [*of_head[:1], *of_layers, *of_head[1:]], "lr": 0.3}],
            [{"params": half[0], "lr": 0.1}, {"params": [*of_head, *half[1]], "lr": 0.2}],
            [{"params": [*half[0], *half[1], *of_head]}],
        ]

    for number in range(3):
        old = copy.deepcopy(layers)
        optimizer = torch.optim.Adam(groups(old)[number], lr=0.5)
        if len(sizes) == 1 and number == 2:
            continue  # one layer's weights and biases: which order was meant cannot be told
        found = remeshed_layers(old, equidistant_step_sizes(3), normalise_step_sizes(torch.tensor(sizes)), optimizer)
        anew = torch.optim.Adam(groups(found)[number], lr=0.5)
        for group, expected in zip(optimizer.param_groups, anew.param_groups, strict=True):
            assert [id(one) for one in group["params"]] == [id(one) for one in expected["params"]]
            assert group["lr"] == expected["lr"]
            assert group.get("param_names") == expected.get("param_names")


def test_copies_are_watched_by_nobody():
    """Hooks stay with the modules that are kept; what they hold is not copied."""

    class Holder:
        def __deepcopy__(self, memo):
            raise AssertionError("copied")

        def __call__(self, *args):
            self.called = getattr(self, "called", 0) + 1

    layers, holder = stack_of(1), Holder()
    layers[0].register_forward_hook(holder, always_call=True)
    layers[0].register_forward_pre_hook(holder)
    layers[0].register_full_backward_hook(holder)
    layers[0].eval()
    first, second = remeshed_layers(layers, equidistant_step_sizes(1), equidistant_step_sizes(2))
    second(torch.zeros(1, 3).double())
    assert not hasattr(holder, "called")
    assert (first is layers[0], second.training) == (True, False)
    first(torch.zeros(1, 3).double())
    assert holder.called == 2


def test_frozen_parameters_and_those_without_state_move():
    layers = stack_of(2)
    layers[0].bias.requires_grad_(False)
    optimizer = OPTIMIZERS["Adam"]([one for one in parameters_of(layers) if one.requires_grad])
    layers[0].weight.grad = torch.ones_like(layers[0].weight)
    optimizer.step()
    found = remeshed_layers(layers, equidistant_step_sizes(2), equidistant_step_sizes(3), optimizer)
    assert [layer.bias.requires_grad for layer in found] == [False, True, True]
    assert torch.equal(found[1].bias, (found[0].bias + found[2].bias) / 2)
    assert [layer.weight in optimizer.state for layer in found] == [True, False, False]


class Alive(TorchDispatchMode):
    """How many copies and interpolated values live at a time."""

    def __init__(self):
        super().__init__()
        self.tensors, self.most = WeakTensorKeyDictionary(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.clone.default, torch.ops.aten.lerp.Scalar):
            self.tensors[found] = None
            self.most = max(self.most, len(self.tensors))
        return found


@pytest.mark.parametrize("num_layers", [5, 50])
def test_few_tensors_are_held_at_a_time(num_layers):
    """Whatever the number of layers: the values that later layers still read, not a copy of the stack."""
    layers = stack_of(num_layers)
    new = normalise_step_sizes(1 + torch.linspace(-1, 1, num_layers).double() / num_layers)
    with Alive() as alive:
        move_parameters(layers, equidistant_step_sizes(num_layers), new)
    assert 0 < alive.most <= 4


# Refusals.


def test_layers_of_two_kinds_are_named():
    layers = [nn.Linear(3, 2), nn.Linear(3, 2, bias=False)]
    with pytest.raises(ValueError, match=r"`layers` must have .* layer 2 has"):
        move_parameters(layers, equidistant_step_sizes(2), equidistant_step_sizes(2))


def test_shared_parameters_are_refused():
    layers = stack_of(2)
    layers[1].weight = layers[0].weight
    with pytest.raises(ValueError, match="parameters of their own"):
        remeshed_layers(layers, equidistant_step_sizes(2), equidistant_step_sizes(3))


@pytest.mark.parametrize(("old", "new", "name"), [(3, 2, "step_sizes"), (2, 3, "new_step_sizes")])
def test_step_sizes_must_be_one_a_layer(old, new, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        move_parameters(stack_of(2), equidistant_step_sizes(old), equidistant_step_sizes(new))


@pytest.mark.parametrize("cls", [torch.optim.LBFGS, torch.optim.Adafactor])
def test_what_an_optimizer_keeps_of_another_shape_is_refused_before_anything_moves(cls):
    layers = stack_of(2)
    optimizer = cls(parameters_of(layers))
    for parameter in parameters_of(layers):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(lambda: torch.tensor(1.0))
    before = values_of(layers, "weight").clone()
    with pytest.raises(ValueError, match=f"`optimizer` must keep .* got {cls.__name__}"):
        remeshed_layers(layers, equidistant_step_sizes(2), equidistant_step_sizes(3), optimizer)
    assert torch.equal(values_of(layers, "weight"), before)


# Sharded parameters, moved by two processes.


def _moved(shards):
    layers = stack_of(4)
    for layer in layers if shards else ():
        mesh = init_device_mesh("cpu", (2,))
        for name, parameter in list(layer.named_parameters()):
            setattr(layer, name, nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Shard(0)])))
    optimizer = torch.optim.Adam(parameters_of(layers), lr=0.1)
    train(layers, optimizer)
    new = normalise_step_sizes(torch.tensor([1.0, 2.0, 3.0, 1.0]))
    move_parameters(layers, equidistant_step_sizes(4), new, optimizer)
    tensors = [*parameters_of(layers), *(optimizer.state[one]["exp_avg_sq"] for one in parameters_of(layers))]
    assert all(isinstance(one, DTensor) == shards for one in tensors)
    return [one.full_tensor().detach() if shards else one.detach() for one in tensors]


def _work(rank: int, size: int, folder: Path):
    dist.init_process_group("gloo")
    moved = _moved(shards=True)
    dist.destroy_process_group()
    return moved


@pytest.mark.slow
def test_sharded_parameters_move_as_whole_ones_do(tmp_path):
    expected = _moved(shards=False)
    for found in launch(_work, 2, tmp_path):
        assert all(map(torch.equal, found, expected))
