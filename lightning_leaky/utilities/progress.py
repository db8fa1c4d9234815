"""A progress bar for long computations, where somebody watches."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from operator import length_hint
from typing import Any

from lightning_leaky.utilities.processes import number_of_process


def watched(batches: Iterable[Any], most: int | None = None, title: str = "reading") -> Iterable[Any]:
    """Batches, so many at most, behind a bar: in a terminal and on the first process, so not in notebooks and logs."""
    from tqdm import tqdm

    lengths = filter(None, (length_hint(batches), most))  # the length of a generator, or of a stream, is not known
    bar: Iterable[Any] = tqdm(
        islice(batches, most),
        title,
        total=min(lengths, default=None),
        disable=True if number_of_process() else None,  # None: unless the output is no terminal
        leave=False,
    )
    return bar
