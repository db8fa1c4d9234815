"""Singular values and stable rank of the representations of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_leaky.functional.k_norm import KNorm
from lightning_leaky.functional.spectrum import singular_values_from_moments, stable_rank_of
from lightning_leaky.metrics.base import LayerMetric


class SingularValues(LayerMetric):
    """Singular values of each layer's representation over a data set, largest first.

    Values below 3e-7 of the largest read as 0; see `lightning_leaky.functional.singular_values_from_moments`.

    Args:
        num_layers: L, the number of representations.
        width: w.
        k_norm: Not used; accepted so that all metrics are made alike.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Returns:
        From `compute`: shape (L, w).

    Raises:
        ValueError: From `update`, if there is not one (N, w) floating-point matrix for each layer.

    Example:
        >>> metric = SingularValues(num_layers=1, width=2)
        >>> metric.update([torch.tensor([[0.0, 3.0], [4.0, 0.0]])])
        >>> metric.compute()
        tensor([[4., 3.]], dtype=torch.float64)
    """

    second_moment: Tensor

    def __init__(self, num_layers: int, width: int, k_norm: KNorm | None = None, **kwargs: Any) -> None:
        super().__init__(num_layers, width, k_norm, **kwargs)
        self.add_sum("second_moment", num_layers, width, width)

    def update(self, representations: Sequence[Tensor] | Tensor) -> None:
        """Add a batch.

        Args:
            representations: One matrix of shape (N, w) per layer.
        """
        for index, (representation,) in enumerate(self.layers_of(representations=representations)):
            self.second_moment[index] += representation.mT @ representation

    def compute(self) -> Tensor:
        """Return the values, shape (L, w)."""
        return singular_values_from_moments(self.second_moment)


class StableRank(SingularValues):
    """Stable rank of each layer's representation over a data set; see `lightning_leaky.stable_rank`.

    Takes the arguments of `SingularValues`; `compute` returns shape (L,), no unit.

    Example:
        >>> metric = StableRank(num_layers=1, width=2)
        >>> metric.update([torch.eye(2)])
        >>> metric.compute()
        tensor(2., dtype=torch.float64)
    """

    def compute(self) -> Tensor:
        """Return the values, shape (L,)."""
        return stable_rank_of(super().compute())
