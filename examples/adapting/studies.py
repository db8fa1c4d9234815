"""Studies: all schemes at one learning rate, learning rates of the best, seeds that judge, and fewer steps."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from examples.adapting.figures import all_figures
from examples.adapting.runs import NUM_STEPS, Setting, ShorterSetting, measure
from examples.adapting.schemes import EQUIDISTANT, FALLING, FIXED, PAPER, SCHEMES, STARTED_SMALL
from examples.adapting.tables import (
    Tables,
    chosen_rates,
    judging_tables,
    screening_tables,
    shorter_tables,
    tuning_tables,
)
from examples.paper.__main__ import ROOT
from examples.paper.study import RUNS, Results, Study

RATES = {"gpt 8": (4.0, 8.0, 16.0), "gpt 16": (2.0, 4.0, 8.0), "vit": (1.0, 2.0, 4.0), "resnet": (1.0, 2.0, 4.0)}
"""Learning rates that every scheme of a kind tries; the middle one was good for equidistant steps, and screens."""
SCREENED = "gpt 8"
TUNING_SEEDS, JUDGING_SEEDS = (100, 101), (0, 1, 2, 3, 4)
NUM_SURVIVORS, NUM_ELSEWHERE = 3, 1
"""How many schemes that adapt go on besides the paper's rule: on the kind that screens, and on the others."""
_RESULTS = ROOT / "examples" / "adapting" / "results"
_REDUCED = (EQUIDISTANT, PAPER, "upside down, kept", "rates")


def screening_settings(reduced: bool) -> list[Setting]:
    """Every scheme on one kind at one learning rate, seed by seed."""
    if reduced:
        return [Setting(SCREENED, scheme, 100, 8.0, shrink=4) for scheme in _REDUCED]
    rate = RATES[SCREENED][1]
    return [Setting(SCREENED, scheme, seed, rate) for seed in TUNING_SEEDS for scheme in SCHEMES]


def tuning_settings(reduced: bool) -> list[Setting]:
    """Every learning rate for each scheme that goes on, kind by kind, without what was screened."""
    if reduced:
        return [Setting(SCREENED, scheme, 100, 4.0, shrink=4) for scheme in _REDUCED]
    return [
        Setting(kind, scheme, seed, rate)
        for kind in NUM_STEPS
        for seed in TUNING_SEEDS
        for scheme in survivors(_runs("screening"), kind)
        for rate in RATES[kind]
        if (kind, rate) != (SCREENED, RATES[SCREENED][1])
    ]


def judging_settings(reduced: bool) -> list[Setting]:
    """Each scheme at its best learning rate on seeds of their own, for kinds whose learning rates are all tried."""
    if reduced:
        return [Setting(SCREENED, scheme, seed, 8.0, judges=True, shrink=4) for seed in (0, 1) for scheme in _REDUCED]
    trials = pd.concat([_runs("screening"), _runs("tuning")])
    best = chosen_rates(trials)
    finished = [kind for kind in NUM_STEPS if _is_tuned(trials, kind)]
    return [
        Setting(kind, scheme, seed, best[kind, scheme], judges=True)
        for kind in finished
        for seed in JUDGING_SEEDS
        for scheme in survivors(_runs("screening"), kind)
    ]


def shorter_settings(reduced: bool) -> list[ShorterSetting]:
    """Fewer steps, with a schedule of their own, at the learning rates and for the seeds that judge."""
    chosen = [one for one in judging_settings(reduced) if one.scheme != PAPER]
    few = ["rates"] if reduced else survivors(_runs("screening"), "")
    return [ShorterSetting(**vars(one)) for one in chosen if one.scheme in few]


def survivors(screened: pd.DataFrame, kind: str) -> Sequence[str]:
    """Schemes that go on for a kind, none before all are screened.

    Equidistant and falling steps, the paper's rule, the best of the others that adapt, by their mean loss, and those
    that ask whether a good start is enough.

    Args:
        screened: Runs of the screening.
        kind: The kind.
    """
    if len(screened) < len(TUNING_SEEDS) * len(SCHEMES):
        return []
    number = NUM_SURVIVORS if kind == SCREENED else NUM_ELSEWHERE
    always = [EQUIDISTANT, PAPER, FALLING]
    others = screened[~screened["scheme"].isin([*always, *FIXED, *STARTED_SMALL])]
    best = others.groupby("scheme")["loss"].mean().sort_values().index
    return [*always, *best[:number], *STARTED_SMALL]


def _is_tuned(trials: pd.DataFrame, kind: str) -> bool:
    found = set(zip(trials["kind"], trials["scheme"], trials["seed"], trials["rate"], strict=True))
    chosen = survivors(_runs("screening"), kind)
    wanted = {(kind, scheme, seed, rate) for scheme in chosen for seed in TUNING_SEEDS for rate in RATES[kind]}
    return len(wanted) > 0 and wanted <= found


def _runs(name: str) -> pd.DataFrame:
    """Runs so far of a study."""
    tables = Results(_RESULTS / name).tables
    return tables.get(RUNS, pd.DataFrame(columns=["kind", "scheme", "seed", "rate", "loss"]))


def _tuning_tables(tables: Tables) -> dict[str, pd.DataFrame]:
    return tuning_tables(pd.concat([_runs("screening"), tables[RUNS]]))


def _shorter_tables(tables: Tables) -> dict[str, pd.DataFrame]:
    return shorter_tables(tables, _runs("judging"))


STUDIES = (
    Study("screening", screening_settings, measure, all_figures, screening_tables),
    Study("tuning", tuning_settings, measure, lambda _: {}, _tuning_tables),
    Study("judging", judging_settings, measure, all_figures, judging_tables),
    Study("shorter", shorter_settings, measure, lambda _: {}, _shorter_tables),
)
