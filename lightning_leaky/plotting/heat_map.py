"""Heat maps of layers over training, and the bounded record that they draw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_leaky.plotting.style import SEQUENTIAL, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Scale: TypeAlias = Literal["linear", "log"]

# Grey, not in the scale.
_BELOW = "0.85"


def plot_heat_map(values: Tensor, steps: Tensor, label: str, title: str = "", scale: Scale = "linear") -> Figure:
    """Draw a quantity of every layer (upwards) over training.

    Args:
        values: Shape (T, L); entries that are not finite stay empty.
        steps: Increasing optimizer steps, shape (T,). Columns reach to the next step; the last is as wide as the one
            before.
        label: What the colours mean, with its unit.
        title: Title of the figure.
        scale: Scale of the colours; values up to 0 are grey on a logarithmic one.

    Raises:
        ValueError: If the shapes do not fit or are empty.

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
    shown, bound = values.detach().to("cpu", torch.float64), 0.0 if scale == "log" else -torch.inf
    above = shown[torch.isfinite(shown) & (shown > bound)]
    least, most = (float(above.min()), float(above.max())) if above.numel() else (1.0, 1.0)
    # Below the scale, where it is grey.
    shown = torch.where(torch.isfinite(shown) & (shown <= bound), least / 10, shown)
    layers = torch.arange(shown.shape[1] + 1) + 0.5
    edges = steps.detach().to("cpu", torch.float64)
    last = edges[-1:] - edges[-2:-1] if len(edges) > 1 else 1.0
    edges = torch.cat([edges, edges[-1:] + last])
    colours = colormaps[SEQUENTIAL].with_extremes(under=_BELOW)
    mesh = axes.pcolormesh(edges.numpy(), layers.numpy(), shown.mT.numpy(), cmap=colours, norm=scale)
    mesh.set_clim(least, most)
    figure.colorbar(mesh, ax=axes, label=label)
    axes.set(xlabel="optimizer step", ylabel="layer", title=title)
    axes.locator_params(axis="y", integer=True)
    return figure


class History:
    """Rows of one number per layer by step; it drops every second row once they are too many to draw."""

    def __init__(self, most: int = 256) -> None:
        self.most = most
        self._steps: list[int] = []
        self._rows: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: int, values: Tensor) -> None:
        """Add a row, shape (L,); L may change."""
        if len(self) >= self.most:
            self._steps, self._rows = self._steps[::2], self._rows[::2]
        self._steps.append(step)
        self._rows.append(values.detach().to("cpu", torch.float64).clone())

    def table(self) -> tuple[Tensor, Tensor]:
        """Return steps, shape (T,), and rows, shape (T, L), padded with NaN."""
        rows = self._rows or [torch.zeros(0)]
        table = pad_sequence(rows, batch_first=True, padding_value=torch.nan)[: len(self)]
        return torch.tensor(self._steps, dtype=torch.int64), table

    def state_dict(self) -> dict[str, Any]:
        """Return plain tensors."""
        steps, rows = self.table()
        return {"steps": steps, "rows": rows}

    @classmethod
    def of(cls, state: dict[str, Any]) -> History:
        """Return the history of a state."""
        history = cls()
        for step, row in zip(state["steps"].tolist(), state["rows"], strict=True):
            history.add(step, row)
        return history
