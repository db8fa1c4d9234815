"""A quantity of every layer over training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from lightning_leaky.plotting.style import SEQUENTIAL, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Scale: TypeAlias = Literal["linear", "log"]

# Grey: of no colour of the scale.
_BELOW = "0.85"


def plot_heat_map(values: Tensor, steps: Tensor, label: str, title: str = "", scale: Scale = "linear") -> Figure:
    """Draw a quantity of every layer (upwards) over training (to the right).

    Args:
        values: Shape (T, L); what is not finite stays empty.
        steps: Optimizer steps at which they were read, increasing, shape (T,). Each column reaches to the next step.
        label: What the colours mean, with its unit.
        title: Title of the figure.
        scale: Of the colours; what is not above 0 is grey on a logarithmic one.

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
    figure = new_figure()
    from matplotlib import colormaps

    axes = figure.add_subplot()
    shown, limits = _above(values.detach().to("cpu", torch.float64), 0.0 if scale == "log" else -torch.inf)
    layers = torch.arange(shown.shape[1] + 1) + 0.5
    colours = colormaps[SEQUENTIAL].with_extremes(under=_BELOW)
    mesh = axes.pcolormesh(_edges(steps).numpy(), layers.numpy(), shown.mT.numpy(), cmap=colours, norm=scale)
    mesh.set_clim(*limits)
    figure.colorbar(mesh, ax=axes, label=label)
    axes.set(xlabel="optimizer step", ylabel="layer", title=title)
    axes.locator_params(axis="y", integer=True)
    return figure


def _above(values: Tensor, bound: float) -> tuple[Tensor, tuple[float, float]]:
    """Values with those at a bound or below it set below all others, and the range of these others."""
    above = values[torch.isfinite(values) & (values > bound)]
    least, most = (float(above.min()), float(above.max())) if above.numel() else (1.0, 1.0)
    return torch.where(torch.isfinite(values) & (values <= bound), least / 10, values), (least, most)


def _edges(steps: Tensor) -> Tensor:
    """Where each column begins, and where the last one ends: it is as long as the one before."""
    found = steps.detach().to("cpu", torch.float64)
    last = found[-1] - found[-2] if len(found) > 1 else torch.ones(())
    return torch.cat([found, (found[-1] + last)[None]])
