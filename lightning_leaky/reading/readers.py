"""What accumulates a path."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_leaky.metrics.path_reader import PathReader
from lightning_leaky.metrics.recipe import Recipe
from lightning_leaky.reading.settings import ReadingSettings


def reader_of(
    settings: ReadingSettings, recipe: Recipe, widths: Sequence[tuple[int, int]]
) -> tuple[PathReader, str | None]:
    """Return a reader of segments, given by width and number of layers, and what to tell a user once.

    Raises:
        ValueError: If fewer rows are to be read than there are features.
    """
    # Gradients need whole batches.
    most = None if recipe.has_gradients else settings.most_rows(max(width for width, _ in widths))
    reader = PathReader(widths, recipe, settings.form, settings.halves, most)
    if reader.form != "samples" or most is not None:
        return reader, None
    size = reader.moments_in_bytes / 2**30
    return reader, f"The samples themselves are kept, in the N × N form: second moments would take {size:.2f} GiB."
