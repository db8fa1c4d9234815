"""Folding a gain into weights: only where the graph of the block proves it."""

import copy

import pytest
import torch
from torch import nn

from lightning_leaky.models.folding import foldable_layer, multiply


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


def fold_gain(block, gain):
    layer = foldable_layer(block, block)
    assert layer is not None
    multiply([(layer, gain)])


@pytest.mark.parametrize("block", PROVED.values(), ids=PROVED)
def test_a_branch_that_ends_with_weights_takes_the_gain(block):
    block, hidden = block.double().eval(), torch.randn(5, 4).double()
    plain = copy.deepcopy(block)
    fold_gain(block, 2.5)
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
    fold_gain(block, 0.3)
    torch.testing.assert_close(block(image), expected)


@pytest.mark.parametrize("block", NOT_PROVED.values(), ids=NOT_PROVED)
def test_what_is_not_proved_is_left_alone(block):
    assert foldable_layer(block, block) is None


def test_weights_that_another_module_uses_are_left_alone():
    model = nn.Sequential(Block(), Block())
    model[1].last.weight = model[0].last.weight
    assert foldable_layer(model, model[0]) is None


def test_a_layer_that_two_blocks_share_is_left_alone():
    model = nn.Sequential(Block(), Block(), Block())
    model[1].last = model[0].last
    assert foldable_layer(model, model[0]) is None
    assert foldable_layer(model, model[2]) is model[2].last


def test_weights_are_multiplied_all_or_none():
    first, second, third = (nn.Linear(2, 2) for _ in range(3))
    with torch.inference_mode():
        second.bias = nn.Parameter(torch.ones(2))  # which nobody can write to outside
    before = [parameter.clone() for layer in (first, second, third) for parameter in layer.parameters()]
    with pytest.raises(RuntimeError, match="inference"):
        multiply([(first, 2.0), (second, 3.0), (third, 4.0)])
    after = [parameter for layer in (first, second, third) for parameter in layer.parameters()]
    assert all(map(torch.equal, before, after))
