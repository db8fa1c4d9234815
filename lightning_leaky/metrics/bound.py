"""Bounds on the rows kept of a data set."""

from __future__ import annotations

from collections.abc import Sequence


def most_rows(max_rows: int | None, widths: Sequence[tuple[int, int]], memory: int) -> int | None:
    """Return how many rows to keep: `max_rows`, or as many as fit into `memory` bytes; ``None`` for all."""
    if max_rows is None:
        return None
    width = max(widths)[0]
    if max_rows <= width:
        raise ValueError(
            f"`max_rows` must be at least w + 1 = {width + 1}, got {max_rows!r}: fewer rows than features fit whatever "
            "they are. Raise it, leave it out, or say exact=True."
        )
    return min(max_rows, room_for_rows(widths, memory))


def room_for_rows(widths: Sequence[tuple[int, int]], memory: int) -> int:
    """Return how many rows of two float32 matrices per layer fit."""
    return max(1, memory // sum(8 * width * length for width, length in widths))
