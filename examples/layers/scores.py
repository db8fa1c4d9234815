"""Scores of blocks: what each says that leaving a block out would cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from examples.layers.networks import Network
from examples.layers.tasks import Task
from lightning_leaky import measure_path
from lightning_leaky.functional import block_influence

Batches = Sequence[tuple[Tensor, Tensor]]
Score = Callable[[Network, Batches, Task], Tensor]
"""From a network, batches and their task to a number a block, shape (L,): the least may go first."""

FEATURES = ("relu", "linear", "crelu")
GAMMAS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)


def _quantity(name: str, settings: Mapping[str, Any], network: Network, batches: Batches, task: Task) -> Tensor:
    """A quantity of this package."""
    return measure_path(network, batches, [name], task.loss, layers="blocks.*", halves=False, **settings)[name]


def _inputs_and_outputs(network: Network, batches: Batches) -> list[tuple[Tensor, Tensor]]:
    """What each block takes and returns, rows of all batches, in float64."""
    states: list[list[Tensor]] = [[] for _ in range(len(network.blocks) + 1)]
    network.eval()
    with torch.no_grad():
        for inputs, _ in batches:
            hidden = network.first(inputs)
            for index, block in enumerate([None, *network.blocks]):
                hidden = hidden if block is None else block(hidden)
                channels = hidden.movedim(1, -1) if hidden.ndim == 4 else hidden
                states[index].append(channels.flatten(0, -2).double())
    stacked = [torch.cat(parts) for parts in states]
    return list(pairwise(stacked))


def _angular_distance(network: Network, batches: Batches, task: Task) -> Tensor:
    """Mean angle of input and output in units of π (Gromov et al., arXiv 2403.17887), of single blocks."""
    return torch.stack([_mean_angle(*pair) for pair in _inputs_and_outputs(network, batches)])


def _mean_angle(previous: Tensor, current: Tensor) -> Tensor:
    cosines = torch.nn.functional.cosine_similarity(previous, current, dim=-1)
    return cosines.clamp(-1, 1).arccos().mean() / torch.pi


def run_to_remove(network: Network, batches: Batches, length: int) -> list[int]:
    """Indices of the run of so many blocks with the least angular distance from end to end (the same source)."""
    pairs = _inputs_and_outputs(network, batches)
    starts = range(len(pairs) - length + 1)
    angles = [float(_mean_angle(pairs[start][0], pairs[start + length - 1][1])) for start in starts]
    start = angles.index(min(angles))
    return list(range(start, start + length))


def _cka(network: Network, batches: Batches, task: Task) -> Tensor:
    """One minus linear CKA of input and output (Kornblith et al., arXiv 1905.00414)."""
    found = []
    for previous, current in _inputs_and_outputs(network, batches):
        start, end = (matrix - matrix.mean(0) for matrix in (previous, current))
        squares = [(one.mT @ other).square().sum() for one, other in ((start, end), (start, start), (end, end))]
        found.append(1 - squares[0] / (squares[1] * squares[2]).sqrt())
    return torch.stack(found)


def _centred_influence(network: Network, batches: Batches, task: Task) -> Tensor:
    """Block influence about the mean of all samples, which many share."""
    pairs = [(start - start.mean(0), end - end.mean(0)) for start, end in _inputs_and_outputs(network, batches)]
    return torch.stack([block_influence(*pair) for pair in pairs])


def _contribution(network: Network, batches: Batches, task: Task) -> Tensor:
    """‖A_l − A_{l−1}‖_F / ‖A_L‖_F: how much of what the last block returns a block has added."""
    pairs = _inputs_and_outputs(network, batches)
    moved = torch.stack([torch.linalg.matrix_norm(end - start) for start, end in pairs])
    contribution: Tensor = moved / torch.linalg.matrix_norm(pairs[-1][1])
    return contribution


def _taylor(network: Network, batches: Batches, task: Task) -> Tensor:
    """Σ |θ ∂C/∂θ| over the parameters of a block (Molchanov et al., arXiv 1906.10771)."""
    network.eval()
    parameters = [list(block.parameters()) for block in network.blocks]
    flat = [one for block in parameters for one in block]
    sums = [torch.zeros_like(one) for one in flat]
    for inputs, targets in batches:
        gradients = torch.autograd.grad(task.loss(network(inputs), targets), flat)
        for total, gradient in zip(sums, gradients, strict=True):
            total += gradient
    terms = iter((one * total).abs().sum().double().detach() for one, total in zip(flat, sums, strict=True))
    return torch.stack([torch.stack([next(terms) for _ in block]).sum() for block in parameters])


def _last_first(network: Network, batches: Batches, task: Task) -> Tensor:
    """The later a block, the less it is said to do."""
    return -torch.arange(len(network.blocks), dtype=torch.float64)


def _random(network: Network, batches: Batches, task: Task) -> Tensor:
    return torch.rand(len(network.blocks), dtype=torch.float64)


def _of_network(name: str, **settings: object) -> Score:
    return partial(_quantity, name, settings)


SPEEDS: dict[str, Score] = {
    f"relative speed, {features}, {gamma:g}": _of_network("relative_speed", features=features, gamma_rel=gamma)
    for features in FEATURES
    for gamma in GAMMAS
}
"""Relative speed by its features and γ0."""

SCORES: dict[str, Score] = {
    "block influence": _of_network("block_influence"),
    "relative distance": _of_network("relative_distance"),
    **SPEEDS,
    "kinetic energy, relu": _of_network("kinetic_energy", features="relu"),
    "kinetic energy, linear": _of_network("kinetic_energy", features="linear"),
    "angular distance": _angular_distance,
    "block influence, centred": _centred_influence,
    "contribution": _contribution,
    "1 - CKA": _cka,
    "first order": _of_network("first_order"),
    "Taylor": _taylor,
    "last": _last_first,
    "random": _random,
}
"""Every score by name; those of `WITH_GRADIENTS` need a backward pass."""

WITH_GRADIENTS = ("first order", "Taylor")
