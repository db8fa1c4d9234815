"""Figures and tables of the convergence study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.paper.drawing import colour, draw_band, label_panels, panels
from examples.paper.statistics import interval, summary
from examples.paper.study import RUNS

KEY = ["effective_depth", "batch_size", "seed"]
"""What a run shares with the run without adaptation that it is compared with."""
SCHEME = ["damping", "every_n_steps"]
PLACE = ["batch_size", "every_n_steps", "damping"]
"""What the panels of the bound are laid out by."""
SMALL = 0.1
"""A distance to the fixed point that is small: neighbouring layers' relative steps differ by some 10 %."""
LATE = 150
"""From this adaptation on nothing is left in the frozen iteration but the noise of batches."""


def figures(tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Distance over training for every L̃, the frozen iteration, and what the bound does."""
    runs = _trained(tables)
    columns = ["run", "scheme", "max_leak", "num_steps", *KEY, *SCHEME]
    iterates = tables["iterates"].merge(runs[columns], on="run")
    frozen = tables["frozen"].merge(runs[["run", "effective_depth"]], on="run")
    over_training = {
        f"distance_{depth:g}": _draw_training(of_depth) for depth, of_depth in iterates.groupby("effective_depth")
    }
    return {**over_training, "frozen": _draw_frozen(frozen), "bound": _draw_bound(runs)}


def _draw_training(iterates: pd.DataFrame) -> Figure:
    """Rows: all points or batches; columns: periods; colours: damping."""
    sizes, (dampings, periods) = _values(iterates, "batch_size"), _schemes(iterates)
    figure, axes = panels(len(periods), len(sizes), sharex=True, sharey=True)
    stop = 0.7 * iterates["num_steps"].max()
    for ax, (size, period) in zip(axes, product(sizes, periods), strict=True):
        here = iterates[(iterates["batch_size"] == size) & (iterates["max_leak"] == 0)]
        draw_band(ax, here[here["scheme"] == "equidistant"], "step", "distance", "no adaptation", "grey")
        adapted = here[(here["scheme"] != "equidistant") & (here["every_n_steps"] == period)]
        for index, damping in enumerate(dampings):
            of_damping = adapted[adapted["damping"] == damping]
            draw_band(ax, of_damping, "step", "distance", f"damping {damping:g}", colour(index))
        ax.axvline(stop, color="grey", linewidth=0.8, linestyle=":")
        ax.set(xscale="log", yscale="log", ylim=(1e-5, 3))
    _label_outside(axes, len(periods), "training step", "distance to the fixed point")
    label_panels(axes, [f"{_batches_of(size)}, every {_steps(period)}" for size, period in product(sizes, periods)])
    _legend_beside(figure, axes)
    return figure


def _draw_frozen(frozen: pd.DataFrame) -> Figure:
    depths, names = _values(frozen, "effective_depth"), ("weights", "path")
    dampings, sizes = _values(frozen, "damping"), _values(frozen, "batch_size")
    places = list(product(depths, names))
    figure, axes = panels(len(names), len(depths), sharex=True, sharey=True)
    for ax, (depth, name) in zip(axes, places, strict=True):
        here = frozen[(frozen["effective_depth"] == depth) & (frozen["frozen"] == name)]
        for (index, damping), size in product(enumerate(dampings), sizes):
            rows = here[(here["damping"] == damping) & (here["batch_size"] == size)]
            label = None if size else f"damping {damping:g}"
            draw_band(ax, rows, "iteration", "distance", label, colour(index), "--" if size else "-")
        ax.set(yscale="log", xlim=(-1, 61), ylim=(1e-6, None))
    _label_outside(axes, len(names), "adaptations", "distance to the fixed point")
    label_panels(axes, [f"frozen {name}, L̃ = {depth:g}" for depth, name in places])
    axes[0].plot([], [], "--", color="grey", label="each sees 100 points")
    _legend_beside(figure, axes)
    return figure


def _draw_bound(runs: pd.DataFrame) -> Figure:
    """What the bound changes, at every damping, period and size of batches where both were run."""
    quantities = {
        "share_at_bound": "share of adaptations\nafter which some ρL̃ ≥ 1",
        "final_distance": "final distance\nto the fixed point",
        "test_ratio": "test error\n/ without adaptation",
        "spread_ratio": "spread of H\n/ without adaptation",
    }
    compared = _guarded(_beside_equidistant(runs))
    depths = _values(compared, "effective_depth")
    figure, axes = panels(len(quantities), len(depths), width=2.8, sharex="col", sharey=True)
    places = list(product(*(_values(compared, column) for column in PLACE)))
    for ax, (depth, quantity) in zip(axes, product(depths, quantities), strict=True):
        for index, bound in enumerate((0.0, 1.0)):
            here = compared[(compared["effective_depth"] == depth) & (compared["max_leak"] == bound)]
            if here.empty:  # of results that are not complete
                continue
            found = summary(here, PLACE, quantity)
            y = [places.index(place) + 0.2 * index - 0.1 for place in found[PLACE].itertuples(index=False, name=None)]
            label = "bound ρL̃ ≤ 1" if bound else "no bound"
            style: dict[str, Any] = {"fmt": "o", "markersize": 4, "capsize": 2, "color": colour(index), "label": label}
            ax.errorbar(found["mean"], y, xerr=found["half"], **style)
    labels = [f"{_batches_of(size)}, every {_steps(period)}, damping {damping:g}" for size, period, damping in places]
    axes[0].set_yticks(range(len(places)), labels, fontsize="small")
    axes[0].invert_yaxis()
    for ax, text in zip(axes[-len(quantities) :], quantities.values(), strict=True):
        ax.set_xlabel(text)
    label_panels(axes, [f"L̃ = {depth:g}" for depth, _ in product(depths, quantities)])
    _legend_beside(figure, axes)
    return figure


def _legend_beside(figure: Figure, axes: Sequence[Axes]) -> None:
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")


def _label_outside(axes: Sequence[Axes], columns: int, xlabel: str, ylabel: str) -> None:
    for ax in axes[-columns:]:
        ax.set_xlabel(xlabel)
    for ax in axes[::columns]:
        ax.set_ylabel(ylabel)


def _batches_of(size: float) -> str:
    return f"batches of {size:g}" if size else "all points"


def _steps(period: float) -> str:
    return "step" if period == 1 else f"{period:g} steps"


# Tables.


def tables(found: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """What a reader wants as numbers: means over seeds, ± half of their 95 % intervals where there are enough."""
    runs = _trained(found)
    compared = _beside_equidistant(_with_steps(runs, found["iterates"]))
    frozen = found["frozen"].merge(runs[["run", "effective_depth"]], on="run")
    eigenvalues = found["eigenvalues"].merge(runs[["run", "effective_depth"]], on="run")
    return {
        "training": _mean_table(
            compared[compared["max_leak"] == 0],
            ["effective_depth", *PLACE],
            ["steps_to_small", "distance_at_stop", "final_distance", "test_ratio", "spread_ratio"],
        ),
        "guards": _mean_table(
            _guarded(compared),
            ["effective_depth", *PLACE, "max_leak"],
            ["adaptations", "share_at_bound", "refused", "final_distance", "val_ratio", "test_ratio", "spread_ratio"],
        ),
        "rates": _table_of_rates(frozen, eigenvalues),
        "overhead": _table_of_overhead(found),
    }


def _mean_table(runs: pd.DataFrame, by: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    rows = []
    for key, group in runs.groupby(list(by), sort=True):
        means = {value: _with_half(*interval(group[value].to_numpy())) for value in values}
        rows.append({**dict(zip(by, key, strict=True)), "n": len(group), **means})
    return pd.DataFrame(rows)


def _with_half(mean: float, half: float) -> str:
    return f"{mean:.3g}" if half == 0 or np.isnan(half) else f"{mean:.3g} ± {half:.1g}"


def _table_of_rates(frozen: pd.DataFrame, eigenvalues: pd.DataFrame) -> pd.DataFrame:
    """What the eigenvalues say about the frozen iteration, what it did, and the floor that batches leave."""
    rows = []
    for (depth, name, damping), group in frozen.groupby(["effective_depth", "frozen", "damping"], sort=True):
        here = eigenvalues[(eigenvalues["effective_depth"] == depth) & (eigenvalues["frozen"] == name)]
        expected = [_slowest(of_run, damping) for _, of_run in here.groupby("run")]
        seen = [_factor(of_run) for _, of_run in group[group["batch_size"] == 0].groupby("run")]
        late = group[(group["batch_size"] > 0) & (group["iteration"] >= LATE)]
        rows.append(
            {
                "frozen": name,
                "effective_depth": depth,
                "damping": damping,
                "n": len(seen),
                "expected factor": _with_half(*interval(expected)),
                "factor": _with_half(*interval(seen)),
                "floor of batches": late["distance"].mean(),
            }
        )
    return pd.DataFrame(rows)


def _slowest(eigenvalues: pd.DataFrame, damping: float) -> float:
    """Largest ``|1 − η + ημ|``: by what the slowest part of an error shrinks an adaptation."""
    values = eigenvalues["real"].to_numpy() + 1j * eigenvalues["imaginary"].to_numpy()
    return float(np.abs(1 - damping + damping * values).max())


def _factor(iterates: pd.DataFrame) -> float:
    """By what the distance shrank an adaptation, once the map is nearly linear and before it is all rounding."""
    linear = iterates[(iterates["distance"] < SMALL) & (iterates["distance"] > 1e-10)].sort_values("iteration")
    if len(linear) < 2:
        return float("nan")
    first, last = linear.iloc[0], linear.iloc[-1]
    return float((last["distance"] / first["distance"]) ** (1 / (last["iteration"] - first["iteration"])))


def _table_of_overhead(found: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    table = found["overhead"].merge(found[RUNS][["run", "batch_size"]], on="run")
    return table[["batch_size", *[column for column in table if column not in ("run", "batch_size")]]]


# What figures and tables share.


def _trained(found: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    runs = found[RUNS]
    return runs[runs["what"] == "convergence"]


def _beside_equidistant(runs: pd.DataFrame) -> pd.DataFrame:
    """Adaptive runs, with their errors over those of the same seed without adaptation."""
    without = runs[runs["scheme"] == "equidistant"]
    pairs = runs[runs["scheme"] != "equidistant"].merge(without, on=KEY, suffixes=("", "_without"))
    ratios = {
        f"{name}_ratio": pairs[column] / pairs[f"{column}_without"]
        for name, column in (("val", "val_error"), ("test", "test_error"), ("spread", "spread"))
    }
    return pairs.assign(share_at_bound=pairs["at_bound"] / pairs["adaptations"], **ratios)


def _guarded(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs of the dampings and periods that were run both without and with the bound."""
    bounded = runs.loc[runs["max_leak"] > 0, SCHEME].drop_duplicates()
    return runs.merge(bounded, on=SCHEME)


def _with_steps(runs: pd.DataFrame, iterates: pd.DataFrame) -> pd.DataFrame:
    """Runs, with the first recorded step from which on the distance stayed small while adapting; NaN if it did not."""
    stops = iterates["run"].map(runs.set_index("run")["stop"])
    adapting = iterates[iterates["step"] <= stops]
    large = adapting[adapting["distance"] >= SMALL].groupby("run")["step"].max()
    after = {
        run: of_run.loc[of_run["step"] > large.get(run, 0), "step"].min() for run, of_run in adapting.groupby("run")
    }
    return runs.assign(steps_to_small=runs["run"].map(after))


def _values(table: pd.DataFrame, column: str) -> list[float]:
    return sorted(table[column].unique().tolist())


def _schemes(table: pd.DataFrame) -> tuple[list[float], list[float]]:
    """Dampings and periods of the adaptive runs."""
    adaptive = table[table["scheme"] != "equidistant"]
    return _values(adaptive, "damping"), _values(adaptive, "every_n_steps")
