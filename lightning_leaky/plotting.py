"""Matplotlib figures from plain tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# Okabe and Ito's palette, distinguishable with every kind of colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#000000", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# More names than this hide the curves that they explain.
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
    """Draw quantities against the position p of their layers, one line each.

    Args:
        curves: Quantity by name, each of shape (L,); entries that are not finite leave a gap.
        positions: p of each entry, shape (L,), shown as ticks along the bottom; layer numbers where it is ``None``.
        ylabel: Label of the vertical axis, with its unit.
        ax: Axes to draw on; a new figure where it is ``None``.

    Returns:
        The figure and its axes.

    Raises:
        ModuleNotFoundError: If matplotlib is missing.

    Example:
        >>> import torch
        >>> figure, axes = plot_along_path({"kinetic energy": torch.tensor([3.0, 1.0, 2.0])})
        >>> axes.get_xlabel()
        'layer'
    """
    ax = _new_figure().add_subplot() if ax is None else ax
    for colour, (name, values) in zip(COLOURS * (1 + len(curves) // len(COLOURS)), curves.items(), strict=False):
        x = range(1, len(values) + 1) if positions is None else positions.cpu()
        ax.plot(x, values.detach().cpu(), marker="o", markersize=4, color=colour, label=name)
    if positions is not None:
        ax.plot(positions.cpu(), [0] * len(positions), "|", color="grey", transform=ax.get_xaxis_transform())
    ax.set_xlabel("layer" if positions is None else "position p")
    if ylabel is not None:
        ax.set_ylabel(ylabel)
    ax.grid(alpha=0.3)
    if 1 < len(curves) <= _MAX_LEGEND:
        ax.legend(fontsize="small")
    return ax.figure, ax


def plot_energies(readings: Mapping[str, Tensor], positions: Tensor) -> Figure:
    """Draw kinetic energy, potential energy and Hamiltonian along p, as in Fig. 1c of arXiv 2405.17573.

    Args:
        readings: Quantities by name, each of shape (L,); those of the three that are present are drawn.
        positions: p_{l−1}, where each layer is read, shape (L,).

    Returns:
        The figure.

    Raises:
        ModuleNotFoundError: If matplotlib is missing.
        ValueError: If none of the three is present.

    Example:
        >>> import torch
        >>> figure = plot_energies({"kinetic_energy": torch.tensor([2.0, 1.0])}, torch.tensor([0.0, 0.5]))
    """
    curves = {label: readings[name] for name, label in _ENERGY_LABELS.items() if name in readings}
    if not curves:
        raise ValueError(f"`readings` must contain one of {list(_ENERGY_LABELS)}, got {sorted(readings)}.")
    figure = _new_figure()
    _, axes = plot_along_path(curves, positions, ylabel="energy", ax=figure.add_subplot())
    # Energies at the ends are hundreds of times those of a bottleneck; linear up to 10, logarithmic beyond.
    axes.set_yscale("symlog", linthresh=10)
    axes.set_title("Energies along the path")
    return figure


def _new_figure() -> Figure:
    try:
        # Figure, not pyplot: no global state, no window, no backend to choose, nothing to close.
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Figures need matplotlib: pip install 'lightning-leaky[plot]'.") from error
    return Figure(figsize=(6.4, 4.0), layout="constrained")
