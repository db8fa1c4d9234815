"""What all figures share."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, for all colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#000000", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Paul Tol's muted scheme, likewise.
CLASS_COLOURS = (
    "#332288", "#88CCEE", "#117733", "#CC6677", "#DDCC77", "#AA4499", "#44AA99", "#999933", "#882255", "#BBBBBB",
)  # fmt: skip
SEQUENTIAL = "cividis"


def new_figure(width: float = 6.4, height: float = 4.0) -> Figure:
    """Return an empty figure of a size in inches, or raise ModuleNotFoundError."""
    try:
        # Not pyplot: no global state, no window, no backend, nothing to close.
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Figures need matplotlib: pip install 'lightning-leaky[plot]'.") from error
    return Figure(figsize=(width, height), layout="constrained")


def pixels(figure: Figure, dpi: int = 150) -> Tensor:
    """Return a figure as a uint8 image, shape (height, width, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    width, height = canvas.get_width_height()
    buffer = bytearray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return torch.frombuffer(buffer, dtype=torch.uint8).reshape(height, width, 4)[..., :3]


def svg(figure: Figure) -> str:
    """Return a figure as an SVG element for a page; text stays text."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    # The declaration belongs to a file.
    return "<svg" + buffer.getvalue().split("<svg", maxsplit=1)[1]


class Limits:
    """Limits of axes and colours that only grow, so that pictures of a run can be compared.

    Attributes:
        known: The widest limits so far, by figure and axis: x, y or colours.
    """

    def __init__(self, known: Mapping[str, tuple[float, float]] | None = None) -> None:
        self.known: dict[str, tuple[float, float]] = dict(known or {})

    def widen(self, name: str, axes: Axes) -> None:
        """Give axes and colours the widest limits so far."""
        x, y = self._widest(f"{name}, x", axes.get_xlim()), self._widest(f"{name}, y", axes.get_ylim())
        axes.set(xlim=x, ylim=y)
        for drawn in axes.collections:
            if drawn.get_array() is not None:
                drawn.set_clim(*self._widest(f"{name}, colours", drawn.get_clim()))

    def _widest(self, name: str, present: tuple[float, float]) -> tuple[float, float]:
        low, high = self.known.get(name, present)
        self.known[name] = (float(min(low, present[0])), float(max(high, present[1])))
        return self.known[name]
