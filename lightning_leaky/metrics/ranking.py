"""How alike two columns of numbers rank."""

from __future__ import annotations

from torch import Tensor
from torchmetrics.functional import spearman_corrcoef


def rank_correlation(values: Tensor, others: Tensor) -> float:
    """Spearman's rank correlation of two columns, each of shape (n,); NaN if one of them is constant or holds a NaN."""
    columns = [values.double(), others.double()]
    if any(not bool(column.std() > 0) for column in columns):  # torchmetrics says 0
        return float("nan")
    return float(spearman_corrcoef(*columns))
