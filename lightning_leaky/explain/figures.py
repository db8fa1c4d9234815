"""Figures for TensorBoard and reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from lightning_leaky.functional.projection import path_projection
from lightning_leaky.functional.spectrum import singular_values
from lightning_leaky.metrics.readings import Readings
from lightning_leaky.metrics.records import records_at
from lightning_leaky.plotting import can_plot_energies, plot_energies, plot_paths, plot_singular_values
from lightning_leaky.reading.sample import PathSample


def figures_of(readings: Readings, samples: Sequence[PathSample]) -> Iterator[tuple[str, Any]]:
    """Figures by name; spectra and path are of the longest segment if it is finite."""
    shown = {name: readings[name] for name in records_at(readings.records.values(), readings.effective_depth)}
    if can_plot_energies(shown):
        yield "energies", plot_energies(shown, readings.positions)
    if not samples:
        return
    longest = max(samples, key=lambda sample: len(sample.representations))
    path, ends = longest.representations, readings.boundaries()[longest.segment]
    if len(ends) == len(path) and bool(torch.isfinite(path).all()):
        yield "singular_values_of_A", plot_singular_values(singular_values(path), ends, "A")
        yield "path", plot_paths(path_projection(path), longest.labels, "the way through the layers")
