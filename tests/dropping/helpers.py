"""Outputs of a model with blocks skipped, by other means than those of the package, and small models."""

from contextlib import ExitStack

import torch
from torch import nn

from lightning_leaky.paths.layers import named_layers


def outputs(model, inputs):
    """What a model returns in evaluation mode: its first tensor."""
    model.eval()
    with torch.no_grad():
        found = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return found if isinstance(found, torch.Tensor) else found[0]


class Skipping(ExitStack):
    """Blocks return their first argument in place of the tensor, or the first of those, that they return."""

    def __init__(self, model, names):
        super().__init__()
        named = named_layers(model)
        for name in names:
            self.callback(named[name].register_forward_hook(self._skip, with_kwargs=True).remove)

    @staticmethod
    def _skip(block, args, kwargs, output):
        given = args[0] if args else kwargs["hidden_states"]
        return given if isinstance(output, torch.Tensor) else (given, *output[1:])


def skipped(model, names, inputs):
    """What a model returns with blocks skipped."""
    with Skipping(model, names):
        return outputs(model, inputs)


def same(one, other):
    return one.dtype == other.dtype and torch.equal(one, other)


class Looped(nn.Module):
    """Blocks in a list that a number counts, as many write it."""

    def __init__(self, block, num_layers=4, width=6):
        super().__init__()
        self.num_layers = num_layers
        self.layers = nn.ModuleList(block(width) for _ in range(num_layers))
        self.head = nn.Linear(width, 2)

    def forward(self, hidden):
        for index in range(self.num_layers):
            hidden = self.layers[index](hidden)
        return self.head(hidden)
