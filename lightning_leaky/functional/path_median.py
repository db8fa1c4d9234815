"""Statistics of layers."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_leaky.functional._checks import check_same_shape, widen

# Shares of the path that differ by less are equal.
_ROUNDING = 1e-7


def path_median(values: Tensor, step_sizes: Tensor) -> Tensor:
    """Median over the position p of a quantity with one value per layer, weighted by step-size [ours].

    If exactly half of the path is below, it is the mean of the two middle values. At equal steps it is the ordinary
    median.

    Args:
        values: One per layer, shape (L,), any unit.
        step_sizes: ρ, shape (L,), positive, with any sum.

    Returns:
        A scalar, float64; NaN if a value is.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> path_median(torch.tensor([9.0, 1.0, 2.0]), torch.tensor([6.0, 1.0, 1.0]))
        tensor(9., dtype=torch.float64)
    """
    check_same_shape("step_sizes", step_sizes, "values", values)
    ordered, order = widen(values).sort()  # NaN last
    weights = widen(step_sizes)[order]
    below = weights.cumsum(0) / weights.sum()
    first, last = (int((below < half).sum()) for half in (0.5 - _ROUNDING, 0.5 + _ROUNDING))
    return ordered[-1] if bool(ordered[-1].isnan()) else (ordered[first] + ordered[last]) / 2


def rank_correlation(values: Tensor, others: Tensor) -> float:
    """Spearman's rank correlation of two tensors of shape (n,); NaN if one is constant or not finite."""
    columns = [values.double(), others.double()]
    # Ties get their mean rank, values that are not finite NaN.
    ranks = [(one[:, None] > one).sum(1) + 0.5 * (one[:, None] == one).sum(1) + 0 * one for one in columns]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])
