"""A progress bar for long computations."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from operator import length_hint
from typing import Any

from lightning_leaky.utilities.processes import number_of_process


def watched(batches: Iterable[Any], most: int | None = None, title: str = "reading") -> Iterable[Any]:
    """At most so many batches behind a bar, which shows only in a terminal and on the first process."""
    from tqdm import tqdm

    lengths = filter(None, (length_hint(batches), most))  # a generator has none
    bar: Iterable[Any] = tqdm(
        islice(batches, most),
        title,
        total=min(lengths, default=None),
        disable=True if number_of_process() else None,  # None: only in a terminal
        leave=False,
    )
    return bar
