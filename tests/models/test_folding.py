"""Folding a gain into weights: only where the graph of the block proves it."""

import copy

import pytest
import torch
from torch import nn

from lightning_leaky.models.folding import fold_gain


class Block(nn.Module):
    """h + last(relu(first(h))), written in a way that subclasses change."""

    def __init__(self, last=None):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4) if last is None else last

    def branch(self, hidden):
        return self.last(torch.relu(self.first(hidden)))

    def forward(self, hidden):
        return hidden + self.branch(hidden)


class Swapped(Block):
    def forward(self, hidden):
        return self.branch(hidden) + hidden


class InPlaceSum(Block):
    def forward(self, hidden):
        out = self.branch(hidden)
        out += hidden
        return out


class TorchAdd(Block):
    def forward(self, hidden):
        return torch.add(hidden, self.branch(hidden))


class Method(Block):
    def forward(self, hidden):
        return hidden.add(self.branch(hidden))


class Dropped(Block):
    def __init__(self):
        super().__init__()
        self.drop = nn.Sequential(nn.Dropout(0.5), nn.Identity())

    def forward(self, hidden):
        return hidden + self.drop(self.branch(hidden))


class Scaled(Block):
    """torch.add multiplies its second argument."""

    def forward(self, hidden):
        return torch.add(self.branch(hidden), hidden, alpha=2)


class Activated(Block):
    def forward(self, hidden):
        return torch.relu(hidden + self.branch(hidden))


class Functional(Block):
    def forward(self, hidden):
        return hidden + torch.relu(self.branch(hidden))


class Twice(Block):
    def forward(self, hidden):
        return hidden + self.last(self.last(hidden))


class Used(Block):
    """The last layer's output goes elsewhere too."""

    def forward(self, hidden):
        out = self.branch(hidden)
        return hidden + out, out


class Shifted(Block):
    """What the last layer returns changes before it is added."""

    def forward(self, hidden):
        out = self.branch(hidden)
        out.add_(1)
        return hidden + out


class NotTheInput(Block):
    def forward(self, hidden):
        return torch.relu(hidden) + self.branch(hidden)


class TwoResiduals(Block):
    def forward(self, hidden):
        hidden = hidden + self.first(hidden)
        return hidden + self.last(hidden)


class Plain(Block):
    def forward(self, hidden):
        return self.branch(hidden)


class Doubled(Block):
    def forward(self, hidden):
        return hidden + hidden


class Parametrized(Block):
    """Its weight is made anew from others at every pass."""

    def __init__(self):
        super().__init__(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))


class Hooked(Block):
    def __init__(self):
        super().__init__()
        self.last.register_forward_hook(lambda module, args, output: output + 1)


class Untraceable(Block):
    def forward(self, hidden):
        return hidden + self.branch(hidden) if hidden.sum() > -1e9 else hidden


class Bare(Block):
    """A normalisation without weights has nothing to fold into."""

    def __init__(self):
        super().__init__(nn.LayerNorm(4, elementwise_affine=False))


def normalised():
    norm = nn.BatchNorm1d(4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


@pytest.mark.parametrize(
    "block",
    [Block(), Swapped(), InPlaceSum(), TorchAdd(), Method(), Dropped(), Block(nn.Linear(4, 4, bias=False)),
     Block(normalised()), Block(nn.LayerNorm(4))],
    ids=lambda block: f"{type(block).__name__}-{type(block.last).__name__}",
)  # fmt: skip
def test_a_branch_that_ends_with_weights_takes_the_gain(block):
    block, hidden = block.double().eval(), torch.randn(5, 4).double()
    plain = copy.deepcopy(block)
    assert fold_gain(block, block, 2.5)
    torch.testing.assert_close(block(hidden), hidden + 2.5 * (plain(hidden) - hidden), rtol=1e-12, atol=1e-12)


def test_a_convolution_takes_it():
    class Conv(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, image):
            return image + self.conv(image)

    block, image = Conv().double(), torch.randn(2, 3, 4, 4).double()
    expected = image + 0.3 * block.conv(image)
    assert fold_gain(block, block, 0.3)
    torch.testing.assert_close(block(image), expected)


NOT_PROVED = [Scaled, Activated, Functional, Twice, Used, Shifted, NotTheInput, TwoResiduals, Plain, Doubled]
NOT_PROVED += [Untraceable, Bare, Parametrized, Hooked]


@pytest.mark.parametrize("cls", NOT_PROVED)
def test_what_is_not_proved_is_left_alone(cls):
    block = cls()
    state = copy.deepcopy(block.state_dict())
    assert not fold_gain(block, block, 2.5)
    assert all(torch.equal(value, state[name]) for name, value in block.state_dict().items())


def test_weights_that_another_module_uses_are_left_alone():
    model = nn.Sequential(Block(), Block())
    model[1].last.weight = model[0].last.weight
    assert not fold_gain(model, model[0], 2.5)


def test_a_gain_of_one_needs_nothing():
    block = Activated()
    state = copy.deepcopy(block.state_dict())
    assert fold_gain(block, block, 3 * (1 / 3))
    assert all(torch.equal(value, state[name]) for name, value in block.state_dict().items())
