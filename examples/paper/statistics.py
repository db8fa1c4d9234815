"""Means over seeds with 95 % intervals, and paired differences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

LARGEST_RESIDUAL = 0.5
"""Criticality residual above which a Hamiltonian says nothing."""
# What counts as zero in a logarithm.
_LEAST = 1e-12


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean and half width of its 95 % interval, by Student's t; NaN where there are too few values for them."""
    found = np.asarray(values, dtype=float)
    if len(found) < 2:
        return float(found.sum()) if len(found) else float("nan"), float("nan")
    mean = float(found.mean())
    return mean, float(stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found)))


def summary(table: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """Columns ``n``, ``mean`` and ``half`` (of the 95 % interval) of a value over the rows of each group."""
    rows = []
    for key, group in table.groupby(list(by), sort=True):
        mean, half = interval(group[value].to_numpy())
        rows.append({**dict(zip(by, key, strict=True)), "n": len(group), "mean": mean, "half": half})
    return pd.DataFrame(rows)


def geometric(table: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """Columns ``n``, ``mean``, ``low`` and ``high``: geometric means, and the 95 % interval of the logarithm."""
    found = summary(table.assign(log=np.log(table[value].clip(lower=_LEAST))), by, "log")
    bounds = {"low": found["mean"] - found["half"], "high": found["mean"] + found["half"], "mean": found["mean"]}
    return found.assign(**{name: np.exp(logs) for name, logs in bounds.items()}).drop(columns="half")


def paired(table: pd.DataFrame, other: pd.DataFrame, on: Sequence[str], value: str) -> tuple[int, float, float]:
    """Number of pairs, mean of ``table − other`` over them and half width of its 95 % interval."""
    pairs = table.merge(other, on=list(on), suffixes=("", "_other"))
    return len(pairs), *interval((pairs[value] - pairs[f"{value}_other"]).to_numpy())
