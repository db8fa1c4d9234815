"""Two options of the step-size hook: weights that move with the mesh, and gradients per unit of p under SGD."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from examples.paper.statistics import interval, paired
from examples.paper.study import RUNS, Rows, Study
from examples.paper.training import Setting, data_of, errors, read, train
from lightning_leaky.functional import hamiltonian_spread

PLACES = ((3.0, 5), (7.0, 10))
"""L̃ and L."""
RATES = (0.01, 0.03, 0.1, 0.3)
"""Learning rates of SGD; the best by validation error counts, for each kind of run."""
SEEDS = range(100, 105)


def settings(reduced: bool) -> Sequence[Setting]:
    """Adam with and without moving weights; SGD with and without scaled gradients, on two kinds of mesh."""
    seeds, places = (SEEDS[:2], ((3.0, 4),)) if reduced else (SEEDS, PLACES)
    sizes = {"num_steps": 30, "width": 16, "num_points": 100} if reduced else {"num_steps": 3000, "width": 50}
    rates = RATES[:1] if reduced else RATES
    shared = {"weight_decay": 0.03, "dims": "30-6-3-30", "teacher": "resnet", "scheme": "relative_distance", **sizes}
    kinds = [
        *({"move_weights": moves, "every_n_steps": period} for moves in (False, True) for period in (10, 100)),
        *(
            {"optimizer": "sgd", "learning_rate": rate, "scale_gradients": scales}
            for rate in rates
            for scales in (False, True)
        ),
    ]
    return [
        Setting(seed, depth, num_layers, **shared, **kind)  # type: ignore[arg-type]
        for seed in seeds
        for depth, num_layers in places
        for kind in kinds
    ]


def measure(setting: Setting) -> dict[str, Rows]:
    """Train; validation error, spread of H and how critical the net is. A run that diverges has no readings."""
    data = data_of(setting)
    network = train(setting, data)
    found = errors(network, data)
    if not math.isfinite(found["val_error"]):
        return {RUNS: [{**found, "spread": math.nan, "criticality_residual": math.nan}]}
    trained = read(network, data, setting.weight_decay)
    row = {
        **found,
        "spread": float(hamiltonian_spread(trained.hamiltonians)),
        "criticality_residual": float(trained.residuals.median()),
    }
    return {RUNS: [row]}


def comparison(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Each option against the same run without it, where neither diverges."""
    runs = tables[RUNS].dropna(subset="spread")
    return {
        "moving_weights": _against(runs[runs["optimizer"] == "adam"], "move_weights", "every_n_steps"),
        "scaled_gradients": _against(runs[runs["optimizer"] == "sgd"], "scale_gradients", "learning_rate"),
    }


def _against(runs: pd.DataFrame, option: str, by: str) -> pd.DataFrame:
    rows = []
    for (depth, value), group in runs.groupby(["effective_depth", by]):
        with_it, without = group[group[option]], group[~group[option]]
        row = {"L̃": depth, by: value, "n": paired(with_it, without, ["seed"], "spread")[0]}
        for column, label, unit, digits in (
            ("val_error", "val. error (1e-4)", 1e-4, 1),
            ("spread", "spread of H", 1.0, 1),
            ("criticality_residual", "residual", 1.0, 3),
        ):
            mean, half = (number / unit for number in interval(without[column].to_numpy()))
            row[f"{label}, without"] = f"{mean:.{digits}f} ± {half:.{digits}f}"
            change, half = (number / unit for number in paired(with_it, without, ["seed"], column)[1:])
            row[f"Δ {label}"] = f"{change:+.{digits}f} ± {half:.{digits}f}"
        rows.append(row)
    return pd.DataFrame(rows)


STUDY = Study("options", settings, measure, figures=lambda tables: {}, tables=comparison)
