"""Folding a gain into weights: only where the graph of the block proves it."""

import copy

import pytest
import torch
from torch import nn

from lightning_leaky.models.folding import fold_gain


class Block(nn.Module):
    """h + last(relu(first(h))), unless it is told to run in another way."""

    def __init__(self, run=lambda block, hidden: hidden + block.branch(hidden), last=None):
        super().__init__()
        self.run = run
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4) if last is None else last
        self.drop = nn.Sequential(nn.Dropout(0.5), nn.Identity())

    def branch(self, hidden):
        return self.last(torch.relu(self.first(hidden)))

    def forward(self, hidden):
        return self.run(self, hidden)


def in_place(block, hidden):
    out = block.branch(hidden)
    out += hidden
    return out


def shifted(block, hidden):
    """What the last layer returns changes before it is added."""
    out = block.branch(hidden)
    out.add_(1)
    return hidden + out


def used(block, hidden):
    """The last layer's output goes elsewhere too."""
    out = block.branch(hidden)
    return hidden + out, out


def two_residuals(block, hidden):
    hidden = hidden + block.first(hidden)
    return hidden + block.last(hidden)


def normalised():
    norm = nn.BatchNorm1d(4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def hooked():
    """Hooks come between weights and output."""
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda module, args, output: output + 1)
    return layer


PROVED = {
    "as it is written first": Block(),
    "swapped": Block(lambda block, hidden: block.branch(hidden) + hidden),
    "in place": Block(in_place),
    "torch.add": Block(lambda block, hidden: torch.add(hidden, block.branch(hidden))),
    "a method": Block(lambda block, hidden: hidden.add(block.branch(hidden))),
    "dropout": Block(lambda block, hidden: hidden + block.drop(block.branch(hidden))),
    "without bias": Block(last=nn.Linear(4, 4, bias=False)),
    "batch normalisation": Block(last=normalised()),
    "layer normalisation": Block(last=nn.LayerNorm(4)),
}
NOT_PROVED = {
    "torch.add multiplies its second argument": Block(lambda block, h: torch.add(block.branch(h), h, alpha=2)),
    "activated": Block(lambda block, hidden: torch.relu(hidden + block.branch(hidden))),
    "a function in the branch": Block(lambda block, hidden: hidden + torch.relu(block.branch(hidden))),
    "twice": Block(lambda block, hidden: hidden + block.last(block.last(hidden))),
    "used elsewhere": Block(used),
    "shifted": Block(shifted),
    "not the input": Block(lambda block, hidden: torch.relu(hidden) + block.branch(hidden)),
    "two residuals": Block(two_residuals),
    "no residual": Block(lambda block, hidden: block.branch(hidden)),
    "doubled": Block(lambda block, hidden: hidden + hidden),
    "untraceable": Block(lambda block, h: h + block.branch(h) if h.sum() > -1e9 else h),
    "a normalisation without weights": Block(last=nn.LayerNorm(4, elementwise_affine=False)),
    "parametrized": Block(last=nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))),
    "hooked": Block(last=hooked()),
}


@pytest.mark.parametrize("block", PROVED.values(), ids=PROVED)
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


@pytest.mark.parametrize("block", NOT_PROVED.values(), ids=NOT_PROVED)
def test_what_is_not_proved_is_left_alone(block):
    state = copy.deepcopy(block.state_dict())
    assert not fold_gain(block, block, 2.5)
    assert all(torch.equal(value, state[name]) for name, value in block.state_dict().items())


def test_weights_that_another_module_uses_are_left_alone():
    model = nn.Sequential(Block(), Block())
    model[1].last.weight = model[0].last.weight
    assert not fold_gain(model, model[0], 2.5)


def test_a_gain_of_one_needs_nothing():
    block = NOT_PROVED["activated"]
    state = copy.deepcopy(block.state_dict())
    assert fold_gain(block, block, 3 * (1 / 3))
    assert all(torch.equal(value, state[name]) for name, value in block.state_dict().items())
