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
    """How long samples stay as a data set grows: at level k one in 2^k is read, those whose own level is k at least.

    It depends on the number of a sample alone, so that the same are read in batches of any size and on any number of
    processes, by no random number and whatever comes later.

    Args:
        numbers: Of samples in their data set, from 0 on, shape (n,).

    Returns:
        Shape (n,), whole numbers.

    Example:
        >>> sample_levels(torch.arange(8))
        tensor([40,  0,  2,  0,  1,  3,  0,  1])
    """
    return (-_spread(numbers).clamp(min=2.0 ** (1 - NUM_LEVELS)).log2()).floor().long()


def chosen_rows(samples: Tensor, numbers: Tensor, level: int, max_rows: int) -> tuple[Tensor, Tensor]:
    """Which rows of a representation are read: at most a 64th of the bound of each sample, at places that vary.

    Args:
        samples: Of which sample of the batch each row is, in order, shape (N,).
        numbers: Of the samples in their data set, shape (n,).
        level: Which samples are read, see `sample_levels`.
        max_rows: How many rows are read of the data set at most.

    Returns:
        Places of the rows that are read, and the level of the sample of each.
    """
    levels, counts = sample_levels(numbers)[samples], torch.bincount(samples, minlength=len(numbers))
    ranks = torch.arange(len(samples)) - (counts.cumsum(0) - counts)[samples]
    most = max(1, max_rows // _LEAST_SAMPLES)
    is_read = (levels >= level) & (_spread(ranks + numbers[samples]) * counts[samples] < most)
    places = is_read.nonzero()[:, 0]
    return places, levels[places]


def _spread(numbers: Tensor) -> Tensor:
    """A place in [0, 1) for each number."""
    return (numbers.to(torch.float64) * _GOLDEN).frac()
