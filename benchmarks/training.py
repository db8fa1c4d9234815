"""A training step of our network against those of networks that do the same work."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.environment import package_version
from benchmarks.networks import LEARNING_RATE, OdeNet, autocast, batch_of, cost, leaky, obvious, plain
from benchmarks.sizes import Settings, Size
from benchmarks.tables import Row, ratio_row
from benchmarks.timing import in_turn

GOALS = {"plain fully-connected net": 1.05, "obvious leaky code": 1.0, "torchdiffeq, Euler": 0.8}
WEIGHT_DECAY = 3e-3
"""λ."""
GOALS_WITH_DECAY = {"c1": 1.08, "c2": 1.03, "c3": 1.03}


def run(settings: Settings) -> Iterator[Row]:
    """Forward, backward and Adam's step, by its default code and, on a CPU, fused: on a GPU that changes no ratio."""
    for size in settings.sizes:
        for fused in (None, True) if settings.device.type == "cpu" else (None,):
            yield from _rows(size, fused, settings)


def training_step(
    network: nn.Module,
    size: Size,
    device: torch.device,
    fused: bool | None = None,
    regularizer: Callable[[], Tensor] | None = None,
    weight_decay: float = 0.0,
) -> Callable[[], None]:
    """A training step on one batch, with a decay in the loss or in the optimizer, to be called again and again."""
    inputs, targets = batch_of(size, device)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, weight_decay=weight_decay, fused=fused)

    def step() -> None:
        with autocast(size, device):
            loss = cost(network(inputs), targets)
            if regularizer is not None:
                loss = loss + WEIGHT_DECAY * regularizer()
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()  # here, so that sides whose turn it is not hold no gradients

    return step


def _rows(size: Size, fused: bool | None, settings: Settings) -> list[Row]:
    device, name = settings.device, f"training step, {'fused' if fused else 'default'} Adam"
    networks = [leaky(size, device), plain(size, device), obvious(size, device)]
    if package_version("torchdiffeq"):
        networks.append(OdeNet(size, device))
    sides = dict(zip(["ours", *GOALS], (training_step(net, size, device, fused) for net in networks), strict=False))
    with_term, decayed = "with regularizer", "plain net, same decay in its optimizer"
    regularized = leaky(size, device)
    sides[with_term] = training_step(regularized, size, device, fused, regularized.regularizer)
    if fused:
        decay = WEIGHT_DECAY / (size.num_layers * size.effective_depth)  # λρ_l/L̃, what the L2 term comes to
        sides[decayed] = training_step(plain(size, device), size, device, fused, weight_decay=decay)
    seconds = in_turn(sides, settings)
    rows = [
        ratio_row(name, size.name, against, seconds["ours"], seconds[against], goal)
        if against in seconds
        else Row(name, size.name, against, note="not installed")
        for against, goal in GOALS.items()
    ]
    if not fused:
        return [*rows, ratio_row(f"{name}, {with_term}", size.name, "ours", seconds[with_term], seconds["ours"])]
    name, goal = "training step with its L2 term, fused Adam", GOALS_WITH_DECAY.get(size.name)
    return [*rows, ratio_row(name, size.name, decayed, seconds[with_term], seconds[decayed], goal)]
