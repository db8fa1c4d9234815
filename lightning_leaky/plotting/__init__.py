"""Matplotlib figures of tensors; if matplotlib is missing, ModuleNotFoundError names the extra."""

from lightning_leaky.plotting.along_path import can_plot_energies, plot_along_path, plot_energies, plot_singular_values
from lightning_leaky.plotting.heat_map import Scale, plot_heat_map
from lightning_leaky.plotting.paths import plot_paths
from lightning_leaky.plotting.style import Limits, pixels, svg

__all__ = [
    "Limits",
    "Scale",
    "can_plot_energies",
    "pixels",
    "plot_along_path",
    "plot_energies",
    "plot_heat_map",
    "plot_paths",
    "plot_singular_values",
    "svg",
]
