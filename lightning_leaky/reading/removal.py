"""A network's cost without some of its blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from lightning_leaky.hooks.skipped import SkippedBlocks
from lightning_leaky.hooks.structures import all_tensors_of
from lightning_leaky.paths.block_path import path_of
from lightning_leaky.paths.layers import LayerChoice, device_of
from lightning_leaky.reading.measure import evaluating, inputs_and_targets, read_batches, run_model, same_noise
from lightning_leaky.reading.observer import PathObserver
from lightning_leaky.reading.settings import ReadingSettings
from lightning_leaky.utilities.processes import summed


class CostMetric(Protocol):
    """What is called of a metric, as torchmetrics has it; one that says ``higher_is_better`` is believed."""

    def reset(self) -> None:
        """Forget every batch."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Add a batch."""

    def compute(self) -> Tensor:
        """Return one number, over the batches of all processes."""


Cost: TypeAlias = Callable[[Any, Any], Tensor] | CostMetric
"""A function of outputs and targets, a mean over the samples of a batch, or a metric."""


class Removal:
    """Measures, while it is entered, what a network costs without some of its blocks.

    A block that is left out hands on the state that it is given. The network runs in evaluation mode without gradients.
    Each set of blocks is measured once.

    Args:
        model: Any network.
        batches: Pairs (inputs, targets); at least one.
        cost: What to measure.
        layers: Which blocks, as of `EnergyMonitor`. Blocks that change the shape stay.
        settings: How blocks are found and which tensor is their state, as of `ReadingSettings`.

    Attributes:
        names: Names of the blocks in their model.
        sign: 1 where less is better, −1 where more is.
        on_pass: Called before each pass over the data.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        cost: Any,
        layers: LayerChoice | None,
        settings: Mapping[str, Any],
    ) -> None:
        if not batches:
            raise ValueError("`batches` must hold at least one batch, got none.")
        # A metric that the model logs besides keeps what it has counted.
        self._cost = copy.deepcopy(cost) if hasattr(cost, "compute") else cost
        self._model, self._batches = model, batches
        self.sign = -1 if getattr(cost, "higher_is_better", False) else 1
        self.on_pass: Callable[[], object] = lambda: None
        chosen = ReadingSettings(["relative_distance"], **settings)
        self._batch_axis = (chosen.sample_layout.axes or "n").index("n")
        observer = PathObserver(model, path_of(model, layers, chosen.effective_depth), chosen, strict=True)
        with same_noise(model):
            read_batches(observer, model, batches[:1], cost=None)
        self._skipping: SkippedBlocks = observer.skipping()
        self.names = tuple(self._skipping.names)
        self._costs: dict[frozenset[int], float] = {}
        self._open = ExitStack()

    def __enter__(self) -> Removal:
        """Put hooks on the blocks."""
        self._open.enter_context(self._skipping)
        return self

    def __exit__(self, *error: object) -> None:
        """Leave it as it was."""
        self._open.close()

    def cost_without(self, removed: Iterable[int]) -> float:
        """Return the cost over all batches, of all processes, without the blocks of some indices."""
        blocks = frozenset(removed)
        if blocks not in self._costs:
            self.on_pass()
            self._skipping.skipped = set(blocks)
            self._costs[blocks] = self._measured()
        return self._costs[blocks]

    def curve(self, order: Sequence[int]) -> list[float]:
        """Return the cost of the whole network, without the first block of an order, the first two, and so on."""
        return [self.cost_without(order[:count]) for count in range(len(order) + 1)]

    @torch.no_grad()
    def _measured(self) -> float:
        is_metric, sums = hasattr(self._cost, "compute"), torch.zeros(2, dtype=torch.float64)
        if is_metric:
            self._cost.reset()
        with evaluating(self._model), same_noise(self._model):
            for batch in self._batches:
                inputs, targets = inputs_and_targets(batch)
                outputs = run_model(self._model, inputs)
                if is_metric:
                    self._cost.update(outputs, targets)
                else:
                    tensors = all_tensors_of([inputs, targets])
                    size = next(one.shape[self._batch_axis] for one in tensors if one.ndim > self._batch_axis)
                    sums += size * torch.tensor([float(self._cost(outputs, targets)), 1.0], dtype=torch.float64)
        if is_metric:
            return float(self._cost.compute())
        total, count = summed(sums.to(device_of(self._model)))
        return float(total / count)
