"""Blocks go, and the outputs are those of the model with them skipped, to the bit."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from lightning_leaky import ablate_path
from lightning_leaky.dropping import drop_layers
from tests.blocks import Block, Net
from tests.dropping.helpers import Looped, outputs, same, skipped


def nested():
    return nn.ModuleDict({"stages": nn.ModuleList(nn.Sequential(Block(), Block(), Block()) for _ in range(2))})


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nested()

    def forward(self, hidden):
        for stage in self.parts["stages"]:
            hidden = stage(hidden)
        return hidden


class Named(nn.Module):
    """A dictionary of blocks, run in its order."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleDict({name: Block() for name in ("low", "middle", "high")})

    def forward(self, hidden):
        for block in self.blocks.values():
            hidden = block(hidden)
        return hidden


def wrapped():
    net = Net()
    net.encoder[1] = checkpoint_wrapper(net.encoder[1])
    return net


def torchvision_like():
    """Numbers at the end of names, as in torchvision's transformer."""
    return nn.Sequential(OrderedDict((f"encoder_layer_{index}", Block()) for index in range(4)))


def transformer():
    layer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
    return nn.TransformerEncoder(layer, 4)


MODELS = {
    "sequential": (Net, ["encoder.0", "encoder.2"], ["encoder.0"]),
    "list and number": (lambda: Looped(Block), ["layers.1"], ["layers.0", "layers.1", "layers.2"]),
    "two stacks": (
        Nested,
        ["parts.stages.0.1", "parts.stages.1.0", "parts.stages.1.2"],
        ["parts.stages.0.0", "parts.stages.0.1", "parts.stages.1.0"],
    ),
    "a whole stage": (Nested, ["parts.stages.0"], [f"parts.stages.0.{index}" for index in range(3)]),
    "dictionary": (Named, ["blocks.middle"], ["blocks.low", "blocks.high"]),
    "wrapped": (wrapped, ["encoder.1"], ["encoder.0", "encoder.1"]),
    "beside a wrapped one": (wrapped, ["encoder.0"], ["encoder.0", "encoder.1"]),
    "numbered names": (torchvision_like, ["encoder_layer_1"], [f"encoder_layer_{index}" for index in range(3)]),
    "all": (Net, ["encoder.*"], []),
    "transformer": (transformer, ["layers.0", "layers.2"], ["layers.0", "layers.1"]),
}


@pytest.mark.parametrize(("make", "gone", "names"), MODELS.values(), ids=MODELS)
def test_outputs_are_those_with_the_blocks_skipped(make, gone, names):
    model, inputs = make(), torch.randn(2, 5, 6)
    chosen = [f"encoder.{index}" for index in range(3)] if gone == ["encoder.*"] else gone
    want, before = skipped(model, chosen, inputs), outputs(model, inputs)
    blocks = {id(module) for module in model.modules()}
    assert drop_layers(model, gone, inputs) is model
    assert same(outputs(model, inputs), want)
    assert not torch.equal(before, want)
    assert {id(module) for module in model.modules()} < blocks
    found = {key.rpartition(".linear")[0] for key in model.state_dict() if ".linear." in key}
    assert found == set(names) if make is not transformer else len(model.layers) == 2


def test_a_padded_batch_of_a_transformer():
    """It packs what is no padding, in evaluation: blocks then map nested tensors."""
    model, mask = transformer(), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    inputs = {"src": torch.randn(2, 5, 6), "src_key_padding_mask": mask}
    want = skipped(model, ["layers.1"], inputs)
    drop_layers(model, "layers.1", inputs)
    assert same(outputs(model, inputs), want)
    assert model.num_layers == 3


@pytest.mark.parametrize("layers", ["encoder.1", ["encoder.1"], ("encoder.1",), r"re:encoder\.1", {"encoder.1": None}])
def test_blocks_are_named_in_many_ways(layers):
    assert len(drop_layers(Net(), layers, torch.randn(2, 6)).encoder) == 2


