"""What the studies found, in a figure."""

from __future__ import annotations

from matplotlib.figure import Figure

from examples.adapting.schemes import EQUIDISTANT
from examples.adapting.tables import Tables, schemes_in, with_runs
from examples.paper.drawing import draw_means, label_panels, legend_below, panels
from lightning_leaky.plotting.style import COLOURS


def curve_figure(tables: Tables) -> Figure:
    """The loss less that of equidistant steps of the same seed, against the share of the steps, a panel a kind."""
    curves = with_runs(tables, "curves")
    kinds = list(dict.fromkeys(curves["kind"]))
    figure, axes = panels(min(2, len(kinds)), rows=-(-len(kinds) // 2), width=4.6, height=3.0)
    for kind, ax in zip(kinds, axes, strict=False):
        of_kind = curves[curves["kind"] == kind]
        baseline = of_kind[of_kind["scheme"] == EQUIDISTANT]
        for index, scheme in enumerate(one for one in schemes_in(of_kind) if one != EQUIDISTANT):
            pairs = of_kind[of_kind["scheme"] == scheme].merge(baseline, on=["seed", "step"], suffixes=("", " then"))
            pairs["difference"] = pairs["loss"] - pairs["loss then"]
            line = "-" if index < len(COLOURS) else "--"
            draw_means(ax, pairs, "share", "difference", scheme, index, linestyle=line, markersize=0)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_xlabel("share of the steps")
        ax.set_ylabel("loss − that of equidistant steps")
    label_panels(axes, kinds)
    legend_below(figure, axes[: len(kinds)])
    return figure


def all_figures(tables: Tables) -> dict[str, Figure]:
    """Every figure by name."""
    return {"curves": curve_figure(tables)} if "curves" in tables else {}
