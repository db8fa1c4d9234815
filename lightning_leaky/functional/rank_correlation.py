"""Rank correlation."""

from __future__ import annotations

import torch
from torch import Tensor


def rank_correlation(values: Tensor, others: Tensor) -> float:
    """Spearman's rank correlation of two tensors of shape (n,); NaN if one is constant or not finite."""
    columns = [values.double(), others.double()]
    # Ties get their mean rank, values that are not finite NaN.
    ranks = [(one[:, None] > one).sum(1) + 0.5 * (one[:, None] == one).sum(1) + 0 * one for one in columns]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])
