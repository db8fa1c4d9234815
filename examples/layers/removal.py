"""Networks without some of their blocks, what they still can do, and the orders in which blocks go."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from examples.layers.networks import Network
from examples.layers.scores import SCORES, Batches, run_to_remove
from examples.layers.tasks import CONTEXT, Task
from lightning_leaky import ablate_path

_PROMPT = 48

Removal = Callable[[Network, Batches, Task, int], list[list[int]]]
"""From a network, batches and a number of blocks k to the blocks that go: the first, the first two, …, the first k."""


def without(network: Network, removed: Iterable[int]) -> Network:
    """Return a network with the same modules, but for some blocks."""
    gone = set(removed)
    kept = [block for index, block in enumerate(network.blocks) if index not in gone]
    return Network(network.first, kept, network.last)


def own_copy(network: Network, removed: Iterable[int]) -> Network:
    """Return a network of its own without some blocks."""
    return copy.deepcopy(without(network, removed))


@torch.no_grad()
def judged(network: Network, batches: Batches, task: Task) -> dict[str, float]:
    """Cost and metric, means over batches of one size."""
    network.eval()
    found = [
        (task.loss(outputs := network(inputs), targets), task.metric(outputs, targets)) for inputs, targets in batches
    ]
    cost, metric = torch.tensor(found, dtype=torch.float64).mean(0).tolist()
    return {"cost": cost, "metric": metric}


@torch.no_grad()
def share_generated(network: Network, batches: Batches) -> float:
    """Share of the characters that are right, of those that follow a prompt and are taken one after another."""
    network.eval()
    truth = batches[0][0]
    written = truth[:, :_PROMPT]
    for _ in range(CONTEXT - _PROMPT):
        written = torch.cat([written, network(written)[:, -1:].argmax(-1)], dim=1)
    return float((written[:, _PROMPT:] == truth[:, _PROMPT:]).float().mean())


def _nested(order: Sequence[int], count: int) -> list[list[int]]:
    return [list(order[:number]) for number in range(1, count + 1)]


def once(name: str) -> Removal:
    """All at once: by one score of the whole network, the least first."""

    def removed(network: Network, batches: Batches, task: Task, count: int) -> list[list[int]]:
        return _nested(SCORES[name](network, batches, task).argsort(stable=True).tolist(), count)

    return removed


def again(name: str) -> Removal:
    """One by one: the rest is scored again after each."""

    def removed(network: Network, batches: Batches, task: Task, count: int) -> list[list[int]]:
        left, gone = list(range(len(network.blocks))), list[int]()
        for _ in range(count):
            least = int(SCORES[name](without(network, gone), batches, task).argmin())
            gone.append(left.pop(least))
        return _nested(gone, count)

    return removed


def runs(network: Network, batches: Batches, task: Task, count: int) -> list[list[int]]:
    """The run with the least angular distance, of each length."""
    return [run_to_remove(network, batches, length) for length in range(1, count + 1)]


def measured(network: Network, batches: Batches, task: Task, count: int) -> list[list[int]]:
    """All at once, by the measured cost of each."""
    costs: Tensor = ablate_path(network, batches, task.loss, "blocks.*").costs
    return _nested(costs.argsort(stable=True).tolist(), count)


def greedy(network: Network, batches: Batches, task: Task, count: int) -> list[list[int]]:
    """One by one, by the measured cost of the rest."""
    found = ablate_path(network, batches, task.loss, "blocks.*", order="greedy", num_removed=count)
    return _nested([number - 1 for number in found.order], count)


REMOVALS: dict[str, Removal] = {
    "block influence": once("block influence"),
    "relative distance": once("relative distance"),
    "relative speed": once("relative speed, linear, 0.1"),
    "first order": once("first order"),
    "Taylor": once("Taylor"),
    "block influence, again": again("block influence"),
    "relative distance, again": again("relative distance"),
    "relative speed, again": again("relative speed, linear, 0.1"),
    "first order, again": again("first order"),
    "angular distance of runs": runs,
    "last": once("last"),
    **{f"random {draw}": once("random") for draw in (1, 2, 3)},
    "ablate_path": measured,
    "ablate_path, greedy": greedy,
}
"""Ways of removing blocks by name."""

TUNED = ("block influence", "relative distance", "relative speed", "last", "random 1", "ablate_path, greedy")
"""Those that are trained a little more after the removal."""
