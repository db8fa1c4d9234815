"""What the study found, in figures."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from examples.layers.tables import Tables, correlations, kinds_in, networks, with_networks
from examples.paper.statistics import interval

_SHOWN = (
    "ablate_path",
    "first order",
    "relative distance",
    "block influence",
    "relative speed, linear, 1",
    "relative speed, linear, 0.1",
    "relative speed, linear, 0.001",
    "kinetic energy, relu",
    "Taylor",
    "1 - CKA",
    "last",
    "random",
)
_CURVES = ("ablate_path, greedy", "first order", "relative distance", "block influence", "last", "random 1")


def rank_figure(tables: Tables) -> Figure:
    """Rank correlation of each score with the measured cost, a column a kind, with 95 % intervals."""
    found = correlations(tables)
    kinds = kinds_in(found)
    figure, axes = plt.subplots(1, len(kinds), figsize=(2.1 * len(kinds), 4.2), sharey=True, layout="constrained")
    for kind, axis in zip(kinds, [axes] if len(kinds) == 1 else axes, strict=True):
        for place, score in enumerate(reversed(_SHOWN)):
            mean, half = interval(found[(found["kind"] == kind) & (found["score"] == score)]["rho"].to_numpy())
            axis.errorbar(mean, place, xerr=0 if half != half else half, fmt="o", color="C0", markersize=4)
        axis.axvline(0, color="grey", linewidth=0.8)
        axis.set_xlim(-1.05, 1.05)
        axis.set_title(kind, fontsize="medium")
        axis.grid(alpha=0.3)
        axis.set_yticks(range(len(_SHOWN)), reversed(_SHOWN))
    figure.supxlabel("rank correlation with what removal costs")
    return figure


def curve_figure(tables: Tables) -> Figure:
    """Metric against the number of blocks removed, means over seeds, a panel a kind."""
    removals, whole = with_networks(tables, "removals"), networks(tables)
    kinds = kinds_in(removals)
    columns = min(3, len(kinds))
    rows = -(-len(kinds) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.3 * columns, 2.6 * rows), squeeze=False, layout="constrained")
    for kind, axis in zip(kinds, axes.flat, strict=False):
        for way in _CURVES:
            part = removals[(removals["kind"] == kind) & (removals["way"] == way)]
            means = {0: whole[whole["kind"] == kind]["metric"].mean(), **part.groupby("removed")["metric"].mean()}
            axis.plot(list(means), list(means.values()), marker="o", markersize=3, label=way.replace(" 1", ""))
        axis.set_title(kind, fontsize="medium")
        axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize="x-small")
    figure.supxlabel("blocks removed")
    figure.supylabel("metric (accuracy, or share explained)")
    return figure


def all_figures(tables: Tables) -> dict[str, Figure]:
    """Every figure by name."""
    return {"ranks": rank_figure(tables), "curves": curve_figure(tables)}
