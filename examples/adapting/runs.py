"""One training: a kind of network, a scheme, a seed and a learning rate."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from examples.adapting.schemes import SCHEMES
from examples.layers.kinds import KINDS
from examples.layers.networks import Network
from examples.layers.removal import judged
from examples.layers.scores import Batches
from examples.layers.tasks import Task, task_of
from examples.layers.training import train
from examples.layers.which import batches_of_size
from examples.paper.study import RUNS, Rows, layer_rows
from lightning_leaky import ablate_path
from lightning_leaky.paths.leaky_path import LeakyPath

NUM_STEPS = {"gpt 8": 600, "gpt 16": 600, "vit": 600, "resnet": 400}
"""Kinds of the study, and optimizer steps of each, of half the batches of `examples.layers`."""
NUM_POINTS = 20
LOOKS = (0.1, 0.4, 0.7, 1.0)
"""Shares of the training after which blocks are looked at."""
_FOR_CURVES, _FOR_LOSSES, _FOR_LOOKS, _FOR_REMOVALS = 16, 64, 4, 8


@dataclass(frozen=True)
class Setting:
    """One training.

    Args:
        kind: Name of its kind.
        scheme: One of `SCHEMES`.
        seed: Draws data, weights and batches.
        rate: Times the learning rate of `examples.layers`.
        judges: Whether its losses are those of the test split, and blocks are left out; else those of the score split.
        shrink: Divides its blocks, its batches and their number, and twice its steps; 1 for the study.
    """

    kind: str
    scheme: str
    seed: int
    rate: float
    judges: bool = False
    shrink: int = 1

    @property
    def num_steps(self) -> int:
        """Optimizer steps."""
        return NUM_STEPS[self.kind] // self.shrink**2


@dataclass(frozen=True)
class ShorterSetting(Setting):
    """A training of fewer steps, with a schedule of its own.

    Args:
        share: The share of the usual steps that it takes.
    """

    share: float = 0.9

    @property
    def num_steps(self) -> int:
        """Optimizer steps."""
        return round(self.share * super().num_steps)


def measure(setting: Setting) -> dict[str, Rows]:
    """Train, and follow the loss and the blocks."""
    started = time.perf_counter()
    torch.manual_seed(setting.seed)
    kind, task = KINDS[setting.kind], task_of(KINDS[setting.kind].task, setting.seed)
    network = kind.network(task, kind.num_blocks // setting.shrink)
    scheme = SCHEMES[setting.scheme]
    path = scheme.begin(network)
    num_steps, size = setting.num_steps, kind.batch_size // (2 * setting.shrink)
    batches = batches_of_size(task.test if setting.judges else task.score, size, _FOR_LOSSES // setting.shrink)
    curve: Rows = []
    looks: Rows = []

    def watch(step: int) -> None:
        if step in _shares_of(num_steps, NUM_POINTS):
            loss = judged(network, batches[:_FOR_CURVES], task)["cost"]
            curve.append({"step": step, "share": step / num_steps, "loss": loss})
        if step in {round(share * num_steps) for share in LOOKS}:
            looks.extend({"step": step, **row} for row in block_rows(network, path, batches[:_FOR_LOOKS], task))
        network.train()

    train(
        network,
        task,
        num_steps,
        size,
        setting.seed,
        rate=setting.rate,
        prepare=lambda _, optimizer: scheme.attach(path, optimizer, num_steps),
        watch=watch,
    )
    trained = time.perf_counter()
    scoring = batches_of_size(task.score, size, _FOR_REMOVALS)
    found = judged(network, batches, task)
    tables = {"curves": curve, "blocks": looks}
    if setting.judges:
        tables["removals"] = _removal_rows(network, scoring, batches, task)
    seconds = {"training": trained - started, "removing": time.perf_counter() - trained}
    return tables | {RUNS: [{"loss": found["cost"], "metric": found["metric"], "num_steps": num_steps, **seconds}]}


def _shares_of(num_steps: int, number: int) -> set[int]:
    return {round(num_steps * point / number) for point in range(1, number + 1)}


def block_rows(network: Network, path: LeakyPath, batches: Batches, task: Task) -> Rows:
    """One row a block: its step-size, how far it moves, and what the loss would want.

    ``pull`` is the derivative of the loss with respect to the logarithm of the gain, ⟨∂C/∂A_l, A_l − A_{l−1}⟩: where it
    is negative, a larger step-size lowers the loss.
    """
    network.eval()
    squares, pulls = torch.zeros(2, len(network.blocks)), torch.zeros(len(network.blocks))
    count = 0
    for states, gradients in _states(network, batches, task):
        moved = [current - previous for previous, current in pairwise(states)]
        squares += torch.tensor([[float(one.square().sum()) for one in part] for part in (moved, states[1:])])
        products = [float((one * gradient).sum()) for one, gradient in zip(moved, gradients[1:], strict=True)]
        pulls += torch.tensor(products) / len(batches)
        count += states[0].numel()
    columns = {
        "gain": path.step_sizes * len(path.step_sizes),
        "relative distance": (squares[0] / squares[1]).sqrt(),
        "moved": (squares[0] / count).sqrt(),
        "pull": pulls,
    }
    return layer_rows(columns)


def _states(network: Network, batches: Batches, task: Task) -> Iterator[tuple[Sequence[Tensor], Sequence[Tensor]]]:
    """A_0, …, A_L of each batch, and the derivatives of the loss with respect to them."""
    for inputs, targets in batches:
        states = [network.first(inputs)]
        for block in network.blocks:
            states.append(block(states[-1]))
        gradients = torch.autograd.grad(task.loss(network.last(states[-1]), targets), states)
        yield [state.detach() for state in states], gradients


def _removal_rows(network: Network, scoring: Batches, testing: Batches, task: Task) -> Rows:
    """One row a number of blocks that are left out, half of them at most; greedy on one split, judged on another."""
    order = ablate_path(network, scoring, task.loss, "blocks.*", order="greedy").order
    curve = ablate_path(network, testing[:_FOR_CURVES], task.loss, "blocks.*", order=order).curve.tolist()
    return [
        {"removed": number, "which": "-".join(map(str, sorted(order[:number]))), "loss": loss}
        for number, loss in enumerate(curve)
    ]
