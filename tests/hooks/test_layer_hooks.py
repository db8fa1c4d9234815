"""Hooks where there is nothing to keep."""

import torch
from torch import nn

from lightning_leaky.hooks.capture import PathCapture


def test_layers_inside_a_transform_say_so():
    """Tensors of `torch.func` hold no numbers once it has returned."""
    layer = nn.Linear(2, 2)
    capture = PathCapture([layer]).attach()
    capture.armed = True
    inputs = torch.randn(3, 2)
    torch.func.vmap(layer)(inputs)
    assert "inside a transform of torch.func" in capture.complaints()[0]
    capture.clear()
    layer(inputs)
    capture.settle()
    assert capture.complaints() == {}
    assert torch.equal(capture.passages[0].current[0], layer(inputs))


def test_the_padding_of_a_pass_is_not_that_of_the_one_before():
    class Layer(nn.Module):
        def forward(self, hidden, src_key_padding_mask=None):
            return hidden + 1

    layer, padding = Layer(), torch.tensor([[False, True]])
    capture = PathCapture([layer]).attach()
    capture.armed = True
    layer(torch.ones(1, 2, 3), src_key_padding_mask=padding)
    layer(torch.ones(1, 2, 3))
    capture.settle()
    first, second = capture.passages
    assert torch.equal(first.real[0], ~padding)
    assert second.real[0] is None
