"""The mean of a number over samples."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_leaky.metrics.base import SumMetric


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
