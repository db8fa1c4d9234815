"""Training, and a short training after blocks have gone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Generator, Tensor
from torch.optim import Optimizer

from examples.layers.networks import Network
from examples.layers.tasks import Task
from lightning_leaky import StepSizeHook, make_leaky

_RATE, _DECAY, _WARMUP = 1e-3, 0.01, 0.05


def adapt_steps(network: Network, optimizer: Optimizer) -> None:
    """Let step-sizes adapt by the paper's rule, if a network has some."""
    if any(hasattr(module, "step_sizes") for module in network.modules()):
        StepSizeHook(network).attach(optimizer)


def train(
    network: Network,
    task: Task,
    num_steps: int,
    batch_size: int,
    seed: int,
    kept: Sequence[float] = (),
    rate: float = 1.0,
    prepare: Callable[[Network, Optimizer], object] = adapt_steps,
    watch: Callable[[int], object] = lambda step: None,
) -> dict[float, Network]:
    """Train a network by AdamW, with a warm-up and a cosine.

    Args:
        network: It is changed in place.
        task: What it learns.
        num_steps: Optimizer steps.
        batch_size: Samples of a batch.
        seed: Draws the batches.
        kept: At which shares of the training to copy it.
        rate: Times the learning rate.
        prepare: Called with the network and its optimizer, before it has a schedule.
        watch: Called with the number of steps so far, after each.

    Returns:
        The copies.
    """
    optimizer = torch.optim.AdamW(network.parameters(), _RATE * rate, weight_decay=_DECAY)
    prepare(network, optimizer)
    warmup = max(1, round(_WARMUP * num_steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / num_steps)),
    )
    copies, at = {}, {round(share * num_steps): share for share in kept}
    network.train()
    for step, (inputs, targets) in zip(range(num_steps), batches_of(task.train, batch_size, seed), strict=False):
        if step in at:
            copies[at[step]] = copy.deepcopy(network)
        optimizer.zero_grad()
        task.loss(network(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        watch(step + 1)
    return copies


def batches_of(data: tuple[Tensor, Tensor], batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches drawn at random, without end."""
    generator = Generator().manual_seed(seed)
    inputs, targets = data
    while True:
        order = torch.randperm(len(inputs), generator=generator)
        for chosen in torch.split(order, batch_size):
            if len(chosen) == batch_size:
                yield inputs[chosen], targets[chosen]


def adapted(network: Network) -> Network:
    """Give the blocks step-sizes, without a leak."""
    return make_leaky(network, "blocks.*", effective_depth=0.0)
