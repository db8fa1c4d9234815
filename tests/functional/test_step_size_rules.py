"""Rules of adapting step-sizes: against what they are by definition, additive over samples."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_leaky.functional import (
    KNorm,
    RelativeDistanceRule,
    SwitchesRule,
    features,
    relative_distances,
    relative_speed,
    resolve_rule,
)
from lightning_leaky.functional.step_size_rules import RelativeSpeedRule


def path_of(seed, num_layers=3, samples=7, width=4):
    generator = torch.Generator().manual_seed(seed)
    path = torch.randn(num_layers + 1, samples, width, generator=generator, dtype=torch.float64)
    rho = torch.rand(num_layers, generator=generator, dtype=torch.float64) + 0.1
    return path, rho / rho.sum()


def sums_of(rule, path):
    return torch.stack([rule.sums(before, after) for before, after in itertools.pairwise(path)])


@given(seed=st.integers(0, 10**6))
def test_relative_distance_is_the_papers(seed):
    path, rho = path_of(seed)
    rule = RelativeDistanceRule()
    found = rule.distances(sums_of(rule, path), rho, effective_depth=2.0)
    torch.testing.assert_close(found, relative_distances(path, rho), rtol=1e-12, atol=0)


@given(seed=st.integers(0, 10**6), name=st.sampled_from(["relu", "linear", "crelu"]), width=st.integers(1, 5))
def test_relative_speed_is_that_of_each_layer_per_unit_of_p(seed, name, width):
    path, rho = path_of(seed, width=width)
    rule = RelativeSpeedRule(gamma_rel=1e-2, features=name)
    found = rule.distances(sums_of(rule, path), rho, effective_depth=2.0)
    before, after = path[:-1], path[1:]
    pairs = zip(before, after, strict=True)
    speeds = [relative_speed(one, other, KNorm(gamma_rel=1e-2), features(one, name)) for one, other in pairs]
    torch.testing.assert_close(found, torch.stack(speeds) / rho, rtol=1e-9, atol=0)


@given(seed=st.integers(0, 10**6), floor=st.sampled_from([0.0, 0.1, 2.0]))
def test_switches_are_counted_entry_by_entry(seed, floor):
    path, rho = path_of(seed)
    rule = SwitchesRule(floor)
    found = rule.distances(sums_of(rule, path), rho, effective_depth=2.0)
    rates = []
    for number, (before, after) in enumerate(itertools.pairwise(path.tolist())):
        pairs = [pair for rows in zip(before, after, strict=True) for pair in zip(*rows, strict=True)]
        rates.append(sum((x > 0) != (y > 0) for x, y in pairs) / len(pairs) / float(rho[number]))
    expected = [rate + floor * sum(rates) / len(rates) for rate in rates]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_switches_do_not_see_how_far_an_entry_moves():
    """Zero is off, as it is for ReLU."""
    rule = SwitchesRule(floor=0.0)
    before, after = torch.tensor([[0.0, -1.0, 2.0, 3.0]]), torch.tensor([[0.5, -9.0, 200.0, 0.0]])
    assert rule.sums(before, after).tolist() == [2.0, 4.0]


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_diverged_layer_has_no_distance(broken):
    path, rho = path_of(3)
    path[2, 0, 0] = broken
    assert not torch.isfinite(SwitchesRule().distances(sums_of(SwitchesRule(), path), rho, 2.0)).any()
    speeds = RelativeSpeedRule().distances(sums_of(RelativeSpeedRule(), path), rho, 2.0)
    assert torch.isfinite(speeds).tolist() == [True, False, False]


@pytest.mark.parametrize("rule", [RelativeDistanceRule(), SwitchesRule(), RelativeSpeedRule()])
def test_sums_of_parts_add_up(rule):
    path, _ = path_of(1)
    whole, parts = sums_of(rule, path), sums_of(rule, path[:, :3]) + sums_of(rule, path[:, 3:])
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", [RelativeDistanceRule(), SwitchesRule(), RelativeSpeedRule()])
def test_distances_are_per_unit_of_p(rule):
    """The same path, passed through twice as fast."""
    path, rho = path_of(2)
    sums = sums_of(rule, path)
    torch.testing.assert_close(rule.distances(sums, rho / 2, 3.0), 2 * rule.distances(sums, rho, 3.0))


def test_names_stand_for_rules():
    assert resolve_rule("relative_distance") == RelativeDistanceRule()
    assert resolve_rule("switches") == SwitchesRule()
    assert resolve_rule("relative_speed") == RelativeSpeedRule()
    own = SwitchesRule(floor=0.5)
    assert resolve_rule(own) is own


@pytest.mark.parametrize("rule", ["switch", 3, None, SwitchesRule])
def test_other_rules_are_refused(rule):
    with pytest.raises(ValueError, match=r"`rule` must be one of.*switches"):
        resolve_rule(rule)


@pytest.mark.parametrize("floor", [-0.1, float("nan"), float("inf")])
def test_floors_out_of_range_are_refused(floor):
    with pytest.raises(ValueError, match="`floor` must be"):
        SwitchesRule(floor)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"gamma_rel": 0.0}, "`gamma_rel` must be .*got 0.0"), ({"features": "cubic"}, "`features` must be one of")],
)
def test_a_norm_that_is_none_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RelativeSpeedRule(**arguments)
