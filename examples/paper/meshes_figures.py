"""Figures and tables of the step-size schemes: Fig. 2, paired differences, and the discrete–continuous gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.paper.drawing import colour, draw_means, label_panels, legend_below, panels
from examples.paper.statistics import LARGEST_RESIDUAL, interval, paired
from examples.paper.study import RUNS

Tables = Mapping[str, pd.DataFrame]

NAMES = {
    "equidistant": "equidistant",
    "irregular": "irregular",
    "relative_distance": "adaptive, the paper's",
    "switches": "adaptive, switches (ours)",
    "doubled": "equidistant, twice the layers",
}
# Layers, so that intervals do not hide one another.
_APART = 0.25
_ON = ["seed", "effective_depth", "weight_decay", "num_layers"]


def figures(tables: Tables) -> dict[str, Figure]:
    """All figures by name, of the runs without a bound."""
    tables = {**tables, RUNS: _without_bound(tables[RUNS])}
    runs = tables[RUNS]
    return {
        "fig2a_test_error": _grid(runs.assign(error=100 * runs["test_error"]), "error", "test error (% of variance)"),
        "fig2a_differences": _differences_drawn(runs),
        "fig2a_spread": _spread_drawn(runs),
        "fig2b_spectra": _spectra(tables),
        "fig2c_paths": _paths(tables),
        "continuous_gap": _grid(runs, "last_error_constant", "‖A_L − A(1)‖ / ‖A(1)‖", log=True),
    }


def _differences_drawn(runs: pd.DataFrame) -> Figure:
    """Test errors less that of equidistant steps with the same seed, in per cent of it."""
    equidistant = runs[runs["scheme"] == "equidistant"]
    others = pd.concat([runs[runs["scheme"] != "equidistant"], _doubled(equidistant).assign(scheme="doubled")])
    pairs = others.merge(equidistant, on=_ON, suffixes=("", "_equidistant"))
    pairs["difference"] = 100 * (pairs["test_error"] / pairs["test_error_equidistant"] - 1)
    figure = _grid(pairs, "difference", "test error, less equidistant (%)")
    for ax in figure.axes:
        ax.axhline(0, color="grey", linewidth=1)
    return figure


def _spread_drawn(runs: pd.DataFrame) -> Figure:
    """The spread of H; a panel says where the nets are too far from an optimum for it to judge a mesh."""
    figure = _grid(runs, "spread", "spread of H over the layers", log=True)
    residuals = runs.groupby(["effective_depth", "weight_decay"])["criticality_residual"].median()
    for ax, residual in zip(figure.axes, residuals, strict=True):
        if residual > LARGEST_RESIDUAL:
            ax.set_title(f"{ax.get_title('left')} (residual above {LARGEST_RESIDUAL:g})", loc="left", fontsize="medium")
            ax.set_facecolor("0.93")
    return figure


def _doubled(equidistant: pd.DataFrame) -> pd.DataFrame:
    """Runs with twice the layers, at the number of layers that they are compared with."""
    return equidistant.assign(num_layers=equidistant["num_layers"] // 2)


def _grid(runs: pd.DataFrame, value: str, label: str, log: bool = False) -> Figure:
    """A value against L, a panel for each L̃ and λ in that order, a line for each scheme."""
    depths, decays = sorted(runs["effective_depth"].unique()), sorted(runs["weight_decay"].unique())
    figure, axes = panels(len(decays), len(depths), width=3.8, height=3.0, sharex=True)
    places = [(depth, decay) for depth in depths for decay in decays]
    for ax, (depth, decay) in zip(axes, places, strict=True):
        of_panel = runs[(runs["effective_depth"] == depth) & (runs["weight_decay"] == decay)]
        for index, (scheme, name) in enumerate(NAMES.items()):
            of_scheme = of_panel[of_panel["scheme"] == scheme]
            if len(of_scheme):
                beside = of_scheme.assign(num_layers=of_scheme["num_layers"] + _APART * (index - 2))
                draw_means(ax, beside, "num_layers", value, name, index, log)
        ax.set(xticks=sorted(runs["num_layers"].unique()), yscale="log" if log else "linear")
    for ax in axes[-len(decays) :]:
        ax.set_xlabel("layers L")
    for ax in axes[:: len(decays)]:
        ax.set_ylabel(label)
    legend_below(figure, axes[:1])
    label_panels(axes, [f"L̃ = {depth:g}, λ = {decay:g}" for depth, decay in places])
    return figure


def _shown(tables: Tables) -> pd.DataFrame:
    """Runs of the first seed at L̃ = 3 and the middle L and λ, as in the paper's pictures."""
    runs = tables[RUNS]
    depths = sorted(runs["effective_depth"].unique())
    depth = 3.0 if 3.0 in depths else depths[0]
    middle = {name: sorted(runs[name].unique()) for name in ("num_layers", "weight_decay")}
    chosen = runs[(runs["seed"] == runs["seed"].min()) & (runs["effective_depth"] == depth)]
    for name, values in middle.items():
        chosen = chosen[chosen[name] == values[len(values) // 2]]
    return chosen


def _spectra(tables: Tables) -> Figure:
    shown = _shown(tables)
    figure, axes = panels(len(shown), 2, sharex=True)
    for column, (_, run) in enumerate(shown.iterrows()):
        of_run = tables["spectra"][tables["spectra"]["run"] == run["run"]]
        rho = tables["layers"][tables["layers"]["run"] == run["run"]]["step_size"].to_numpy()
        ends = np.concatenate([[0.0], rho.cumsum()])
        for row, name in enumerate(("A", "W")):
            ax = axes[row * len(shown) + column]
            table = of_run[of_run["matrix"] == name].pivot_table(index="layer", columns="index", values="value")
            for number in table.columns:
                label, index = ("the first three singular values", 0) if number <= 3 else ("the others", 6)
                places = ends if name == "A" else ends[:-1]
                ax.plot(places, table[number], marker=".", color=colour(index), label=label)
            style: dict[str, Any] = {"markersize": 9, "color": "black", "transform": ax.get_xaxis_transform()}
            ax.plot(ends, [0] * len(ends), "|", label="where a layer ends", **style)
            ax.set(yscale="log", ylabel=f"singular values of {name}")
            if row == 1:
                ax.set_xlabel("position p")
    legend_below(figure, axes[:1])
    label_panels(axes, [f"{name}, {NAMES[scheme]}" for name in ("A", "W") for scheme in shown["scheme"]])
    return figure


def _paths(tables: Tables) -> Figure:
    shown = _shown(tables)
    figure, axes = panels(len(shown))
    for ax, (_, run) in zip(axes, shown.iterrows(), strict=True):
        _draw_paths(ax, tables["paths"][tables["paths"]["run"] == run["run"]])
    legend_below(figure, axes[:1])
    label_panels(axes, [NAMES[scheme] for scheme in shown["scheme"]])
    return figure


def _draw_paths(ax: Axes, paths: pd.DataFrame) -> None:
    for sample, points in paths.groupby("sample"):
        ax.plot(points["x"], points["y"], marker=".", markersize=3, linewidth=0.7, color=colour(int(sample)))
    ends = paths[paths["layer"] == paths["layer"].max()]
    ax.plot(ends["x"], ends["y"], "k.", markersize=5, label="at the end, p = 1")
    ax.set(xlabel="first direction of the path", ylabel="second direction")


def tables_for_readers(tables: Tables) -> dict[str, pd.DataFrame]:
    """Errors; paired differences from equidistant steps, as many and twice as many, and between the rules; gaps."""
    runs = _without_bound(tables[RUNS])
    bounded = tables[RUNS][tables[RUNS]["max_leak"] > 0]
    equidistant = _of_scheme(runs, "equidistant")
    # Equidistant steps keep the bound by themselves, L being above L̃ there.
    beside = equidistant.merge(bounded[_ON].drop_duplicates(), on=_ON)
    return {
        "schemes_same_layers": _differences(runs[runs["scheme"] != "equidistant"], equidistant),
        "schemes_half_the_layers": _differences(runs, _doubled(equidistant)),
        "rules": _differences(_of_scheme(runs, "switches"), _of_scheme(runs, "relative_distance")),
        "test_errors": _means(runs),
        "goal": _goal(runs),
        "gap": _gaps(runs, "last_error_constant"),
        "gap_linear": _gaps(runs, "last_error_linear"),
        "gap_largest": _gaps(runs, "largest_error_constant"),
        "bounded": _differences(bounded, equidistant),
        "bounded_half_the_layers": _differences(pd.concat([beside, bounded]), _doubled(equidistant)),
        "bounded_rules": _differences(_of_scheme(bounded, "switches"), _of_scheme(bounded, "relative_distance")),
        "bounded_against_unbounded": _differences(bounded, runs, [*_ON, "scheme"]),
    }


def _of_scheme(runs: pd.DataFrame, scheme: str) -> pd.DataFrame:
    return runs[runs["scheme"] == scheme]


def _without_bound(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[runs["max_leak"] == 0]


def _differences(runs: pd.DataFrame, against: pd.DataFrame, on: Sequence[str] = _ON) -> pd.DataFrame:
    rows = []
    for (depth, decay, num_layers, scheme), group in runs.groupby(
        ["effective_depth", "weight_decay", "num_layers", "scheme"]
    ):
        row = {"L̃": depth, "λ": decay, "L": num_layers, "scheme": NAMES[scheme]}
        for value, unit, label in (("test_error", 1e-4, "Δ test error (1e-4)"), ("spread", 1.0, "Δ spread of H")):
            row["n"], mean, half = paired(group, against, on, value)
            row[label] = f"{mean / unit:+.1f} ± {half / unit:.1f}"
        if row["n"]:
            rows.append(row)
    return pd.DataFrame(rows)


def _goal(runs: pd.DataFrame) -> pd.DataFrame:
    """By how much our rule and equidistant steps miss the goal: twice as many equidistant layers, at L̃ ≥ 3."""
    goals = _doubled(_of_scheme(runs, "equidistant"))
    values = (("test_error", 1e-4, "error (1e-4)"), ("spread", 1.0, "spread of H"))
    rows = []
    for (depth, num_layers, decay), group in runs[runs["effective_depth"] >= 3].groupby(
        ["effective_depth", "num_layers", "weight_decay"]
    ):
        row: dict[str, Any] = {"L̃": depth, "L": num_layers, "λ": decay}
        for (value, unit, label), scheme in product(values, ("switches", "equidistant")):
            row["n"], mean, half = paired(_of_scheme(group, scheme), goals, _ON, value)
            row[f"{label}, {scheme}"] = f"{mean / unit:+.1f} ± {half / unit:.1f}"
            if (value, scheme) == ("test_error", "switches"):
                goal = group.merge(goals, on=_ON, suffixes=("_ours", ""))["test_error"].mean()
                row["upper end, of the goal"] = f"{100 * (mean + half) / goal:+.1f} %"
        row["residual"] = f"{group['criticality_residual'].median():.2f}"
        if row["n"]:
            rows.append(row)
    return pd.DataFrame(rows)


def _means(runs: pd.DataFrame) -> pd.DataFrame:
    """Test errors in units of 1e-4."""
    rows = []
    for (depth, decay, num_layers), group in runs.groupby(["effective_depth", "weight_decay", "num_layers"]):
        row = {"L̃": depth, "λ": decay, "L": num_layers, "n": group["seed"].nunique()}
        for scheme, name in NAMES.items():
            errors = group.loc[group["scheme"] == scheme, "test_error"].to_numpy()
            if len(errors):
                row[name] = "{:.1f} ± {:.1f}".format(*interval(1e4 * errors))
        row["median residual"] = f"{group['criticality_residual'].median():.3f}"
        rows.append(row)
    return pd.DataFrame(rows)


def _gaps(runs: pd.DataFrame, value: str) -> pd.DataFrame:
    """Gaps to the continuous limit over those of equidistant steps, and how many of these have the same gap."""
    logs = runs.assign(log_gap=np.log(runs[value]))
    rows = []
    for (depth, decay), group in logs.groupby(["effective_depth", "weight_decay"]):
        equidistant = group[group["scheme"] == "equidistant"]
        curve = equidistant.groupby("num_layers")["log_gap"].mean()
        for (num_layers, scheme), found in group.groupby(["num_layers", "scheme"]):
            row = {"L̃": depth, "λ": decay, "L": num_layers, "scheme": NAMES[scheme], "gap": found["log_gap"].mean()}
            if scheme != "equidistant":
                row["n"], mean, half = paired(found, equidistant, _ON, "log_gap")
                row["of equidistant"] = f"{np.exp(mean):.2f} ({np.exp(mean - half):.2f}–{np.exp(mean + half):.2f})"
                row["as so many equidistant layers"] = layers_of(curve, row["gap"])
            rows.append({**row, "gap": f"{np.exp(row['gap']):.3g}"})
    return pd.DataFrame(rows).fillna("")


def layers_of(curve: pd.Series[float], log_gap: float) -> str:
    """Where a curve over L has a gap, linearly in the logarithms of both; only bounds outside of what was measured."""
    falling = -curve.cummin()
    least, most = falling.index[0], falling.index[-1]
    if not falling.iloc[0] <= -log_gap <= falling.iloc[-1]:
        return f"< {least}" if -log_gap < falling.iloc[0] else f"> {most}"
    return f"{np.exp(np.interp(-log_gap, falling, np.log(falling.index))):.1f}"
