"""A progress bar for long computations, where somebody watches."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from lightning_leaky.utilities.processes import number_of_process


def watched(batches: Iterable[Any], most: int | None = None) -> Iterable[Any]:
    """Batches behind a progress bar: in a terminal and on the first process only, so not in notebooks and logs.

    Args:
        batches: What to go through.
        most: Stop after so many; all by default.

    Example:
        >>> list(watched("abc", most=2))
        ['a', 'b']
    """
    from tqdm import tqdm

    length = _length(batches)
    total = most if length is None else min(length, most or length)
    bar: Iterable[Any] = tqdm(
        islice(batches, most),
        "reading",
        total,
        disable=True if number_of_process() else None,  # None: unless the output is no terminal
        leave=False,
    )
    return bar


def _length(batches: Any) -> int | None:
    try:
        return len(batches)
    except TypeError:  # a generator, or a loader of a stream
        return None
