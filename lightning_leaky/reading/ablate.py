"""What leaving blocks out costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from lightning_leaky.paths.layers import LayerChoice
from lightning_leaky.reading.removal import Cost, Removal
from lightning_leaky.utilities.progress import watched

Order: TypeAlias = Literal["greedy"] | Sequence[int]
"""Blocks to leave out one after another, numbered from 1; ``"greedy"`` takes the cheapest next."""


@dataclass(frozen=True, eq=False)  # tensors have no truth value to compare by
class Ablation:
    """What leaving blocks out costs.

    Attributes:
        names: Names of the blocks in their model.
        baseline: Cost of the whole network.
        costs: Cost without each block, shape (L,), float64.
        order: Blocks left out one after another, numbered from 1.
        curve: Cost without the first k of them, shape (K + 1,), float64; it begins with the baseline.

    Example:
        >>> Ablation(("a", "b"), 1.0, torch.tensor([3.0, 1.5])).increases
        tensor([2.0000, 0.5000])
    """

    names: tuple[str, ...]
    baseline: float
    costs: Tensor
    order: tuple[int, ...] = ()
    curve: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def increases(self) -> Tensor:
        """What leaving out each block adds to the cost, shape (L,)."""
        return self.costs - self.baseline


def ablate_path(
    model: nn.Module,
    batches: Iterable[Any],
    cost: Cost,
    layers: LayerChoice | None = None,
    order: Order = (),
    num_removed: int | None = None,
    max_batches: int | None = None,
    progress: bool = False,
    **settings: Any,
) -> Ablation:
    """Measure what leaving out each block costs, and several of them together.

    A block that is left out passes on the state that it is given. The costs of single blocks take L + 1 passes over the
    data. Greedy removal takes another L − k passes for each k = 1, …, K − 1, a given order K − 1.

    The network runs in evaluation mode without gradients, and is left as it was. Under torch.distributed the samples
    of all processes count together.

    Args:
        model: Any network, a LightningModule included.
        batches: Pairs (inputs, targets), as of `measure_path`; all stay in memory.
        cost: C(outputs, targets), a mean over the samples of its batch, or a metric, as of torchmetrics.
        layers: Which blocks, as of `EnergyMonitor`. Blocks that change the shape stay.
        order: ``"greedy"``, or numbers of blocks, from 1, to leave out one after another; none by default.
        num_removed: K, how many blocks greedy removal leaves out; half of them by default.
        max_batches: How many batches to use; all by default.
        progress: Whether to show a progress bar in a terminal.
        **settings: How to find blocks and their states, as of `ReadingSettings`.

    Returns:
        The costs.

    Raises:
        ValueError: If there are no batches, a block cannot be left out, or `order` or `num_removed` names missing
            blocks.

    Example:
        >>> net = nn.Sequential(*(nn.Linear(3, 3) for _ in range(4)))
        >>> found = ablate_path(net, [(torch.eye(3), torch.eye(3))], nn.functional.mse_loss, "*", order="greedy")
        >>> found.costs.shape, len(found.order), found.curve.shape
        (torch.Size([4]), 2, torch.Size([3]))
    """
    with Removal(model, list(islice(batches, max_batches)), cost, layers, settings) as removal:
        blocks = range(len(removal.names))
        chosen = _checked_order(order, num_removed, len(blocks))
        numbers = range(_num_passes(order == "greedy", len(chosen), len(blocks)))
        passes = iter(watched(numbers, title="leaving out") if progress else numbers)
        removal.on_pass = lambda: next(passes, None)
        alone = [removal.cost_without([index]) for index in blocks]
        taken = list[int]()
        for index in chosen:
            rest = [one for one in blocks if one not in taken] if order == "greedy" else [index]
            taken.append(min(rest, key=lambda one: removal.sign * removal.cost_without([*taken, one])))
        curve = removal.curve(taken)
        next(passes, None)  # closes the bar
    return Ablation(
        removal.names,
        curve[0],
        torch.tensor(alone, dtype=torch.float64),
        tuple(index + 1 for index in taken),
        torch.tensor(curve if taken else [], dtype=torch.float64),
    )


def _checked_order(order: Any, num_removed: int | None, num_blocks: int) -> list[int]:
    """Indices of blocks to leave out; for greedy removal only their number counts."""
    if order == "greedy":
        most = num_blocks // 2 if num_removed is None else num_removed
        if not 0 <= most <= num_blocks:
            raise ValueError(f"`num_removed` must be between 0 and the {num_blocks} blocks, got {most!r}.")
        return list(range(most))
    if isinstance(order, (str, int)) or not set(order) <= set(range(1, num_blocks + 1)) or len(set(order)) < len(order):
        raise ValueError(f"`order` must be 'greedy', or different numbers from 1 to {num_blocks}, got {order!r}.")
    return [number - 1 for number in order]


def _num_passes(is_greedy: bool, num_taken: int, num_blocks: int) -> int:
    """Passes over the data: one for the whole network, one per block, and those for several blocks."""
    more = sum(num_blocks - taken for taken in range(1, num_taken)) if is_greedy else max(0, num_taken - 1)
    return 1 + num_blocks + more
