r"""Cross-entropy on the 5,000 digits: how the path moves during training, and whether its effective depth grows.

L̃ is a constant of the network, so what can grow must be said. Without biases the layers are homogeneous, and dividing
A_p by e^{gp} turns ``∂_pA = −L̃A + σ(A)Wᵀ`` into the same equation with the same weights and L̃ + g in place of L̃. A
net whose representation grows e^g times from its first layer to its last is thus the same function as a net of
effective depth L̃ + g whose representation does not grow, with outputs e^g times as large. Under a squared error the
targets fix the size of the outputs. Under cross-entropy, once the classes are right, larger logits always cost less,
until weight decay stops them. So we read

    effective depth in units of the data  =  L̃ + g,    g = log(‖A_L‖_F / ‖A_0‖_F),

which makes a plain ResNet, of L̃ = 0, one of effective depth g. [ours]

What it does not say: biases are not homogeneous, and on the rescaled path they shrink. The two learned maps take their
part of the growth of the logits; it stands beside g. Under half a cosine time is also the learning rate: what happens
at the end is partly the net coming to rest. And an effective depth that grows need not make a bottleneck; for that see
the cost of identity and the stable rank, which do not depend on the size of A.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from examples.paper.drawing import draw_means, label_panels, panels
from examples.paper.real_data import Data, Setting, cost, data_of, error, train
from examples.paper.statistics import LARGEST_RESIDUAL, interval
from examples.paper.study import RUNS, Rows, Study
from lightning_leaky import LeakyResNet, measure_path
from lightning_leaky.functional import bottleneck_rank
from lightning_leaky.module import RegularizedNetwork, default_learning_rate

DEPTHS = (0.0, 3.0, 7.0)
WEIGHT_DECAYS = {1e-2: "-", 1e-3: "--"}
"""λ, and their lines in the figure."""
NUM_READINGS = 12
QUANTITIES = ("cost_of_identity", "stable_rank", "hamiltonian", "criticality_residual")
PANELS = {
    "growth": "g = log(‖A_L‖ / ‖A_0‖)",
    "logit_size": "root mean square of the logits",
    "weight_norm": "‖W_l‖, median over layers",
    "cost_of_identity": "least cost of identity",
    "stable_rank": "least stable rank",
    "criticality_residual": "criticality residual, median over layers",
}
"""Readings in the figure, which leaves out −2H/L̃: only when the net has come to rest can it be read."""
LOGARITHMIC = ("weight_norm", "cost_of_identity", "criticality_residual")
"""Readings over a logarithmic axis, with geometric means."""


def settings(reduced: bool) -> Sequence[Setting]:
    """All L̃ and λ with equidistant steps, at the learning rate that the package sets by L̃."""
    depths, weight_decays = (DEPTHS[:2], (1e-2,)) if reduced else (DEPTHS, tuple(WEIGHT_DECAYS))
    num_seeds, num_epochs = (2, 2) if reduced else (5, 300)
    return [
        Setting("digits", "equidistant", seed, 0, depth, default_learning_rate(depth), weight_decay, num_epochs)
        for seed in range(num_seeds)
        for weight_decay in weight_decays
        for depth in depths
    ]


def measure(setting: Setting) -> dict[str, Rows]:
    """Train, and read the path over the training digits: before, and at epochs equally far apart on a log scale."""
    data = data_of(setting.data, setting.seed)
    epochs = {0, *np.geomspace(1, setting.num_epochs, NUM_READINGS).round().astype(int).tolist()}
    layers: list[pd.DataFrame] = []
    wholes: Rows = []

    def watch(epoch: int, network: RegularizedNetwork) -> None:
        if epoch in epochs and isinstance(network, LeakyResNet):
            of_layers = layer_readings(network, data, setting.weight_decay).assign(epoch=epoch)
            layers.append(of_layers)
            wholes.append({"epoch": epoch, **readings(network, data), **summaries(of_layers)})

    network = train(setting, data, watch)
    errors = {f"{split}_error": error(network, rows) for split, rows in data.items()}
    return {RUNS: [errors], "layers": pd.concat(layers).to_dict("records"), "readings": wholes}


@torch.no_grad()
def readings(network: LeakyResNet, data: Data) -> dict[str, float]:
    """How the size of the logits comes about, in logarithms of Frobenius norms, and how well the net does."""
    inputs, targets = data["train"]
    path = network.representations(inputs)
    logits = network.output_map(path[-1])
    return {
        "input_growth": float((path[0].norm() / inputs.norm()).log()),
        "growth": float((path[-1].norm() / path[0].norm()).log()),
        "output_growth": float((logits.norm() / path[-1].norm()).log()),
        "logit_size": float(logits.square().mean().sqrt()),
        "train_cost": float(cost(logits, targets)),
        "test_error": error(network, data["test"]),
    }


def layer_readings(network: LeakyResNet, data: Data, weight_decay: float) -> pd.DataFrame:
    """One line a layer."""
    found = measure_path(network, [data["train"]], QUANTITIES, cost, weight_decay)
    with torch.no_grad():
        before, weights = network.representations(data["train"].inputs)[:-1], network.weights()
    depth = network.effective_depth
    columns = {
        "layer": torch.arange(1, len(weights) + 1),
        **found.quantities,
        # L̃ = 0 has no −2H/L̃.
        "bottleneck_rank": bottleneck_rank(found["hamiltonian"], depth) if depth else found["hamiltonian"] * torch.nan,
        "representation_norm": torch.linalg.matrix_norm(before),
        "weight_norm": torch.linalg.matrix_norm(weights),
        "bias_norm": weights[..., -1].norm(dim=1),
    }
    return pd.DataFrame({name: column.numpy() for name, column in columns.items()})


def summaries(layers: pd.DataFrame) -> dict[str, float]:
    """Medians over layers; of the cost of identity and the stable rank the least, at the bottleneck."""
    of_bottleneck = ["cost_of_identity", "stable_rank"]
    of_most = ["weight_norm", "bias_norm", "bottleneck_rank", "criticality_residual"]
    return {**layers[of_bottleneck].min(), **layers[of_most].median()}


def figures(tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Each reading over training: a colour for each L̃, a line for each λ."""
    table = _with_settings(tables)
    figure, axes = panels(3, rows=2, sharex=True)
    for ax, name in zip(axes, PANELS, strict=True):
        _draw_reading(ax, table, name)
    for name in LOGARITHMIC:
        axes[list(PANELS).index(name)].set_yscale("log")
    for ax in axes[3:]:
        ax.set_xlabel("epoch")
    axes[0].set_xscale("symlog", linthresh=1)  # 0 is before training
    axes[0].set_xlim(-0.2, 1.3 * table["epoch"].max())
    axes[0].xaxis.set_major_formatter(ScalarFormatter())
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(DEPTHS))
    label_panels(axes, list(PANELS.values()))
    return {"cross_entropy": figure}


