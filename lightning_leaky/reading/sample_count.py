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
        of_levels: Samples of each level, shape (`NUM_LEVELS`,).
    """

    def __init__(self) -> None:
        self.of_levels = torch.zeros(NUM_LEVELS, dtype=torch.int64)
        self._start, self._length = 0, 0

    def add(self, batch: Batch, level: int) -> bool:
        """Count a batch's samples; return whether one has this level or more, or their number is unknown."""
        self._start += self._length
        self._length = batch.length
        return not self._length or self._count(batch.fresh, level)

    def numbers_of(self, passed: PassedBatch) -> Tensor:
        """Return the numbers of the samples of the last batch, once it has passed, shape (n,)."""
        if not self._length:
            self._length = passed.num_samples()
            self._count(passed.batch.fresh, 0)
        return self._numbers(passed.num_samples())

    def _count(self, fresh: Tensor | None, level: int) -> bool:
        levels = sample_levels(self._numbers(self._length))
        levels = levels if fresh is None or len(fresh) != len(levels) else levels[fresh.cpu()]
        self.of_levels += torch.bincount(levels, minlength=NUM_LEVELS)
        return bool((levels >= level).any())

    def _numbers(self, number: int) -> Tensor:
        return number_of_process() + num_processes() * torch.arange(self._start, self._start + number)
