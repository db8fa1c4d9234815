"""The frame of the studies: stopped anywhere, they go on where they were; intervals are Student's."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from examples.paper.__main__ import STUDIES
from examples.paper.statistics import geometric, interval, paired, summary
from examples.paper.study import RUNS, Results, Study, name_of, run


@dataclass(frozen=True)
class Setting:
    seed: int
    depth: float = 0.5


class Measurement:
    """Squares of seeds; fails at one seed, and knows what it was asked."""

    def __init__(self, fails_at=None):
        self.asked, self.fails_at = [], fails_at

    def __call__(self, setting):
        self.asked.append(setting.seed)
        if setting.seed == self.fails_at:
            raise KeyboardInterrupt
        return {RUNS: [{"square": setting.seed**2}], "layers": [{"layer": layer} for layer in (1, 2)]}


def study_of(measure, num=4):
    return Study("toy", lambda reduced: [Setting(seed) for seed in range(num)], measure, lambda tables: {})


def test_a_stopped_study_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(study_of(Measurement(fails_at=2)), tmp_path, reduced=False, workers=1)
    assert sorted(Results(tmp_path).tables[RUNS]["seed"]) == [0, 1]
    measure = Measurement()
    results = run(study_of(measure), tmp_path, reduced=False, workers=1)
    assert measure.asked == [2, 3]
    for tables in (results.tables, Results(tmp_path).tables):
        assert list(tables[RUNS]["square"]) == [0, 1, 4, 9]
        assert list(tables["layers"]["layer"]) == [1, 2] * 4


def test_rows_of_a_run_that_has_no_summary_do_not_count(tmp_path):
    """The summary is written last: without it the run was cut short, and is measured again."""
    run(study_of(Measurement(), num=2), tmp_path, reduced=False, workers=1)
    runs = pd.read_csv(tmp_path / f"{RUNS}.csv")
    runs[runs["seed"] == 0].to_csv(tmp_path / f"{RUNS}.csv", index=False)
    measure = Measurement()
    results = run(study_of(measure, num=2), tmp_path, reduced=False, workers=1)
    assert measure.asked == [1]
    assert len(results.tables["layers"]) == 4


def test_a_run_is_named_by_its_whole_setting():
    assert name_of(Setting(3, 0.25)) == name_of(Setting(3, 0.25)) != name_of(Setting(3, 0.5))
    for study in STUDIES.values():
        for reduced in (False, True):
            settings = study.settings(reduced)
            assert len({name_of(setting) for setting in settings}) == len(settings) > 0


def test_intervals_are_students():
    """Of 1, 2, 3: t(0.975, 2) = 4.30265, deviation 1."""
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.30265 / 3**0.5), rel=1e-5)
    assert interval([5.0])[0] == 5.0
    assert np.isnan([interval([5.0])[1], *interval([])]).all()


def test_means_by_group():
    table = pd.DataFrame({"depth": [1, 1, 2, 2], "error": [1.0, 3.0, 5.0, 5.0]})
    found = summary(table, ["depth"], "error")
    assert found[["n", "mean", "half"]].to_numpy().tolist() == [
        [2, 2.0, pytest.approx(12.7062, rel=1e-5)],
        [2, 5.0, 0.0],
    ]


def test_differences_are_paired():
    """Seeds that differ by ten, schemes by one: the difference is one, exactly."""
    base = pd.DataFrame({"seed": [0, 1, 2], "error": [10.0, 20.0, 30.0]})
    other = pd.DataFrame({"seed": [2, 1, 0], "error": [29.0, 19.0, 9.0]})
    assert paired(base, other, ["seed"], "error") == (3, 1.0, 0.0)


def test_means_for_a_logarithmic_axis_are_geometric():
    """Of 1 and 100: log 10 twice, ± t(0.975, 1) = 12.7062 times log 10."""
    found = geometric(pd.DataFrame({"depth": [1, 1], "gap": [1.0, 100.0]}), ["depth"], "gap")
    assert found["mean"].tolist() == pytest.approx([10.0])
    assert np.log10(found[["low", "high"]].to_numpy()[0]) == pytest.approx([1 - 12.7062, 1 + 12.7062], rel=1e-5)