def _draw_reading(ax: Axes, table: pd.DataFrame, name: str) -> None:
    for (weight_decay, depth), group in table.groupby(["weight_decay", "effective_depth"], sort=True):
        label, line = f"L̃ = {depth:g}, λ = {weight_decay:g}", WEIGHT_DECAYS[weight_decay]
        index, log = DEPTHS.index(depth), name in LOGARITHMIC
        draw_means(ax, group, "epoch", name, label, index, log, linestyle=line, markersize=3)


def tables(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """First and last reading of every L̃ and λ, and their paired difference: means over seeds and 95 % intervals."""
    table = _with_settings(tables)
    table["L̃ + g"] = table["effective_depth"] + table["growth"]
    shown = ["L̃ + g", "input_growth", "output_growth", *list(PANELS)[1:], "bottleneck_rank"]
    rows = []
    for (depth, weight_decay), group in table.groupby(["effective_depth", "weight_decay"]):
        by_epoch = {epoch: readings.set_index("run")[shown] for epoch, readings in group.groupby("epoch")}
        first, last = min(by_epoch), max(by_epoch)
        found = {str(first): by_epoch[first], str(last): by_epoch[last], "change": by_epoch[last] - by_epoch[first]}
        rows += [
            {"L̃": depth, "λ": weight_decay, "epoch": name, **{column: _interval(values[column]) for column in shown}}
            for name, values in found.items()
        ]
    return {"cross_entropy": pd.DataFrame(rows).rename(columns=lambda name: name.replace("_", " "))}


def _interval(values: pd.Series[float]) -> str:
    mean, half = interval(values.to_numpy())
    return "" if np.isnan(mean) else f"{mean:.3g} ± {half:.2g}"


def _with_settings(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Readings beside L̃ and λ, without Hamiltonians that say nothing."""
    table = tables["readings"].merge(tables[RUNS][["run", "effective_depth", "weight_decay"]], on="run")
    table.loc[table["criticality_residual"] > LARGEST_RESIDUAL, "bottleneck_rank"] = np.nan
    return table


STUDY = Study("cross_entropy", settings, measure, figures, tables)