def test_blocks_are_chosen_by_a_predicate():
    assert len(drop_layers(Net(), lambda name, block: name.endswith(".2"), torch.randn(2, 6)).encoder) == 2


def test_a_state_dict_of_the_smaller_model_loads_into_one_made_smaller():
    model, inputs = Looped(Block), torch.randn(2, 6)
    drop_layers(model, "layers.1", (inputs, torch.zeros(2)))
    other = Looped(Block, num_layers=3)
    other.load_state_dict(model.state_dict())
    assert same(outputs(other, inputs), outputs(model, inputs))


def test_the_model_is_otherwise_as_it_was(hooks_of):
    model = Net().train()
    model.head.eval()
    random = torch.get_rng_state()
    drop_layers(model, "encoder.0", torch.randn(2, 6, generator=torch.Generator()))
    assert model.training
    assert not model.head.training
    assert hooks_of(model) == 0
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())


class InPlace(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, hidden):
        return hidden.add_(self.linear(hidden).tanh())


def test_blocks_that_overwrite_their_input():
    model, inputs = Looped(InPlace), torch.randn(2, 6)
    kept = inputs.clone()
    other = Looped(InPlace, num_layers=3)
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("layers.0.")}
    renamed = {key.replace("layers.1", "layers.0").replace("layers.2", "layers.1"): state[key] for key in state}
    other.load_state_dict({key.replace("layers.3", "layers.2"): value for key, value in renamed.items()})
    drop_layers(model, "layers.0", inputs)
    assert torch.equal(inputs, kept)
    assert same(outputs(model, inputs.clone()), outputs(other, inputs.clone()))


class Drawing(nn.Module):
    """Draws random numbers in evaluation, after its blocks."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())

    def forward(self, hidden):
        return self.blocks(hidden) + torch.randn(6)


def test_random_numbers_after_the_blocks_are_the_same():
    assert len(drop_layers(Drawing(), "blocks.0", torch.randn(2, 6)).blocks) == 1


@pytest.mark.parametrize("name", ["layer_idx", "layer_id", "block_idx"])
def test_blocks_that_know_their_place_are_renumbered(name):
    model = nn.Sequential(*(Block() for _ in range(4)))
    for index, block in enumerate(model):
        setattr(block, name, index)
        setattr(block.linear, name, index)
    drop_layers(model, ["0", "2"], torch.randn(2, 6))
    assert [getattr(block, name) for block in model] == [0, 1]
    assert [getattr(block.linear, name) for block in model] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False])
def test_compiled(whole):
    model, inputs = Net(), torch.randn(2, 6)
    want = skipped(model, ["encoder.1"], inputs)
    if whole:
        model = torch.compile(model, backend="eager")
    else:
        model.encoder[1] = torch.compile(model.encoder[1], backend="eager")
    outputs(model, inputs)
    drop_layers(model, "encoder.1", inputs)
    assert same(outputs(model, inputs), want)


@pytest.mark.parametrize("activation", [nn.GELU, nn.Tanh])
def test_a_linear_map_of_a_plain_stack_goes_with_its_activation(activation):
    """As `ablate_path` leaves it out."""
    layers = [(nn.Linear(6, 6), activation(), nn.Dropout(0.1)) for _ in range(4)]
    model = nn.Sequential(nn.Linear(3, 6), activation(), *(part for layer in layers for part in layer), nn.Linear(6, 2))
    data = [(torch.randn(8, 3), torch.randn(8, 2))]
    found = ablate_path(model, data, nn.functional.mse_loss, order=[2, 3])
    drop_layers(model, [found.names[1], found.names[2]], data[0])
    assert [type(part) for part in model[2:-1]] == [nn.Linear, activation, nn.Dropout] * 2
    assert float(nn.functional.mse_loss(model.eval()(data[0][0]), data[0][1])) == pytest.approx(float(found.curve[-1]))
