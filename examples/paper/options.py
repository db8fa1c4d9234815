"""Two options of the step-size hook: weights that move with the mesh, and gradients per unit of p under SGD."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from examples.paper.statistics import interval, paired
from examples.paper.study import RUNS, Rows, Study
from examples.paper.training import Setting, data_of, errors, read, train
from lightning_leaky.functional import hamiltonian_spread

PLACES = ((3.0, 5), (7.0, 10))
"""L̃ and L."""
RATES = (0.01, 0.03, 0.1, 0.3)
"""Learning rates of SGD; the best by mean validation error counts, for each kind of run, with its test error."""
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
    """Train; errors, spread of H and how critical the net is. A run that diverges has no readings."""
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
    adam, sgd = (runs[runs["optimizer"] == name] for name in ("adam", "sgd"))
    moving = [
        {"L̃": depth, "every_n_steps": period, **_changes(group[group["move_weights"]], group[~group["move_weights"]])}
        for (depth, period), group in adam.groupby(["effective_depth", "every_n_steps"])
    ]
    return {
        "moving_weights": pd.DataFrame(moving),
        "scaled_gradients": pd.DataFrame(_of_rates(sgd)),
        "scaled_gradients_chosen": pd.DataFrame(_at_chosen_rates(sgd)),
    }


def _of_rates(runs: pd.DataFrame) -> Rows:
    """What the learning rate is chosen by: validation errors at each, without and with scaled gradients."""
    rows = []
    for (depth, rate), group in runs.groupby(["effective_depth", "learning_rate"]):
        sides = {"without": group[~group["scale_gradients"]], "with": group[group["scale_gradients"]]}
        errors_of = {side: _shown(*interval(1e4 * found["val_error"])) for side, found in sides.items()}
        columns = {f"val. error (1e-4), {side}": text for side, text in errors_of.items()}
        rows.append({"L̃": depth, "learning_rate": rate, "n": len(sides["with"]), **columns})
    return rows


def _at_chosen_rates(runs: pd.DataFrame) -> Rows:
    """What scaled gradients change on test data, each side at the rate that is best on validation data."""
    rows = []
    for depth, group in runs.groupby("effective_depth"):
        chosen = [_at_best_rate(side) for _, side in group.groupby("scale_gradients")]
        if len(chosen) < 2:  # of results that are not complete
            continue
        without, with_it = chosen
        rates = {"rate without": without["learning_rate"].iloc[0], "rate with": with_it["learning_rate"].iloc[0]}
        rows.append({"L̃": depth, **rates, **_changes(with_it, without)})
    return rows


def _at_best_rate(runs: pd.DataFrame) -> pd.DataFrame:
    best = runs.groupby("learning_rate")["val_error"].mean().idxmin()
    return runs[runs["learning_rate"] == best]


def _changes(with_it: pd.DataFrame, without: pd.DataFrame) -> dict[str, Any]:
    """Readings without an option, and their paired changes with it."""
    row: dict[str, Any] = {"n": paired(with_it, without, ["seed"], "spread")[0]}
    for column, label, unit, digits in (
        ("test_error", "test error (1e-4)", 1e-4, 1),
        ("spread", "spread of H", 1.0, 1),
        ("criticality_residual", "residual", 1.0, 3),
    ):
        row[f"{label}, without"] = _shown(*interval(without[column] / unit), digits)
        mean, half = (number / unit for number in paired(with_it, without, ["seed"], column)[1:])
        row[f"Δ {label}"] = f"{mean:+.{digits}f} ± {half:.{digits}f}"
    return row


def _shown(mean: float, half: float, digits: int = 1) -> str:
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


STUDY = Study("options", settings, measure, figures=lambda tables: {}, tables=comparison)
