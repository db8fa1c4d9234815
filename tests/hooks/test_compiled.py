"""What leaves compiled code is what eager code has."""

import shutil
import warnings

import pytest
import torch
from torch import nn

from lightning_leaky import measure_path
from lightning_leaky.hooks.capture import PathCapture
from lightning_leaky.hooks.compiled import keep_gradient, warn_of_recompilation


def test_a_gradient_that_is_kept_is_nobody_elses():
    """Compiled code goes on writing into what it has handed over, and into what it gets back."""
    capture = PathCapture([nn.Identity()], gradients=True, counts_all=True)
    gradient = torch.ones(2, 3)
    returned = keep_gradient(gradient, capture._number, 0)
    assert torch.equal(returned, gradient)
    gradient.zero_()
    returned.zero_()
    capture.settle()
    assert torch.equal(capture.passages[0].gradients[0], torch.ones(2, 3))


@pytest.mark.skipif(shutil.which("g++") is None, reason="NOT RUN: the default backend of torch.compile wants g++")
def test_the_default_backend_reads_as_eager_code_does(make_network):
    """It reuses memory, which the backends for debugging do not."""
    network = make_network().double()
    batch = torch.randn(24, 3, dtype=torch.float64), torch.randn(24, 2, dtype=torch.float64)
    torch._dynamo.reset()
    eager = measure_path(network, [batch], cost=nn.functional.mse_loss, weight_decay=0.1)
    network.compile(fullgraph=True)
    compiled = measure_path(network, [batch], cost=nn.functional.mse_loss, weight_decay=0.1)
    for name, values in eager.quantities.items():
        torch.testing.assert_close(compiled[name], values, rtol=1e-9, atol=1e-9)


def test_more_layers_than_torch_compiles_are_told_of():
    layers = [nn.Linear(2, 2) for _ in range(3)]
    for layer in layers:
        layer.compile(backend="eager")
    with torch._dynamo.config.patch(recompile_limit=2), pytest.warns(UserWarning, match="3 layers are compiled one by"):
        warn_of_recompilation(layers)
    with torch._dynamo.config.patch(recompile_limit=3), warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_recompilation(layers)
