"""What the figures of the studies share: their size, colours, and means with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.paper.statistics import geometric, summary
from lightning_leaky.plotting.style import COLOURS

plt.rcParams.update(
    {"svg.hashsalt": "lightning-leaky", "axes.grid": True, "grid.alpha": 0.3, "legend.fontsize": "small"}
)


def panels(
    columns: int, rows: int = 1, width: float = 4.2, height: float = 3.4, **kwargs: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of several panels, and these in order."""
    size = (width * columns, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **kwargs)
    plt.close(figure)  # it is saved, not shown
    return figure, list(axes.flat)


def draw_means(
    ax: Axes,
    table: pd.DataFrame,
    x: str,
    y: str,
    label: str | None = None,
    index: int = 0,
    log: bool = False,
    **style: Any,
) -> None:
    """Means of y at each x as a line, with bars for their 95 % intervals; geometric means for a logarithmic axis."""
    style = {"marker": "o", "markersize": 4, "capsize": 2, "label": label, "color": colour(index), **style}
    if log:
        found = geometric(table, [x], y)
        bars = [found["mean"] - found["low"], found["high"] - found["mean"]]
    else:
        found = summary(table, [x], y)
        bars = found["half"]
    ax.errorbar(found[x], found["mean"], bars, **style)


def draw_band(
    ax: Axes, table: pd.DataFrame, x: str, y: str, label: str | None, line_colour: str, style: str = "-"
) -> None:
    """Geometric means of y at each x as a line, and their 95 % intervals as a band behind a solid one."""
    if table.empty:  # of results that are not complete
        return
    found = geometric(table, [x], y)
    ax.plot(found[x], found["mean"], style, color=line_colour, label=label)
    if style == "-":
        ax.fill_between(found[x], found["low"], found["high"], color=line_colour, alpha=0.1, linewidth=0)


def legend_below(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all panels, below them, where it hides nothing."""
    entries = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=4)


def colour(index: int) -> str:
    """One of a palette that can be told apart with every kind of colour blindness."""
    return COLOURS[index % len(COLOURS)]


def label_panels(axes: Sequence[Axes], titles: Sequence[str]) -> None:
    """Letter the panels."""
    for letter, ax, title in zip("abcdefghijkl", axes, titles, strict=False):
        ax.set_title(f"{letter}  {title}", loc="left", fontsize="medium")
