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
    """What a metric needs, as those of torchmetrics; its ``higher_is_better`` counts, if it has one."""

    def reset(self) -> None:
        """Forget every batch."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Add a batch."""

    def compute(self) -> Tensor:
        """Return one number over the batches of all processes."""


Cost: TypeAlias = Callable[[Any, Any], Tensor] | CostMetric
"""A function of outputs and targets that is a mean over samples, or a metric."""


class Removal:
    """Measures what a network costs without some blocks, each set once; see `ablate_path`.

    Attributes:
        sign: 1 if less is better, −1 if more is.
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
        # The model may log the metric too.
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
        """Register the hooks."""
        self._open.enter_context(self._skipping)
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the hooks."""
        self._open.close()

    def cost_without(self, removed: Iterable[int]) -> float:
        """Return the cost over the batches of all processes, without some blocks."""
        blocks = frozenset(removed)
        if blocks not in self._costs:
            self.on_pass()
            self._skipping.skipped = set(blocks)
            self._costs[blocks] = self._measured()
        return self._costs[blocks]

    def curve(self, order: Sequence[int]) -> list[float]:
        """Return the costs without the first 0, 1, … blocks of an order."""
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
