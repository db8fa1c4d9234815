"""Which samples of a large data set are read: a share that falls as more come, spread evenly."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_leaky.metrics.layer_store import NUM_LEVELS

# The fractional parts of their multiples fill [0, 1] evenly, and share no period with the data.
_GOLDEN, _OTHER = (5**0.5 - 1) / 2, 2**0.5 - 1
# Levels per halving of the samples: fewer would drop more rows than needed.
_STEPS = 4
# All positions of too few samples would tell little of the others.
_LEAST_SAMPLES = 256

FIRST_LEVEL = 40
"""The least level of samples; below it the rows of each become fewer."""


def sample_levels(numbers: Tensor) -> Tensor:
    """Levels 40 + k up to which samples stay as a data set grows, shape (n,): one in 2^(k/4) stays at that level.

    A level depends only on a sample's number in its data set, from 0, so batches of any size and any number of
    processes read the same samples.

    Example:
        >>> sample_levels(torch.arange(8))
        tensor([200,  42,  48,  40,  44,  53,  41,  46])
    """
    return FIRST_LEVEL + _levels(_spread(numbers, _GOLDEN), NUM_LEVELS - FIRST_LEVEL)


def row_levels(samples: Tensor, numbers: Tensor, max_rows: int) -> Tensor:
    """Levels up to which rows stay, shape (N,).

    That of the sample for `max_rows` / 256 evenly spread rows of each; of the others, one in 2^(k/4) stays at level k.

    Args:
        samples: The sample in the batch of each row, in order, shape (N,).
        numbers: Of the samples in their data set, shape (n,).
        max_rows: Rows to read of the data set at most.
    """
    counts, most = torch.bincount(samples, minlength=len(numbers)), max(1, max_rows // _LEAST_SAMPLES)
    ranks = torch.arange(len(samples)) - (counts.cumsum(0) - counts)[samples]
    # Another number than for samples, or else all samples read would keep the same positions.
    places = ranks + (_spread(numbers, _OTHER) * counts).long()[samples]
    stays = places * most % counts[samples] < most
    return torch.where(stays, sample_levels(numbers)[samples], _levels(_spread(places, _GOLDEN), FIRST_LEVEL))


def _spread(numbers: Tensor, step: float) -> Tensor:
    return (numbers.to(torch.float64) * step).frac()


def _levels(shares: Tensor, number: int) -> Tensor:
    """So many levels, from 0, of numbers in [0, 1): one in 2^(k/4) has level k or more."""
    return (-shares.log2() * _STEPS).clamp(max=number - 1).floor().long()
