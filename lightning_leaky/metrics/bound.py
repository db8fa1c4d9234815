"""How many rows of a data set are kept."""

from __future__ import annotations

from collections.abc import Sequence


def most_rows(max_rows: int | None, widths: Sequence[tuple[int, int]], memory: int) -> int | None:
    """Return how many rows to keep: as many as asked for, or as fit; ``None`` for all.

    Args:
        max_rows: How many are asked for.
        widths: Widths and numbers of layers.
        memory: Bytes that rows may take.

    Raises:
        ValueError: If they are fewer than features.
    """
    if max_rows is None:
        return None
    width = max(width for width, _ in widths)
    if max_rows <= width:
        raise ValueError(
            f"`max_rows` must be at least w + 1 = {width + 1}, got {max_rows!r}: fewer rows than features fit whatever "
            "they are. Raise it, leave it out, or say exact=True."
        )
    return min(max_rows, room_for_rows(widths, memory))


def room_for_rows(widths: Sequence[tuple[int, int]], memory: int) -> int:
    """Return how many rows of two float32 matrices a layer fit."""
    return max(1, memory // sum(8 * width * length for width, length in widths))
