"""A tolerance, not a depth: training cost and final error of refined nets beside nets of a fixed depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor

from examples.paper.continuous import gap
from examples.paper.drawing import colour, draw_means, label_panels, legend_below, panels
from examples.paper.statistics import interval, paired
from examples.paper.study import RUNS, Rows, Study
from examples.paper.training import Setting, data_of, errors, network_of, stop_step, training
from lightning_leaky import LeakyResNet
from lightning_leaky.refining import discretisation_errors

DEPTHS = (3.0, 7.0)
NUM_LAYERS = (4, 6, 8, 12, 16, 24)
TOLERANCES = (1.0, 0.7, 0.5, 0.35, 0.25)
FIRST_LAYERS, MOST_LAYERS = 4, 40
NUM_REFINEMENTS = 30
"""If training went on refining to its end; the last 30 % of it keep the mesh."""
GAP_POINTS = 200


@dataclass(frozen=True)
class Refined(Setting):
    """A run that may change its number of layers.

    Args:
        tolerance: Of the estimated discretisation error; 0 keeps the number of layers.
    """

    tolerance: float = 0.0


def settings(reduced: bool) -> Sequence[Refined]:
    """Fixed depths and tolerances; all of one seed before the next."""
    if reduced:
        sizes = {"num_steps": 60, "width": 16, "num_points": 100}
        return [_setting(0, 3.0, layers, tolerance, **sizes) for layers, tolerance in ((4, 0.0), (8, 0.0), (4, 0.5))]
    kinds = [*((layers, 0.0) for layers in NUM_LAYERS), *((FIRST_LAYERS, tolerance) for tolerance in TOLERANCES)]
    return [
        _setting(seed, depth, layers, tolerance, num_steps=3000, width=50)
        for seed in range(5)
        for depth in DEPTHS
        for layers, tolerance in kinds
    ]


def _setting(seed: int, depth: float, layers: int, tolerance: float, **sizes: int) -> Refined:
    task = {"weight_decay": 0.03, "dims": "30-6-3-30", "teacher": "resnet", "tolerance": tolerance}
    return Refined(seed, depth, layers, **task, **sizes)  # type: ignore[arg-type]


def measure(setting: Refined) -> dict[str, Rows]:
    """Train, count what training cost, and measure errors."""
    data = data_of(setting)
    network = network_of(setting)
    counts, period = [], max(1, setting.num_steps // NUM_REFINEMENTS)
    for step, optimizer in training(setting, data, network):
        counts.append(len(network.layers))
        if setting.tolerance and step % period == 0 and step <= stop_step(setting):
            network.refine(data["train"][0], setting.tolerance, optimizer, max_layers=MOST_LAYERS)
    inputs = data["train"][0]
    row = {
        **errors(network, data),
        "final_layers": len(network.layers),
        # Of the layers only; figures and tables add the two maps.
        "training_flops": training_flops(network, inputs, sum(counts)),
        "estimated_error": float(discretisation_errors(network.representations(inputs), network.step_sizes).sum()),
        "gap": gap(network, data["test"][0][:GAP_POINTS], "linear")["output_error"],
    }
    history = [{"step": step, "num_layers": counts[step - 1]} for step in range(1, len(counts) + 1, period)]
    return {RUNS: [row], "history": history}


def training_flops(network: LeakyResNet, inputs: Tensor, layer_steps: int) -> float:
    """Floating-point operations of the layers' matrix products: three of 2Nw² a layer and step, forward and backward.

    Refining adds one forward pass each time, which is not counted: at most a third of a percent.
    """
    return 6.0 * len(inputs) * network.width**2 * layer_steps


def map_flops(runs: pd.DataFrame) -> pd.Series[float]:
    """Operations of the two learned maps, by the settings of runs: the same whatever the number of layers.

    Products of 2·N·w·(inputs or outputs): forward and of the gradient of the weight for both maps, of the gradient of
    what goes in for the output map only, for nobody asks for that of the data.
    """
    sizes = runs["dims"].str.split("-")
    num_inputs, num_outputs = sizes.str[0].astype(int), sizes.str[-1].astype(int)
    products = 2 * num_inputs + 3 * num_outputs
    return 2.0 * runs["num_points"] * runs["width"] * products * runs["num_steps"]


def _with_maps(runs: pd.DataFrame) -> pd.DataFrame:
    return runs.assign(training_flops=runs["training_flops"] + map_flops(runs))


def figures(tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Test error and gap against what training cost, and the number of layers over training."""
    runs, history = _with_maps(tables[RUNS]), tables["history"].merge(tables[RUNS], on="run", suffixes=("", "_first"))
    depths = sorted(runs["effective_depth"].unique())
    figure, axes = panels(3, len(depths))
    for row, depth in enumerate(depths):
        for ax, value in zip(axes[3 * row :], ("test_error", "gap"), strict=False):
            of_depth = runs[runs["effective_depth"] == depth]
            _draw_costs(ax, of_depth[of_depth["tolerance"] == 0], value, "num_layers", "fixed, by L", 0)
            _draw_costs(ax, of_depth[of_depth["tolerance"] > 0], value, "tolerance", "refined, by tolerance", 1)
            ax.set(xlabel="training cost (TFLOP)")
        axes[3 * row + 1].set_yscale("log")
        axes[3 * row].set_ylabel("test error (targets have variance 1)")
        axes[3 * row + 1].set_ylabel("gap of the outputs")
        of_depth = history[(history["effective_depth"] == depth) & (history["tolerance"] > 0)]
        for tolerance, group in of_depth.groupby("tolerance"):
            label, shade = f"tolerance {tolerance:g}", _shade(tolerance)
            draw_means(axes[3 * row + 2], group, "step", "num_layers", label, color=shade)
        axes[3 * row + 2].set(xlabel="optimizer step", ylabel="layers")
    legend_below(figure, [axes[0], axes[2]])
    label_panels(axes, [f"{title}, L̃ = {depth:g}" for depth in depths for title in ("error", "gap", "layers")])
    return {"refinement": figure}


