"""Quantities over the position p of layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_leaky.plotting.style import COLOURS, SEQUENTIAL, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# More would hide the curves.
_MAX_LEGEND = 12
_ENERGY_LABELS = {
    "kinetic_energy": "kinetic energy",
    "potential_energy": "potential energy",
    "hamiltonian": "Hamiltonian, momentum form",
    "energy_hamiltonian": "Hamiltonian, energy form",
}


def plot_along_path(
    curves: Mapping[str, Tensor], positions: Tensor | None = None, ylabel: str | None = None, ax: Axes | None = None
) -> tuple[Figure | SubFigure, Axes]:
    """Draw a line per quantity over the position p of its layers.

    Args:
        curves: Quantities by name, shape (L,); entries that are not finite leave a gap.
        positions: p of each entry, shape (L,), shown as ticks; ``None`` for layer numbers.
        ylabel: Label of the vertical axis, with its unit.
        ax: Axes to draw on; ``None`` for a new figure.

    Example:
        >>> import torch
        >>> figure, axes = plot_along_path({"kinetic energy": torch.tensor([3.0, 1.0, 2.0])})
        >>> axes.get_xlabel()
        'layer'
    """
    ax = new_figure().add_subplot() if ax is None else ax
    for colour, (name, values) in zip(COLOURS * (1 + len(curves) // len(COLOURS)), curves.items(), strict=False):
        x = range(1, len(values) + 1) if positions is None else positions.tolist()
        ax.plot(x, values.tolist(), marker="o", markersize=4, color=colour, label=name)
    if positions is not None:
        ax.plot(positions.tolist(), [0] * len(positions), "|", color="grey", transform=ax.get_xaxis_transform())
    ax.set_xlabel("layer" if positions is None else "position p")
    if ylabel is not None:
        ax.set_ylabel(ylabel)
    ax.grid(alpha=0.3)
    if 1 < len(curves) <= _MAX_LEGEND:
        ax.legend(fontsize="small")
    return ax.figure, ax


def can_plot_energies(readings: Mapping[str, Tensor]) -> bool:
    """Whether `plot_energies` has something to draw."""
    return bool(_ENERGY_LABELS.keys() & set(readings))


def plot_energies(readings: Mapping[str, Tensor], positions: Tensor) -> Figure:
    """Draw kinetic energy, potential energy and Hamiltonian, as in Fig. 1c of arXiv 2405.17573.

    Args:
        readings: Quantities by name, shape (L,), with one of these at least.
        positions: p_{l−1} of each layer, shape (L,).

    Raises:
        ValueError: If none is present.

    Example:
        >>> import torch
        >>> figure = plot_energies({"kinetic_energy": torch.tensor([2.0, 1.0])}, torch.tensor([0.0, 0.5]))
    """
    curves = {label: readings[name] for name, label in _ENERGY_LABELS.items() if name in readings}
    if not curves:
        raise ValueError(f"`readings` must contain one of {list(_ENERGY_LABELS)}, got {sorted(readings)}.")
    figure = new_figure()
    ylabel = "energy" if len(curves) > 1 else next(iter(curves))
    _, axes = plot_along_path(curves, positions, ylabel=ylabel, ax=figure.add_subplot())
    legend = axes.get_legend()
    if legend is not None:  # four curves leave no corner free
        legend.remove()
        figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    # Energies at the ends are hundreds of times those of a bottleneck.
    axes.set_yscale("symlog", linthresh=10)
    axes.set_title("Energies along the path")
    return figure


def plot_singular_values(values: Tensor, positions: Tensor, name: str, most: int = 20) -> Figure:
    """Draw the largest singular values of A_p or W_p, as in Fig. 1b of arXiv 2405.17573.

    Those that stay while others fall are the dimensions of the bottleneck.

    Args:
        values: Largest first, shape (L, k); values below 1e-6 of the largest are left out.
        positions: p of each row, shape (L,), shown as ticks.
        name: ``"A"`` or ``"W"``.
        most: How many values to draw.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> figure = plot_singular_values(torch.tensor([[3.0, 1.0], [2.0, 0.1]]), torch.tensor([0.0, 0.5]), "A")
        >>> figure.axes[0].get_ylabel()
        'singular values of A'
    """
    if values.ndim != 2 or values.shape[:1] != positions.shape:
        raise ValueError(
            f"`values` must have shape (L, k) and `positions` (L,), got {tuple(values.shape)} and "
            f"{tuple(positions.shape)}."
        )
    figure = new_figure()  # or says what to install
    import matplotlib
    from matplotlib.ticker import LogFormatter

    axes = figure.add_subplot()
    shown = values[:, :most].detach().to("cpu", torch.float64)
    shown = torch.where(shown > 1e-6 * shown.nan_to_num().max(), shown, torch.nan)
    # The largest are darkest; the lightest shade would be lost on white.
    shades = matplotlib.colormaps[SEQUENTIAL]
    for index in reversed(range(shown.shape[1])):
        colour = shades(0.85 * index / max(1, shown.shape[1] - 1))
        axes.plot(positions.tolist(), shown[:, index].tolist(), ".-", color=colour, linewidth=1.2, markersize=4)
    axes.plot(positions.tolist(), [0] * len(positions), "|", color="grey", transform=axes.get_xaxis_transform())
    axes.set(xlabel="position p", ylabel=f"singular values of {name}", yscale="log")
    # By default 6 × 10¹ would be labelled.
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.0, 0.4)))
    axes.set_title(f"{shown.shape[1]} largest singular values of {name}")
    axes.grid(alpha=0.3)
    return figure
