"""Numbers and counts of the samples of a data set."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_leaky.metrics.layer_store import NUM_LEVELS
from lightning_leaky.reading.passed_batch import Batch, PassedBatch
from lightning_leaky.reading.thinning import sample_levels
from lightning_leaky.utilities.data_parallel import DataParallelRank, Standing, probe
from lightning_leaky.utilities.processes import meeting_place


class SampleCount:
    """Numbers the samples of a data set before a batch passes, and counts them by `sample_levels`.

    The k-th sample of data-parallel rank r of W is number r + kW, as in distributed samplers.

    Attributes:
        of_levels: Samples of each level, all and those that have rows, shape (2, `NUM_LEVELS`).
    """

    def __init__(self, data_parallel: DataParallelRank | None = None) -> None:
        self._data_parallel = data_parallel
        self.reset()

    @property
    def data_parallel(self) -> DataParallelRank:
        """Which processes have the same samples; asked anew, because processes may join after this object is made."""
        return self._data_parallel or DataParallelRank.own()

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
