"""Metrics whose states are sums over samples, and the mean."""

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


class SampleMean(SumMetric):
    """Mean over the samples of a data set, from means over batches.

    Unlike `torchmetrics.MeanMetric` it keeps NaN, because a diverged cost must not look well. It sums in float64
    (float32 on MPS), even if a module in half precision casts its metrics.

    Args:
        **kwargs: Arguments of `torchmetrics.Metric`.

    Returns:
        From `compute`: a scalar; NaN without samples.

    Example:
        >>> import torch
        >>> metric = SampleMean()
        >>> metric.update(torch.tensor(1.0), num_samples=3)
        >>> metric.update(torch.tensor(2.0), num_samples=1)
        >>> metric.compute()
        tensor(1.2500, dtype=torch.float64)
    """

    total: Tensor
    num_samples: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_sum("total")
        self.add_sum("num_samples")

    def update(self, mean: Tensor, num_samples: int) -> None:
        """Add a batch.

        Args:
            mean: Mean over the batch, a scalar.
            num_samples: Number of samples of the batch.
        """
        self.total += mean.detach().to(self.total) * num_samples
        self.num_samples += num_samples

    def compute(self) -> Tensor:
        """Return the mean over all samples."""
        return self.total / self.num_samples