def _shade(tolerance: float) -> tuple[float, ...]:
    """A colour of a scale from dark to bright, which no kind of run has; not its end, too bright for a line."""
    return colormaps["viridis"](0.85 * (1 - tolerance) / (1 - min(TOLERANCES)))


def _draw_costs(ax: Axes, runs: pd.DataFrame, value: str, by: str, label: str, index: int) -> None:
    """Mean of a value against mean cost, a point for each kind of run, with the interval of the value."""
    style: dict[str, Any] = {"fmt": "o", "markersize": 4, "capsize": 2, "color": colour(index)}
    # Beyond the ends of the bars, one kind above and one below, so that no label hides another.
    side = 1 if index else -1
    text: dict[str, Any] = {"fontsize": 7, "ha": "center", "va": "center", "color": colour(index)}
    text["path_effects"] = [withStroke(linewidth=2, foreground="white")]
    for number, (kind, group) in enumerate(runs.groupby(by)):
        cost, (mean, half) = group["training_flops"].mean() / 1e12, interval(group[value].to_numpy())
        ax.errorbar(cost, mean, half, label="" if number else label, **style)
        end = (cost, mean + side * np.nan_to_num(half))
        ax.annotate(f"{kind:g}", end, textcoords="offset points", xytext=(0, 6 * side), **text)
    ax.margins(x=0.08, y=0.12)


def tables_for_readers(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """What each kind of run cost and reached; test errors also beside those of the deepest fixed net, in pairs."""
    runs = _with_maps(tables[RUNS])
    rows, fixed = [], runs[runs["tolerance"] == 0]
    deepest = fixed[fixed["num_layers"] == fixed["num_layers"].max()]
    for (depth, tolerance, layers), group in runs.groupby(["effective_depth", "tolerance", "num_layers"]):
        row = {"L̃": depth, "tolerance": tolerance or "–", "first L": layers, "n": len(group)}
        for name, label, form in (
            ("final_layers", "final L", "{:.1f} ± {:.1f}"),
            ("training_flops", "training TFLOP", "{:.3f} ± {:.3f}"),
            ("estimated_error", "estimated error", "{:.2f} ± {:.2f}"),
            ("gap", "gap of the outputs", "{:.3f} ± {:.3f}"),
            ("test_error", "test error", "{:.4f} ± {:.4f}"),
        ):
            scale = 1e-12 if name == "training_flops" else 1.0
            row[label] = form.format(*interval(scale * group[name].to_numpy()))
        _, mean, half = paired(group, deepest, ["seed", "effective_depth"], "test_error")
        row[f"minus that of L = {deepest['num_layers'].iloc[0]}"] = f"{1e4 * mean:+.1f} ± {1e4 * half:.1f} (1e-4)"
        rows.append(row)
    return {"refinement": pd.DataFrame(rows)}


STUDY = Study("refinement", settings, measure, figures, tables_for_readers)
