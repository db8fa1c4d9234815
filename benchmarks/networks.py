"""Networks that do the same work: ours, the obvious code, an ODE solver's, and a plain fully-connected net."""

from __future__ import annotations

import importlib
import math
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.sizes import Size
from lightning_leaky import LeakyResNet

LEARNING_RATE = 1e-4


def batch_of(size: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs and targets, each of shape (N, w)."""
    generator = torch.Generator(device).manual_seed(0)
    inputs, targets = torch.randn(2, size.samples, size.width, generator=generator, device=device)
    return inputs, targets


def leaky(size: Size, device: torch.device) -> LeakyResNet:
    """Our network, nothing but its path: no maps at its ends."""
    torch.manual_seed(0)
    sizes = (size.width, size.width, size.width, size.num_layers, size.effective_depth)
    with device:  # drawn there: to draw the weights of g2 on a CPU takes longer than to train on them
        return LeakyResNet(*sizes, input_map="identity", output_map="identity")


def plain(size: Size, device: torch.device) -> nn.Module:
    """A fully-connected ReLU net of the same width and depth, started so that its signal keeps its size."""
    layers = _linears(size, device)
    for linear in layers:
        nn.init.normal_(linear.weight, std=math.sqrt(2 / size.width))
    return nn.Sequential(*(module for linear in layers for module in (nn.ReLU(), linear)))


def obvious(size: Size, device: torch.device) -> nn.Sequential:
    """Leaky steps as anyone would write them, with the weights of ours."""
    return nn.Sequential(*(ObviousStep(linear, size) for linear in _copied_linears(size, device)))


class ObviousStep(nn.Module):
    """One nn.Linear and Python floats."""

    def __init__(self, linear: nn.Linear, size: Size) -> None:
        super().__init__()
        self.linear, self.rho, self.effective_depth = linear, 1 / size.num_layers, size.effective_depth

    def forward(self, A: Tensor) -> Tensor:
        """Return A_l."""
        drive: Tensor = self.linear(F.relu(A))
        return (1 - self.rho * self.effective_depth) * A + self.rho * drive


class OdeNet(nn.Module):
    """The same path by torchdiffeq's Euler method on the same grid, its weights constant within each layer.

    Calls are counted to know the layer: a look at the time t would be slower, and on a GPU wait for it.
    """

    def __init__(self, size: Size, device: torch.device) -> None:
        super().__init__()
        self.odeint = importlib.import_module("torchdiffeq").odeint
        self.layers = nn.ModuleList(_copied_linears(size, device))
        self.effective_depth = size.effective_depth
        self.grid = torch.linspace(0, 1, size.num_layers + 1, device=device)
        self.calls = 0

    def velocity(self, time: Tensor, A: Tensor) -> Tensor:
        """Return ∂_pA."""
        drive: Tensor = self.layers[self.calls](F.relu(A))
        self.calls += 1
        return drive - self.effective_depth * A

    def forward(self, inputs: Tensor) -> Tensor:
        """Return A_L."""
        self.calls = 0
        options = {"grid_constructor": lambda *_: self.grid}
        path: Tensor = self.odeint(self.velocity, inputs, self.grid[[0, -1]], method="euler", options=options)
        return path[-1]


def cost(outputs: Tensor, targets: Tensor) -> Tensor:
    """The squared error summed over outputs and averaged over samples, as `LeakyResNetModule` has it."""
    return (outputs - targets).square().sum(-1).mean()


def autocast(size: Size, device: torch.device) -> AbstractContextManager[object]:
    """The precision of a size."""
    return torch.autocast(device.type, torch.bfloat16, enabled=size.precision == "bf16-mixed")


def _linears(size: Size, device: torch.device) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(size.width, size.width, device=device) for _ in range(size.num_layers)]


def _copied_linears(size: Size, device: torch.device) -> list[nn.Linear]:
    linears = _linears(size, device)
    for linear, own in zip(linears, leaky(size, device).layers, strict=True):
        linear.load_state_dict(own.state_dict())
    return linears
