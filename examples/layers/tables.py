"""What the study found, in tables: rank correlations, what can go, and when it is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from examples.layers.kinds import KINDS
from examples.layers.scores import SCORES
from examples.paper.statistics import interval

Tables = Mapping[str, pd.DataFrame]

REFERENCE = "block influence"
"""What every score is compared with."""

_ONE = ", one batch"
_ONCE = ("ablate_path, greedy", "ablate_path", "first order", REFERENCE, "relative distance", "relative speed", "last")


def networks(tables: Tables, steps: str = "equal") -> pd.DataFrame:
    """Runs of a kind of steps."""
    runs = tables["runs"]
    return runs[runs["steps"] == steps]


def with_networks(tables: Tables, name: str, steps: str = "equal") -> pd.DataFrame:
    """Rows of a table, with kind and seed of their network."""
    return tables[name].merge(networks(tables, steps)[["run", "kind", "seed"]], on="run")


def correlations(tables: Tables) -> pd.DataFrame:
    """Rank correlation of each score with the measured cost of removal: one row a network and a score."""
    rows = []
    for (kind, seed), blocks in with_networks(tables, "blocks").groupby(["kind", "seed"]):
        found = blocks[["ablate_path", *SCORES]].corrwith(blocks["increase"], method="spearman")
        rows += [{"kind": kind, "seed": seed, "score": score, "rho": rho} for score, rho in found.items()]
    return pd.DataFrame(rows)


def kinds_in(found: pd.DataFrame) -> list[str]:
    """Kinds that there are, those to choose on first."""
    return [kind for kind in KINDS if kind in set(found["kind"])]


def _cell(values: Sequence[float]) -> str:
    mean, half = interval(values)
    return f"{mean:.2f}" if half != half else f"{mean:.2f} ± {half:.2f}"


def difference_cell(values: Sequence[float]) -> str:
    """Mean of paired differences and its 95 % interval; a star where that leaves 0 out."""
    mean, half = interval(values)
    return f"{mean:+.2f} ± {half:.2f}{'*' if abs(mean) > half else ''}"


def network_table(tables: Tables) -> pd.DataFrame:
    """What was trained: blocks, networks so far, cost and metric."""
    runs, rows = networks(tables), []
    for kind in kinds_in(runs):
        of_kind, made = runs[runs["kind"] == kind], KINDS[kind]
        rows.append(
            {
                "kind": kind,
                "task": made.task,
                "blocks": made.num_blocks,
                "width": made.width,
                "steps": made.num_steps,
                "judges": "yes" if made.judges else "no",
                "networks": len(of_kind),
                "cost": _cell(of_kind["cost"].tolist()),
                "metric": _cell(of_kind["metric"].tolist()),
            }
        )
    return pd.DataFrame(rows)


def correlation_table(tables: Tables) -> pd.DataFrame:
    """Mean rank correlation and its 95 % interval over seeds, a column a kind, sorted by the kinds to choose on."""
    found = correlations(tables)
    kinds = kinds_in(found)
    chosen_on = found[found["kind"].isin([kind for kind in kinds if not KINDS[kind].judges])]
    order = chosen_on.groupby("score")["rho"].mean().sort_values(ascending=False, kind="stable").index
    rows = []
    for score in order:
        of_score = found[found["score"] == score]
        cells = {kind: _cell(of_score[of_score["kind"] == kind]["rho"].tolist()) for kind in kinds}
        rows.append({"score": score, **cells})
    return pd.DataFrame(rows)


def difference_table(tables: Tables) -> pd.DataFrame:
    """Paired differences of rank correlations with those of block influence; a star where the interval leaves 0 out."""
    found = correlations(tables).pivot(index=["kind", "seed"], columns="score", values="rho")
    kinds, rows = kinds_in(found.reset_index()), []
    for score in found.columns.difference([REFERENCE, "random"]):
        row = {"score": score}
        for kind in kinds:
            row[kind] = difference_cell((found.loc[kind, score] - found.loc[kind, REFERENCE]).tolist())
        rows.append(row)
    return pd.DataFrame(rows)


def removal_table(tables: Tables) -> pd.DataFrame:
    """Metric without a quarter, three eighths and half of the blocks, and after a little more training."""
    removals = with_networks(tables, "removals")
    rows = []
    for kind in kinds_in(removals):
        whole = networks(tables)[networks(tables)["kind"] == kind]["metric"]
        half = KINDS[kind].num_blocks // 2
        for way in _ONCE:
            of_way = removals[(removals["kind"] == kind) & (removals["way"] == way)]
            row: dict[str, object] = {"kind": kind, "removed by": way, "whole": f"{whole.mean():.3f}"}
            for share in (0.5, 0.75, 1.0):
                there = of_way[of_way["removed"] == max(1, round(share * half))]
                tuned = there["tuned metric"].dropna()
                told = f" ({tuned.mean():.3f})" if len(tuned) else ""
                row[f"{share:g} × L/2"] = f"{there['metric'].mean():.3f}{told}"
            rows.append(row)
    return pd.DataFrame(rows)


def kept_table(tables: Tables) -> pd.DataFrame:
    """How many blocks can go before the mean metric leaves the 95 % interval of the whole networks, over seeds."""
    removals, rows = with_networks(tables, "removals"), []
    for kind in kinds_in(removals):
        mean, half = interval(networks(tables)[networks(tables)["kind"] == kind]["metric"].to_numpy())
        row: dict[str, object] = {"kind": kind, "blocks": KINDS[kind].num_blocks, "metric": f"{mean:.3f} ± {half:.3f}"}
        for way in ("last", REFERENCE, "first order", "ablate_path", "ablate_path, greedy"):
            of_way = removals[(removals["kind"] == kind) & (removals["way"] == way)]
            means = of_way.groupby("removed")["metric"].mean()
            inside = (means >= mean - half).tolist()
            row[way] = inside.index(False) if False in inside else len(inside)
        rows.append(row)
    return pd.DataFrame(rows)


def generated_table(tables: Tables) -> pd.DataFrame:
    """Shares of characters that are right: each after its own text, and one after another from a prompt."""
    runs, removals = networks(tables), with_networks(tables, "removals")
    if "generated" not in runs:
        return pd.DataFrame()
    rows = []
    for kind in kinds_in(runs[runs["generated"].notna()]):
        is_half = (removals["kind"] == kind) & (removals["removed"] == KINDS[kind].num_blocks // 2)
        parts = {"whole": runs[runs["kind"] == kind]}
        for way in (REFERENCE, "ablate_path, greedy", "last"):
            parts[f"half gone, {way}"] = removals[is_half & (removals["way"] == way)]
        for what, part in parts.items():
            cells = {"next character": _cell(part["metric"].tolist()), "written": _cell(part["generated"].tolist())}
            rows.append({"kind": kind, "network": what, **cells})
    return pd.DataFrame(rows)


def early_table(tables: Tables) -> pd.DataFrame:
    """Rank correlation of scores early in training with the cost of removal at its end."""
    early, blocks, rows = with_networks(tables, "early"), with_networks(tables, "blocks"), []
    scores = [column for column in tables["early"].columns if column in SCORES or column == "increase"]
    for (kind, share), part in early.groupby(["kind", "share"]):
        row: dict[str, object] = {"kind": kind, "share of training": share}
        merged = part.merge(blocks[["run", "layer", "increase"]], on=["run", "layer"], suffixes=("", " at the end"))
        for score in scores:
            each = [one[score].corr(one["increase at the end"], method="spearman") for _, one in merged.groupby("run")]
            row["measured then" if score == "increase" else score] = _cell(each)
        rows.append(row)
    return pd.DataFrame(rows)


def batch_table(tables: Tables) -> pd.DataFrame:
    """Rank correlation of scores read on one batch with the same on all batches."""
    blocks, rows = with_networks(tables, "blocks"), []
    scores = [column.removesuffix(_ONE) for column in blocks.columns if column.endswith(_ONE)]
    for kind in kinds_in(blocks):
        row: dict[str, object] = {"kind": kind}
        for score in scores:
            of_kind = blocks[blocks["kind"] == kind].groupby("run")
            row[score] = _cell([one[score].corr(one[score + _ONE], method="spearman") for _, one in of_kind])
        rows.append(row)
    return pd.DataFrame(rows)


def steps_table(tables: Tables) -> pd.DataFrame:
    """What removing single blocks costs, with equal and with adaptive step-sizes: least, median and greatest."""
    rows = []
    for steps in ("equal", "adaptive"):
        blocks = with_networks(tables, "blocks", steps)
        runs = networks(tables, steps)
        for kind, part in blocks.groupby("kind"):
            if kind not in set(networks(tables, "adaptive")["kind"]):
                continue
            each = part.groupby("run")["increase"]
            costs = runs[runs["kind"] == kind]["cost"].tolist()
            row = {"kind": kind, "steps": steps, "networks": f"{len(costs)}", "cost": _cell(costs)}
            for name, values in {"least": each.min(), "median": each.median(), "greatest": each.max()}.items():
                row[name] = _cell(values.tolist())
            rows.append(row)
    return pd.DataFrame(rows)


def all_tables(tables: Tables) -> dict[str, pd.DataFrame]:
    """Every table by name."""
    return {
        "networks": network_table(tables),
        "correlations": correlation_table(tables),
        "differences": difference_table(tables),
        "removals": removal_table(tables),
        "kept": kept_table(tables),
        "early": early_table(tables),
        "batches": batch_table(tables),
        "generated": generated_table(tables),
        **({"steps": steps_table(tables)} if len(networks(tables, "adaptive")) else {}),
    }
