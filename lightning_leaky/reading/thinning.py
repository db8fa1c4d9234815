"""Which samples of a data set are read where not all are: fewer and fewer as more come, spread evenly over all."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_leaky.metrics.path_reader import NUM_LEVELS

# Multiples of it, less their whole part, fill [0, 1] evenly whatever their number, and share no period with the data.
_GOLDEN = (5**0.5 - 1) / 2
# Of few samples with many positions each, all positions would say little of other samples.
_LEAST_SAMPLES = 64


def sample_levels(numbers: Tensor) -> Tensor:
    """How long samples stay as a data set grows: at level k ≥ 1 one in 2^(k − 1) is read, those of that level or above.

    It depends on the number of a sample alone, so that the same are read in batches of any size and on any number of
    processes, by no random number and whatever comes later.

    Args:
        numbers: Of samples in their data set, from 0 on, shape (n,).

    Returns:
        Shape (n,), whole numbers from 1 on.

    Example:
        >>> sample_levels(torch.arange(8))
        tensor([40,  1,  3,  1,  2,  4,  1,  2])
    """
    return 1 + (-_spread(numbers).clamp(min=2.0 ** (2 - NUM_LEVELS)).log2()).floor().long()


def row_levels(samples: Tensor, numbers: Tensor, max_rows: int) -> Tensor:
    """How long rows stay: at level 0 all, then at most a 64th of the bound of each sample, at places that vary.

    Args:
        samples: Of which sample of the batch each row is, in order, shape (N,).
        numbers: Of the samples in their data set, shape (n,).
        max_rows: How many rows are read of the data set at most.

    Returns:
        Shape (N,): the level of the sample, or 0 where that has many rows and this one goes first.
    """
    counts = torch.bincount(samples, minlength=len(numbers))
    ranks = torch.arange(len(samples)) - (counts.cumsum(0) - counts)[samples]
    stays = _spread(ranks + numbers[samples]) * counts[samples] < max(1, max_rows // _LEAST_SAMPLES)
    return torch.where(stays, sample_levels(numbers)[samples], 0)


def _spread(numbers: Tensor) -> Tensor:
    """A place in [0, 1) for each number."""
    return (numbers.to(torch.float64) * _GOLDEN).frac()
