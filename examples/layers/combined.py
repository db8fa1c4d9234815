"""One score, or two together, chosen on some kinds of network and judged on the others."""

from __future__ import annotations

from itertools import combinations_with_replacement

import pandas as pd

from examples.layers.kinds import KINDS
from examples.layers.scores import SCORES, WITH_GRADIENTS
from examples.layers.tables import REFERENCE, Tables, difference_cell, with_networks

CANDIDATES = tuple(name for name in SCORES if name not in (*WITH_GRADIENTS, "last", "random"))
"""Scores that need no gradients."""


def pair_correlations(tables: Tables) -> pd.DataFrame:
    """Rank correlation of the mean rank by two scores with the measured cost; a row a network, a column a pair.

    Two times the same score is that score.
    """
    rows = {}
    for (kind, seed), blocks in with_networks(tables, "blocks").groupby(["kind", "seed"]):
        ranks = blocks[list(CANDIDATES)].rank()
        pairs = {
            " + ".join(dict.fromkeys(pair)): ranks[list(pair)].mean(axis=1)
            for pair in combinations_with_replacement(CANDIDATES, 2)
        }
        rows[kind, seed] = pd.DataFrame(pairs).corrwith(blocks["increase"], method="spearman")
    return pd.DataFrame(rows).T.rename_axis(["kind", "seed"])


def choice_table(tables: Tables) -> pd.DataFrame:
    """The best score and the best pair on the kinds to choose on, less block influence on those that judge."""
    found = pair_correlations(tables)
    by_kind = found.groupby("kind").mean()
    choosing = by_kind.loc[[kind for kind in by_kind.index if not KINDS[kind].judges]].mean()
    judging = [kind for kind in KINDS if kind in by_kind.index and KINDS[kind].judges]
    rows = []
    for what, names in {"one score": list(CANDIDATES), "one or two": list(found.columns)}.items():
        best = str(choosing[names].idxmax())
        row: dict[str, object] = {"chosen from": what, "chosen": best, "on the choosing kinds": f"{choosing[best]:.2f}"}
        difference = found[best] - found[REFERENCE]
        row |= {kind: difference_cell(difference.loc[kind].tolist()) for kind in judging}
        rows.append(row)
    return pd.DataFrame(rows)
