"""What cannot be dropped is refused with the reason, and the model stays as it was."""

import copy

import pytest
import torch
from torch import nn

from lightning_leaky import LeakyResNet, make_leaky
from lightning_leaky.dropping import drop_layers
from lightning_leaky.dropping.stacks import outputs_of, stacks_of, witnessed
from tests.blocks import Block, Net
from tests.dropping.helpers import Looped, outputs, same


class Attributes(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1, self.layer2 = Block(), Block()

    def forward(self, hidden):
        return self.layer2(self.layer1(hidden))


def repeated():
    block = Block()
    return nn.Sequential(block, Block(), block)


def tied():
    model = nn.Sequential(Block(), Block(), Block())
    model[2].linear.weight = model[0].linear.weight
    return model


def stages():
    return nn.Sequential(Block(4), nn.Linear(4, 6), Block(6))


class Reading(nn.Module):
    """The first block makes what the second one takes, as the position bias of T5."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Biased() for _ in range(3))

    def forward(self, hidden):
        bias = None
        for layer in self.layers:
            hidden, bias = layer(hidden, bias)
        return hidden


class Biased(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, hidden, bias=None):
        bias = self.linear.bias[:3] * 2 if bias is None else bias
        return hidden + self.linear(hidden) * bias.sum(), bias


class Skips(nn.Module):
    """Weights of skips in a list of their own, by number."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.scales = nn.Parameter(torch.arange(1.0, 4.0))

    def forward(self, hidden):
        for layer, scale in zip(self.layers, self.scales, strict=False):
            hidden = scale * layer(hidden)
        return hidden


class Strict(Skips):
    def forward(self, hidden):
        for layer, scale in zip(self.layers, self.scales, strict=True):
            hidden = scale * layer(hidden)
        return hidden


class Numbered(nn.Module):
    """The code names a block by its number, and another by a reference."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(3))

    def forward(self, hidden):
        return self.layers[0](hidden) + self.layers[-1].linear(hidden)


class Rectified(nn.Module):
    """A hidden parallel: what runs is a tuple of the blocks, not the list."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.order = tuple(self.layers)

    def forward(self, hidden):
        for layer in self.order:
            hidden = layer(hidden)
        return hidden


def leaky_network():
    torch.manual_seed(0)
    return LeakyResNet(6, 6, width=6, num_layers=3, effective_depth=1.0)


REFUSED = {
    "attribute": (Attributes, "layer1", "is the attribute 'layer1' of Attributes, whose code calls it by this name"),
    "twice": (repeated, "0", r"stands in the model more than once, as \['0', '2'\]"),
    "tied": (tied, "2", "'2' shares its 'linear.weight' with '0.linear.weight', which stays"),
    "tied from the other side": (tied, "0", "'0' shares its 'linear.weight' with '2.linear.weight', which stays"),
    "stage": (stages, "1", r"layer '1' cannot be left out: it maps \(2, 4\) to \(2, 6\), and another takes"),
    "read": (Reading, "layers.0", "'layers.1' takes what 'layers.0' makes besides its state"),
    "parallel": (Skips, "layers.0", "differ by up to .*the code around them counts on their number"),
    "strict": (Strict, "layers.0", "does not run without them, ValueError: zip"),
    "number": (Numbered, "layers.0", "differ by up to .*the code around them counts on their number"),
    "idle": (Numbered, "layers.1", r"\['layers.1'\] do not run with this batch"),
    "reference": (Rectified, "layers.1", "differ by up to .*the code around them counts on their number"),
    "leaky": (leaky_network, "layers.1", "'layers.1' is a leaky step, and the step-sizes of all steps sum to 1"),
    "made leaky": (lambda: make_leaky(Net(), "encoder.*"), "encoder.1", "'encoder.1' is a leaky step"),
    "none": (Net, [], r"`layers` must name at least one block, got \[\]"),
    "unknown": (Net, ["encoder.7"], "'encoder.7' matches none"),
    "nested": (Net, ["encoder.*", "encoder.1.linear"], "'encoder.1' contains 'encoder.1.linear'"),
    "unhashed number": (Net, [1], "`layers` must be a string"),
}


@pytest.mark.parametrize(("make", "layers", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused(make, layers, reason, hooks_of):
    model = make().train()
    inputs = torch.randn(2, 4 if make is stages else 6)
    before, hooks = copy.deepcopy(model.state_dict()), hooks_of(model)
    names, places = [name for name, _ in model.named_modules()], [*map(id, model.modules())]
    numbers = {id(part): {key: one for key, one in vars(part).items() if type(one) is int} for part in model.modules()}
    want = None if make is stages else outputs(model.train(), inputs)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    held = [*map(id, optimizer.param_groups[0]["params"])]
    with pytest.raises(ValueError, match=reason):
        drop_layers(model, layers, inputs, optimizer)
    assert model.training
    assert [name for name, _ in model.named_modules()] == names
    assert [*map(id, model.modules())] == places
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert {
        id(part): {k: one for k, one in vars(part).items() if type(one) is int} for part in model.modules()
    } == numbers
    assert hooks_of(model) == hooks
    assert [*map(id, optimizer.param_groups[0]["params"])] == held
    assert want is None or same(outputs(model, inputs), want)


@pytest.mark.parametrize(
    ("name", "readers"), [("layers.0", {"layers.1": "layers.0", "layers.2": "layers.0"}), ("layers.1", {})]
)
def test_who_made_a_tensor_is_told_from_who_handed_it_on(name, readers):
    model = Reading()
    stacks = stacks_of(model, name)
    with witnessed(model, stacks) as found:
        outputs_of(model, torch.randn(2, 6), stacks)
    assert found == readers


def test_weights_that_are_shared_among_what_goes_are_no_reason():
    model = drop_layers(tied(), ["0", "2"], torch.randn(2, 6))
    assert len(model) == 1


def test_a_second_stack_that_is_refused_leaves_the_first():
    model = nn.ModuleDict({"one": nn.Sequential(Block(), Block()), "two": Skips()})
    model.forward = lambda hidden: model["two"](model["one"](hidden))
    with pytest.raises(ValueError, match=r"\['two.layers.0'\] cannot go: the outputs differ by up to"):
        drop_layers(model, ["one.0", "two.layers.0"], torch.randn(2, 6))
    assert len(model["one"]) == 2
    assert len(model["two"].layers) == 3


class Texts(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())

    def forward(self, hidden):
        return str(self.blocks(hidden))


def test_outputs_without_a_tensor_say_nothing():
    with pytest.raises(ValueError, match="`model` must return tensors, so that they can be compared, got str"):
        drop_layers(Texts(), "blocks.0", torch.randn(2, 6))


def test_a_model_that_counts_parameters_is_refused():
    class DistributedDataParallel(nn.Module):
        """By its name, as the real one needs processes."""

        def __init__(self, module):
            super().__init__()
            self.module = module

    with pytest.raises(ValueError, match="stand in a model with DistributedDataParallel; drop first"):
        drop_layers(DistributedDataParallel(Looped(Block)), "layers.0", torch.randn(2, 6))
