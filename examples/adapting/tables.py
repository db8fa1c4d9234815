"""What the studies found, in tables: losses, how soon they are reached, blocks, and what can be left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from examples.adapting.schemes import EQUIDISTANT
from examples.paper.statistics import interval, paired

Tables = Mapping[str, pd.DataFrame]


def with_runs(tables: Tables, name: str) -> pd.DataFrame:
    """Rows of a table, with kind, scheme and seed of their run."""
    return tables[name].merge(tables["runs"][["run", "kind", "scheme", "seed"]], on="run")


def schemes_in(runs: pd.DataFrame) -> list[str]:
    """Schemes that there are, in the order in which they were run."""
    return list(dict.fromkeys(runs["scheme"]))


def cell(values: Sequence[float] | np.ndarray, digits: int = 3) -> str:
    """Mean and 95 % interval."""
    mean, half = interval(values)
    return f"{mean:.{digits}f}" if half != half else f"{mean:.{digits}f} ± {half:.{digits}f}"


def signed(mean: float, half: float) -> str:
    """A mean of paired differences and its 95 % interval; a star where that leaves 0 out."""
    return f"{mean:+.3f} ± {half:.3f}{'*' if abs(mean) > half else ''}"


def chosen_rates(trials: pd.DataFrame) -> dict[tuple[str, str], float]:
    """The learning rate with the least mean loss over seeds, for each kind and scheme."""
    means = trials.groupby(["kind", "scheme", "rate"])["loss"].mean().reset_index().sort_values("loss")
    best = means.groupby(["kind", "scheme"]).head(1)
    return {(kind, scheme): rate for kind, scheme, rate in zip(best["kind"], best["scheme"], best["rate"], strict=True)}


def loss_table(tables: Tables) -> pd.DataFrame:
    """Final loss, less that of equidistant steps of the same seeds, and how soon that loss is reached."""
    runs, needed = tables["runs"], steps_needed(tables)
    rows = []
    for kind, of_kind in runs.groupby("kind", sort=False):
        baseline = of_kind[of_kind["scheme"] == EQUIDISTANT]
        for scheme in schemes_in(of_kind):
            part = of_kind[of_kind["scheme"] == scheme]
            count, mean, half = paired(part, baseline, ["seed"], "loss")
            row: dict[str, object] = {"kind": kind, "scheme": scheme, "rate": part["rate"].iloc[0], "seeds": count}
            row |= {"loss": cell(part["loss"].to_numpy()), "metric": cell(part["metric"].to_numpy())}
            if scheme != EQUIDISTANT:
                shares = needed[(needed["kind"] == kind) & (needed["scheme"] == scheme)]["share"]
                row["minus equidistant"] = signed(mean, half)
                row["share of the steps"] = cell(shares.dropna().to_numpy()) if shares.notna().any() else ""
                row["seeds that reach it"] = f"{shares.notna().sum()} of {len(shares)}"
            rows.append(row)
    return pd.DataFrame(rows).fillna("")


def steps_needed(tables: Tables) -> pd.DataFrame:
    """After which share of the steps a run's loss is first that of equidistant steps at their end; NaN where never.

    Linear between the points of a curve, on the same batches and for the same seed. The learning rate falls to zero, so
    curves are flat at their end, and a small difference in loss looks like many steps: the study of fewer steps, each
    with a schedule of its own, says what is saved.
    """
    curves = with_runs(tables, "curves").sort_values("share")
    rows = []
    for (kind, seed), part in curves.groupby(["kind", "seed"]):
        goals = part[part["scheme"] == EQUIDISTANT]["loss"]
        if goals.empty:
            continue
        for scheme, curve in part.groupby("scheme"):
            share = first_below(curve["share"].to_numpy(), curve["loss"].to_numpy(), float(goals.iloc[-1]))
            rows.append({"kind": kind, "seed": seed, "scheme": scheme, "share": share})
    return pd.DataFrame(rows, columns=["kind", "seed", "scheme", "share"])


def first_below(places: np.ndarray, losses: np.ndarray, goal: float) -> float:
    """Where a piecewise linear curve first is at a goal or below; NaN if it never is."""
    below = np.flatnonzero(losses <= goal)
    if len(below) == 0:
        return float("nan")
    index = int(below[0])
    if index == 0:
        return float(places[0])
    part = (losses[index - 1] - goal) / (losses[index - 1] - losses[index])
    return float(places[index - 1] + part * (places[index] - places[index - 1]))


def block_table(tables: Tables) -> pd.DataFrame:
    """The first block, those in the middle and the last: gains, how far they move, and what the loss would want."""
    blocks = with_runs(tables, "blocks")
    last = blocks.groupby("run")["layer"].transform("max")
    blocks["blocks"] = np.where(blocks["layer"] == 1, "first", np.where(blocks["layer"] == last, "last", "between"))
    columns = ["gain", "relative distance", "moved", "pull"]
    keys = ["kind", "scheme", "step", "blocks"]
    means = blocks.groupby([*keys[:-1], "seed", "blocks"], sort=False)[columns].mean().reset_index()
    return means.groupby(keys, sort=False)[columns].mean().reset_index()


def removal_table(tables: Tables) -> pd.DataFrame:
    """What leaving out 1, 2, … blocks adds to the loss, and the loss then, less that of equidistant steps."""
    if "removals" not in tables:
        return pd.DataFrame()
    removals = with_runs(tables, "removals")
    whole = removals[removals["removed"] == 0].set_index("run")["loss"]
    removals["increase"] = removals["loss"] - removals["run"].map(whole)
    rows = []
    for (kind, scheme, removed), part in removals[removals["removed"] > 0].groupby(["kind", "scheme", "removed"]):
        same = (removals["kind"] == kind) & (removals["removed"] == removed)
        baseline = removals[same & (removals["scheme"] == EQUIDISTANT)]
        row = {"kind": kind, "scheme": scheme, "removed": removed, "increase": cell(part["increase"].to_numpy())}
        if scheme != EQUIDISTANT:
            for name, value in {"increase": "increase", "loss": "loss"}.items():
                _, mean, half = paired(part, baseline, ["seed"], value)
                row[f"{name}, minus equidistant"] = signed(mean, half)
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def screening_tables(tables: Tables) -> dict[str, pd.DataFrame]:
    """Tables of all schemes at one learning rate."""
    return {"losses": loss_table(tables), "blocks": block_table(tables)}


def judging_tables(tables: Tables) -> dict[str, pd.DataFrame]:
    """Tables of the seeds that judge."""
    return {"losses": loss_table(tables), "removals": removal_table(tables), "blocks": block_table(tables)}


def shorter_tables(tables: Tables, judged: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Final loss after fewer steps, less that of equidistant steps after all of theirs, for the same seeds."""
    if "runs" not in tables:
        return {}
    rows = []
    for (kind, scheme, share), part in tables["runs"].groupby(["kind", "scheme", "share"], sort=False):
        baseline = judged[(judged["kind"] == kind) & (judged["scheme"] == EQUIDISTANT)]
        count, mean, half = paired(part, baseline, ["seed"], "loss")
        row = {"kind": kind, "scheme": scheme, "share of the steps": share, "seeds": count}
        rows.append(row | {"loss": cell(part["loss"].to_numpy()), "minus equidistant, all steps": signed(mean, half)})
    return {"losses": pd.DataFrame(rows)}


def tuning_tables(trials: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Mean loss at each learning rate, and the one that is chosen."""
    best = chosen_rates(trials)
    rows = []
    for (kind, scheme), part in trials.groupby(["kind", "scheme"], sort=False):
        means = part.groupby("rate")["loss"].mean()
        cells = {f"rate {rate:g}": f"{loss:.3f}" for rate, loss in means.items()}
        rows.append({"kind": kind, "scheme": scheme, **cells, "chosen": best[kind, scheme]})
    return {"rates": pd.DataFrame(rows).fillna("")}
