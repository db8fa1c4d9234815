"""Which samples of a data set are read where not all are: fewer and fewer as more come, spread evenly over all."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_leaky.metrics.layer_store import NUM_LEVELS

# Multiples of it, less their whole part, fill [0, 1] evenly whatever their number, and share no period with the data.
_GOLDEN, _OTHER = (5**0.5 - 1) / 2, 2**0.5 - 1
# Levels from one number of samples to half of it: fewer would leave out more rows than they must.
_STEPS = 4
# Of few samples with many positions each, all positions would say little of other samples.
_LEAST_SAMPLES = 256


def sample_levels(numbers: Tensor) -> Tensor:
    """How long samples stay as a data set grows: at level k ≥ 1 one in 2^((k − 1)/4), those of that level or above.

    It depends on the number of a sample alone, so that the same are read in batches of any size and on any number of
    processes, by no random number and whatever comes later.

    Args:
        numbers: Of samples in their data set, from 0 on, shape (n,).

    Returns:
        Shape (n,), whole numbers from 1 on.

    Example:
        >>> sample_levels(torch.arange(8))
        tensor([160,   3,   9,   1,   5,  14,   2,   7])
    """
    halvings = -_spread(numbers, _GOLDEN).log2() * _STEPS
    return 1 + halvings.clamp(max=NUM_LEVELS - 2).floor().long()


def row_levels(samples: Tensor, numbers: Tensor, max_rows: int) -> Tensor:
    """How long rows stay: at level 0 all, then a 256th of the bound of each sample, evenly from varying starts.

    Args:
        samples: Of which sample of the batch each row is, in order, shape (N,).
        numbers: Of the samples in their data set, shape (n,).
        max_rows: How many rows are read of the data set at most.

    Returns:
        Shape (N,): the level of the sample, or 0 where that has many rows and this one goes first.
    """
    counts, most = torch.bincount(samples, minlength=len(numbers)), max(1, max_rows // _LEAST_SAMPLES)
    ranks = torch.arange(len(samples)) - (counts.cumsum(0) - counts)[samples]
    # By another number than samples are chosen by: else those that are read would all be read at the same places.
    places = ranks + (_spread(numbers, _OTHER) * counts).long()[samples]
    stays = places * most % counts[samples] < most
    return torch.where(stays, sample_levels(numbers)[samples], 0)


def _spread(numbers: Tensor, step: float) -> Tensor:
    """A place in [0, 1) for each number."""
    return (numbers.to(torch.float64) * step).frac()
