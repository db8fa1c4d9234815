"""Figures and tables of the trained teachers: Fig. 1a, 1b, 1c, Fig. 3, Theorem 4 and the stabiliser."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from examples.paper.drawing import colour, draw_means, label_panels, legend_below, panels
from examples.paper.statistics import interval
from examples.paper.study import RUNS
from lightning_leaky.functional import rank_gap_bounds, speed_bounds

GAMMA_REL = 1e-3
"""γ0 of the energies where a figure shows one."""

# Marks of an axis from large negative to large positive numbers.
_THOUSANDS = (-1e9, -1e6, -1e3, 0, 1e3, 1e6, 1e9)
_TENS = (-100, -10, -1, 0, 1, 10, 1e2, 1e3, 1e4, 1e5)
# Ranks that panel a of Fig. 1a shows.
_FRAME = (-6.0, 10.0)
_SHOWN_DEPTHS = (1.0, 3.0, 5.0, 7.0, 20.0)

Tables = Mapping[str, pd.DataFrame]


def figures(tables: Tables) -> dict[str, Figure]:
    """All figures by name."""
    summaries = per_run(tables)
    return {
        "fig1a_rank": _rank(summaries),
        "fig1a_other_ranks": _other_ranks(summaries),
        "fig1b_spectra": _spectra(tables),
        "fig1c_dynamics": _dynamics(tables),
        "fig3_boundedness": _boundedness(summaries),
        "theorem4": _theorem(tables),
        "stabiliser": _stabiliser(tables),
    }


def per_run(tables: Tables) -> pd.DataFrame:
    """One row a run and γ0: what the layers say together."""
    joined = _joined(tables)
    rows = []
    for (run, gamma_rel), layers in joined.groupby(["run", "gamma_rel"], sort=False):
        depth = layers["effective_depth"].iloc[0]
        momentum_form = -2 * layers["hamiltonian"] / depth
        energy_form = layers["cost_of_identity"] - 2 * layers["kinetic_energy"] / depth
        speeds = np.sqrt(2 * depth * layers["kinetic_energy"].clip(lower=0))
        rows.append(
            {
                "run": run,
                "gamma_rel": gamma_rel,
                "momentum_form": momentum_form.median(),
                "momentum_form_min": momentum_form.min(),
                "momentum_form_max": momentum_form.max(),
                "energy_form": energy_form.median(),
                "least_cost": layers["cost_of_identity"].min(),
                "residual": layers["criticality_residual"].median(),
                "path_length": (layers["step_size"] * speeds).sum(),
                "momentum": np.sqrt(layers["momentum_square"].max()),
                "features_momentum": np.sqrt(layers["features_momentum_square"].max()),
                "representation": np.sqrt(layers["representation_square"].max()),
            }
        )
    settings = tables[RUNS][["run", "seed", "effective_depth", "num_layers", "dims", "test_error"]]
    return pd.DataFrame(rows).merge(settings, on="run")


def _joined(tables: Tables) -> pd.DataFrame:
    settings = tables[RUNS][["run", "seed", "effective_depth", "num_layers", "dims"]]
    layers = tables["layers"].merge(settings, on="run")
    return tables["energies"].merge(layers, on=["run", "layer"])


def _main(table: pd.DataFrame) -> pd.DataFrame:
    """Runs on the teacher of rank 3, with the usual number of layers."""
    of_rank = table[table["dims"] == "30-3-30"]
    return of_rank[of_rank["num_layers"] == of_rank["num_layers"].min()]


def _rank(summaries: pd.DataFrame) -> Figure:
    figure, axes = panels(3)
    table = _main(summaries)
    stable, raw = (table[table["gamma_rel"] == gamma] for gamma in (GAMMA_REL, 0.0))
    _draw_estimates(axes[0], stable)
    draw_means(axes[1], raw, "effective_depth", "least_cost", "min. cost of identity, raw (geometric)", 3, log=True)
    draw_means(axes[1], raw, "effective_depth", "energy_form", "−2H/L̃, energy form, raw", 4)
    draw_means(axes[2], stable, "effective_depth", "residual", log=True)
    for ax in axes[:2]:
        ax.axhline(3, color="grey", linestyle=":", label="k* = 3")
        ax.set(xlabel="effective depth L̃", ylabel="rank (no unit)")
    axes[1].set_yscale("symlog", linthresh=1)  # estimates may be below 0
    axes[1].yaxis.set_major_locator(FixedLocator(_TENS))
    axes[2].set(xlabel="effective depth L̃", ylabel="median criticality residual", yscale="log")
    legend_below(figure, axes[:2])
    label_panels(axes, ["stable, γ = 1e-3 ‖K‖", "raw, logarithmic beyond ±1", "how far it can be trusted"])
    return figure


def _draw_estimates(ax: Axes, table: pd.DataFrame) -> None:
    draw_means(ax, table, "effective_depth", "momentum_form", "−2H/L̃, momentum form (median)", 0)
    means = table.groupby("effective_depth")[["momentum_form_min", "momentum_form_max"]].mean()
    least, most = means["momentum_form_min"], means["momentum_form_max"]
    label = "momentum form, least to greatest layer"
    ax.fill_between(means.index, least, most, color=colour(0), alpha=0.15, label=label)
    draw_means(ax, table, "effective_depth", "energy_form", "−2H/L̃, energy form (median)", 1)
    draw_means(ax, table, "effective_depth", "least_cost", "min. cost of identity", 2)
    ax.set_ylim(*_FRAME)
    costs = table.groupby("effective_depth")["least_cost"].mean()
    beyond = ", ".join(f"{cost:.0f} at L̃ = {depth:g}" for depth, cost in costs.items() if cost > _FRAME[1])
    if beyond:
        text = f"above the frame, min. cost: {beyond}"
        ax.text(0.98, 0.94, text, ha="right", fontsize="x-small", transform=ax.transAxes)


def _other_ranks(summaries: pd.DataFrame) -> Figure:
    table = summaries[
        (summaries["gamma_rel"] == GAMMA_REL) & (summaries["num_layers"] == summaries["num_layers"].min())
    ]
    groups = sorted(table.groupby("dims"), key=lambda group: _rank_of(group[0]))
    figure, axes = panels(max(1, len(groups)))
    for ax, (dims, group) in zip(axes, groups, strict=True):
        draw_means(ax, group, "effective_depth", "momentum_form", "−2H/L̃", 0)
        draw_means(ax, group, "effective_depth", "least_cost", "min. cost of identity", 2)
        ax.axhline(_rank_of(dims), color="grey", linestyle=":", label=f"k* = {_rank_of(dims)}")
        ax.set(xlabel="effective depth L̃", ylabel="rank (no unit)")
        ax.set_ylim(0, 2.5 * _rank_of(dims) + 1)
        ax.legend()
    label_panels(axes, [f"k* = {_rank_of(dims)}" for dims, _ in groups])
    return figure


def _rank_of(dims: str) -> int:
    return min(int(size) for size in dims.split("-"))


def _spectra(tables: Tables) -> Figure:
    figure, axes = panels(3)
    settings = _main(tables[RUNS])
    chosen = settings[(settings["effective_depth"] == 7.0) & (settings["seed"] == settings["seed"].min())]
    spectra = tables["spectra"].merge(chosen[["run"]], on="run")
    layers = tables["layers"].merge(chosen[["run"]], on="run")
    ends = np.concatenate([[0.0], layers["step_size"].cumsum()])
    for ax, name in zip(axes, ("A", "W"), strict=False):
        table = spectra[spectra["matrix"] == name].pivot_table(index="layer", columns="index", values="value")
        places = ends if name == "A" else layers["position"]
        for number in table.columns:
            ax.plot(places, table[number], marker=".", color=colour(0 if number <= 3 else 6))
        ax.set(xlabel="position p", yscale="log", ylabel=f"singular values of {name}")
        ax.plot(ends, [0] * len(ends), "|", color="grey", transform=ax.get_xaxis_transform())
    axes[2].plot(layers["position"], layers["criticality_residual"], marker="o", markersize=4, color=colour(0))
    axes[2].set(xlabel="position p", ylabel="criticality residual", yscale="log")
    label_panels(axes, ["A_p: the first three dark", "W_p: the first three dark", "how far it can be trusted"])
    return figure


def _dynamics(tables: Tables) -> Figure:
    figure, axes = panels(3)
    joined = _main(_joined(tables))
    table = joined[(joined["effective_depth"] == 7.0) & (joined["gamma_rel"] == GAMMA_REL)].copy()
    table["potential_energy"] = -table["effective_depth"] / 2 * table["cost_of_identity"]
    table["energy_form"] = table["kinetic_energy"] + table["potential_energy"]
    for index, (name, label) in enumerate(
        {"kinetic_energy": "kinetic", "potential_energy": "potential", "hamiltonian": "H, momentum form"}.items()
    ):
        draw_means(axes[0], table, "position", name, label, index)
    draw_means(axes[1], table, "position", "hamiltonian", "momentum form", 2)
    draw_means(axes[1], table, "position", "energy_form", "energy form, γ = 1e-3 ‖K‖", 3)
    draw_means(axes[2], table, "position", "criticality_residual", None, 0)
    axes[0].set(xlabel="position p", ylabel="energy", yscale="symlog")
    axes[1].set(xlabel="position p", ylabel="Hamiltonian")
    axes[2].set(xlabel="position p", ylabel="criticality residual", yscale="log")
    for ax in axes[:2]:
        ax.legend()
    label_panels(axes, ["energies at L̃ = 7", "the Hamiltonian alone", "how far it can be trusted"])
    return figure


def _boundedness(summaries: pd.DataFrame) -> Figure:
    figure, axes = panels(3)
    table = _main(summaries)
    stable = table[table["gamma_rel"] == GAMMA_REL]
    for ax, name, label in zip(
        axes,
        ("path_length", "momentum", "features_momentum"),
        ("path length, γ = 1e-3 ‖K‖", "max. ‖B‖", "max. ‖Bᵀσ(A)‖"),
        strict=True,
    ):
        draw_means(ax, stable, "effective_depth", name, None, 0)
        ax.set(xlabel="effective depth L̃", ylabel=label)
        ax.set_ylim(bottom=0)
    label_panels(axes, ["path length", "momentum", "momentum on features"])
    return figure


def bounds(tables: Tables) -> pd.DataFrame:
    """Both sides of both bounds of Theorem 4, per run and γ0: the second in the layer where it is least well kept."""
    rows = []
    for (run, gamma_rel), layers in _main(_joined(tables)).groupby(["run", "gamma_rel"], sort=False):
        if gamma_rel == 0:
            continue
        numbers = layers.select_dtypes("number").astype(float)
        columns = {name: torch.tensor(numbers[name].to_numpy()) for name in numbers}
        depth = float(columns["effective_depth"][0])
        size = torch.maximum(columns["representation_square"], columns["momentum_square"]).max()
        speed = (2 * depth * columns["kinetic_energy"].clamp(min=0)).sqrt()
        energy = columns["hamiltonian"].quantile(0.5)  # the mean of the middle two, as elsewhere
        length = (columns["step_size"] * speed).sum()
        gap = rank_gap_bounds(energy, columns["cost_of_identity"], length, depth, columns["gamma"].max(), size)
        pace = speed_bounds(energy, columns["cost_of_identity"], speed, depth, columns["gamma"].max(), size)
        rows.append(
            {
                "run": run,
                "gamma_rel": gamma_rel,
                "effective_depth": depth,
                **{f"gap_{name}": float(value) for name, value in gap._asdict().items()},
                "speed_lower": float(pace.lower[0]),
                "speed_least": float(pace.value.min()),
                "speed_greatest": float(pace.value.max()),
                "speed_upper": float(pace.upper[0]),
            }
        )
    return pd.DataFrame(rows)


def _theorem(tables: Tables) -> Figure:
    figure, axes = panels(2, 2)
    found = bounds(tables)
    by_depth = found[found["gamma_rel"] == GAMMA_REL]
    by_gamma = found[found["effective_depth"] == 7.0]
    for row, (table, x) in enumerate(((by_depth, "effective_depth"), (by_gamma, "gamma_rel"))):
        gap, pace = axes[2 * row], axes[2 * row + 1]
        draw_means(gap, table, x, "gap_lower", "lower bound", 1)
        draw_means(gap, table, x, "gap_value", "−2H/L̃ − min. cost of identity", 4)
        draw_means(gap, table, x, "gap_upper", "upper bound", 3)
        draw_means(pace, table, x, "speed_lower", "lower bound", 1)
        draw_means(pace, table, x, "speed_least", "least over the layers", 0)
        draw_means(pace, table, x, "speed_greatest", "greatest over the layers", 2)
        draw_means(pace, table, x, "speed_upper", "upper bound", 3)
        for ax in (gap, pace):
            ax.set(yscale="symlog", xlabel="effective depth L̃" if row == 0 else "γ0")
            ax.yaxis.set_major_locator(FixedLocator(_THOUSANDS))
            if row == 1:
                ax.set_xscale("log")
        gap.set_ylabel("rank (no unit)")
        pace.set_ylabel("speed less L̃√(COI + 2H/L̃)")
    legend_below(figure, axes[:2])
    label_panels(axes, ["first bound", "second bound", "first, L̃ = 7", "second, L̃ = 7"])
    return figure


def _stabiliser(tables: Tables) -> Figure:
    figure, axes = panels(2)
    summaries = _main(per_run(tables))
    table = summaries[(summaries["gamma_rel"] > 0) & summaries["effective_depth"].isin(_SHOWN_DEPTHS)]
    for index, (depth, group) in enumerate(table.groupby("effective_depth")):
        draw_means(axes[0], group, "gamma_rel", "least_cost", f"L̃ = {depth:g}", index)
        draw_means(axes[1], group, "gamma_rel", "energy_form", f"L̃ = {depth:g}", index)
    for ax, label in zip(axes, ("min. cost of identity", "−2H/L̃, energy form"), strict=True):
        ax.axhline(3, color="grey", linestyle=":")
        ax.set(xscale="log", xlabel="γ0 = γ/‖K‖", ylabel=label)
    axes[0].set_yscale("log")
    legend_below(figure, axes[:1])
    label_panels(axes, ["cost of identity", "Hamiltonian, energy form"])
    return figure


def rank_tables(tables: Tables) -> dict[str, pd.DataFrame]:
    """Estimates of the rank: of the main runs, of other ranks, and with twice the layers beside as many as usual."""
    summaries = per_run(tables)
    stable = summaries[summaries["gamma_rel"] == GAMMA_REL].assign(rank=lambda table: table["dims"].map(_rank_of))
    main = _main(stable)
    finer = stable[stable["num_layers"] > stable["num_layers"].min()]
    beside = main[main["effective_depth"].isin(finer["effective_depth"])]
    others = stable[~stable["run"].isin([*main["run"], *finer["run"]])]
    return {
        "rank": _estimates(main),
        "other_ranks": _estimates(others),
        "finer_mesh": _estimates(pd.concat([beside, finer])),
    }


def _estimates(summaries: pd.DataFrame) -> pd.DataFrame:
    """Means with their 95 % intervals, per rank, L̃ and number of layers."""
    rows = []
    for (rank, depth, num_layers), group in summaries.groupby(["rank", "effective_depth", "num_layers"]):
        row = {"k*": rank, "L̃": depth, "L": num_layers, "n": len(group)}
        for name, label, digits in (
            ("momentum_form", "−2H/L̃, momentum form", 2),
            ("energy_form", "−2H/L̃, energy form", 2),
            ("least_cost", "min. COI", 2),
            ("residual", "residual", 3),
            ("path_length", "path length", 2),
        ):
            mean, half = interval(group[name].to_numpy())
            row[label] = f"{mean:.{digits}f} ± {half:.{digits}f}"
        rows.append(row)
    return pd.DataFrame(rows)
