"""Numbers and counts of the samples of a data set."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_leaky.metrics.layer_store import NUM_LEVELS
from lightning_leaky.reading.passed_batch import Batch, PassedBatch
from lightning_leaky.reading.thinning import sample_levels
from lightning_leaky.utilities.processes import num_processes, number_of_process


class SampleCount:
    """Numbers the samples of a data set before a batch passes, and counts them by `sample_levels`.

    The k-th sample of process r of W is number r + kW, as in distributed samplers.

    Attributes:
        of_levels: Samples of each level, all and those that have rows, shape (2, `NUM_LEVELS`).
    """

    def __init__(self) -> None:
        self.of_levels = torch.zeros(2, NUM_LEVELS, dtype=torch.int64)
        self._start, self._length, self._batch_tells = 0, 0, True

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

    def _count(self, fresh: Tensor | None, sign: int = 1) -> Tensor:
        levels = sample_levels(self._numbers())
        levels = levels if fresh is None or len(fresh) != len(levels) else levels[fresh.cpu()]
        self.of_levels[0] += sign * _histogram(levels)
        return levels

    def _numbers(self) -> Tensor:
        return number_of_process() + num_processes() * torch.arange(self._start, self._start + self._length)


def _histogram(levels: Tensor) -> Tensor:
    return torch.bincount(levels, minlength=NUM_LEVELS)
