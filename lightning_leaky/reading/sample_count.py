"""Which samples of a data set are read, by number: a share that falls as more come, spread evenly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_leaky.metrics.layer_store import NUM_LEVELS
from lightning_leaky.utilities.data_parallel import DataParallelRank, Standing, probe
from lightning_leaky.utilities.processes import meeting_place

if TYPE_CHECKING:
    from lightning_leaky.reading.passed_batch import Batch, PassedBatch


# The fractional parts of their multiples fill [0, 1] evenly, and share no period with the data.
_GOLDEN, _OTHER = (5**0.5 - 1) / 2, 2**0.5 - 1
# Levels per halving of the samples: fewer would drop more rows than needed.
_STEPS = 4
# All positions of too few samples would tell little of the others.
_LEAST_SAMPLES = 256

FIRST_LEVEL = 40
"""The least level of samples; below it the rows of each become fewer."""


class SampleCount:
    """Numbers the samples of a data set before a batch passes, and counts them by `sample_levels`.

    The k-th sample of data-parallel rank r of W is number r + kW, as in distributed samplers.

    Attributes:
        of_levels: Samples of each level, all and those that have rows, shape (2, `NUM_LEVELS`).
    """

    def __init__(self, data_parallel: DataParallelRank | None = None) -> None:
        self.given = data_parallel
        self.reset()

    @property
    def data_parallel(self) -> DataParallelRank:
        """Which processes have the same samples; asked anew, because processes may join after this object is made."""
        return self.given or DataParallelRank.own()

    def reset(self) -> None:
        """Forget every sample."""
        self.of_levels = torch.zeros(2, NUM_LEVELS, dtype=torch.int64)
        self._start, self._length, self._batch_tells = 0, 0, True
        self._probe: Tensor | None = None

    def add(self, batch: Batch, level: int) -> bool:
        """Count a batch's samples; return whether one has this level or more, or their number is unknown."""
        self._start += self._length
        self._length = batch.length if self._batch_tells else 0
        return not self._length or bool((self._count(batch.fresh) >= level).any())

    def numbers_of(self, passed: PassedBatch) -> Tensor:
        """Return the numbers of the samples of the last batch, once it has passed, shape (n,)."""
        number = passed.num_samples()
        if number != self._length:  # the first tensor of a batch does not have its samples in rows
            self._batch_tells = False
            self._count(passed.batch.fresh, -1)
            self._length = number
            self._count(passed.batch.fresh)
        return self._numbers()

    def add_read(self, passed: PassedBatch) -> None:
        """Count the samples of the last batch that have rows."""
        self.of_levels[1] += _histogram(sample_levels(self._numbers()[passed.places_read()]))

    def look_at(self, *matrices: Tensor) -> None:
        """Keep a few entries of the first batch that is read, if other processes may have the same samples."""
        if self._probe is None and self.data_parallel.has_peers:
            self._probe = probe(*matrices)

    def standing(self, rows: int, device: torch.device) -> Standing:
        """Compare what was read with the processes of this rank, and count their samples once: a collective."""
        seen = probe(*[torch.zeros(0, 0)] * 2) if self._probe is None else self._probe
        found = self.data_parallel.standing(rows, seen.to(meeting_place(device)))
        if not found.is_first:
            self.of_levels.zero_()
        return found

    def _count(self, fresh: Tensor | None, sign: int = 1) -> Tensor:
        levels = sample_levels(self._numbers())
        levels = levels if fresh is None or len(fresh) != len(levels) else levels[fresh.cpu()]
        self.of_levels[0] += sign * _histogram(levels)
        return levels

    def _numbers(self) -> Tensor:
        places = torch.arange(self._start, self._start + self._length)
        return self.data_parallel.rank + self.data_parallel.size * places


def _histogram(levels: Tensor) -> Tensor:
    return torch.bincount(levels, minlength=NUM_LEVELS)


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
