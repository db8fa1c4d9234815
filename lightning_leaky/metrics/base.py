"""Metrics whose states are sums over samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_leaky.functional._checks import working_dtype
from lightning_leaky.utilities.processes import collective, num_processes, summed


class SumMetric(Metric):
    """Base of metrics whose states are sums over samples, in float64 (float32 on MPS).

    Args:
        **kwargs: Arguments of `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"dist_sync_fn": summed_state, **kwargs})

    def add_sum(self, name: str, *shape: int) -> None:
        """Add a state that is a sum over samples."""
        self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Module:
        """Follow a move to a device, but cast sums only if it has no float64."""

        def move(tensor: Tensor) -> Tensor:
            device = fn(tensor.new_empty(0)).device
            return tensor.to(device, working_dtype(device) if tensor.dtype == torch.float64 else tensor.dtype)

        return super()._apply(move, *args, **kwargs)


def summed_state(state: Tensor, group: Any = None) -> list[Tensor]:
    """Sum a state over processes, with less memory and fewer collectives than torchmetrics' gather."""
    return [summed(state, group)]


def gathered(rows: Tensor) -> Tensor:
    """Concatenate the rows of all processes, which may have different numbers."""
    if num_processes() > 1:
        with collective():
            rows = torch.cat(gather_all_tensors(rows))
    return rows
