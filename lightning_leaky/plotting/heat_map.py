"""A quantity of every layer over training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_leaky.plotting.style import SEQUENTIAL, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Where the greatest value is so many times the least, a linear scale shows the greatest only.
_LOGARITHMIC = 30.0


def plot_heat_map(values: Tensor, steps: Tensor, label: str, title: str = "") -> Figure:
    """Draw a quantity of every layer (upwards) over training (to the right).

    The colours are logarithmic where all values are positive and the greatest is 30 times the least or more.

    Args:
        values: Shape (T, L); what is not finite stays empty.
        steps: Optimizer steps at which they were read, increasing, shape (T,). Each column reaches to the next step.
        label: What the colours mean, with its unit.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        ModuleNotFoundError: If matplotlib is missing.
        ValueError: If the shapes do not fit, or there is nothing to draw.

    Example:
        >>> figure = plot_heat_map(torch.rand(5, 3), torch.arange(5), "cost of identity")
        >>> figure.axes[0].get_xlabel()
        'optimizer step'
    """
    if values.ndim != 2 or values.shape[:1] != steps.shape or not values.numel():
        raise ValueError(
            f"`values` must have shape (T, L) and `steps` (T,), got {tuple(values.shape)} and {tuple(steps.shape)}."
        )
    wide = values.detach().to("cpu", torch.float64)
    figure = new_figure()
    axes = figure.add_subplot()
    layers = torch.arange(wide.shape[1] + 1) + 0.5
    mesh = axes.pcolormesh(_edges(steps).numpy(), layers.numpy(), wide.mT.numpy(), cmap=SEQUENTIAL, norm=_scale(wide))
    figure.colorbar(mesh, ax=axes, label=label)
    axes.set(xlabel="optimizer step", ylabel="layer", title=title)
    axes.locator_params(axis="y", integer=True)
    return figure


def _scale(values: Tensor) -> str:
    finite = values[torch.isfinite(values)]
    is_wide = bool(finite.numel()) and bool((finite > 0).all()) and float(finite.max() / finite.min()) >= _LOGARITHMIC
    return "log" if is_wide else "linear"


def _edges(steps: Tensor) -> Tensor:
    """Where each column begins, and where the last one ends: it is as long as the one before."""
    found = steps.detach().to("cpu", torch.float64)
    last = found[-1] - found[-2] if len(found) > 1 else torch.ones(())
    return torch.cat([found, (found[-1] + last)[None]])
