"""Rules of adapting step-sizes: against what they are by definition, additive over samples."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_leaky.functional import (
    KineticEnergyRule,
    RelativeDistanceRule,
    features,
    relative_distances,
    resolve_rule,
)


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


@given(seed=st.integers(0, 10**6), depth=st.sampled_from([0.0, 0.5, 7.0]), samples=st.integers(1, 12))
def test_kinetic_energy_is_the_speed_in_the_k_norm(seed, depth, samples):
    """√tr(VᵀK⁻¹V) with K + γI inverted as it stands."""
    path, rho = path_of(seed, samples=samples)
    rule = KineticEnergyRule(gamma_rel=1e-2, floor=0.05)
    found = rule.distances(sums_of(rule, path), rho, effective_depth=depth)
    for number, (before, after) in enumerate(itertools.pairwise(path)):
        kernel = features(before) @ features(before).T
        gamma = 1e-2 * torch.linalg.matrix_norm(kernel, ord=2)
        velocity = (after - before) / rho[number]
        square = torch.trace(
            velocity.T @ torch.linalg.inv(kernel + gamma * torch.eye(samples, dtype=torch.float64)) @ velocity
        )
        expected = square.sqrt() / (depth or 1.0) + 0.05
        torch.testing.assert_close(found[number], expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("settings", [{"activation": "gelu"}, {"constant_column": False}])
def test_kinetic_energy_has_the_networks_features(settings):
    path, rho = path_of(0)
    rule = KineticEnergyRule(gamma_rel=1.0, floor=0.0, **settings)
    sigma = features(path[0], **settings)
    kernel = sigma @ sigma.T
    stable = kernel + torch.linalg.matrix_norm(kernel, ord=2) * torch.eye(7, dtype=torch.float64)
    velocity = (path[1] - path[0]) / rho[0]
    expected = torch.trace(velocity.T @ torch.linalg.inv(stable) @ velocity).sqrt() / 2
    torch.testing.assert_close(rule.distances(sums_of(rule, path), rho, 2.0)[0], expected)


@pytest.mark.parametrize("rule", [RelativeDistanceRule(), KineticEnergyRule()])
def test_sums_of_parts_add_up(rule):
    path, _ = path_of(1)
    whole, parts = sums_of(rule, path), sums_of(rule, path[:, :3]) + sums_of(rule, path[:, 3:])
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", [RelativeDistanceRule(), KineticEnergyRule(floor=0.0)])
def test_distances_are_per_unit_of_p(rule):
    """The same path, passed through twice as fast."""
    path, rho = path_of(2)
    sums = sums_of(rule, path)
    torch.testing.assert_close(rule.distances(sums, rho / 2, 3.0), 2 * rule.distances(sums, rho, 3.0))


def test_names_stand_for_rules():
    assert resolve_rule("relative_distance") == RelativeDistanceRule()
    assert resolve_rule("kinetic_energy") == KineticEnergyRule()
    own = KineticEnergyRule(floor=0.5)
    assert resolve_rule(own) is own


@pytest.mark.parametrize("rule", ["kinetic", 3, None, KineticEnergyRule])
def test_other_rules_are_refused(rule):
    with pytest.raises(ValueError, match=r"`rule` must be one of.*kinetic_energy"):
        resolve_rule(rule)


@pytest.mark.parametrize(("name", "value"), [("floor", -0.1), ("gamma_rel", 0.0), ("gamma_rel", -1.0)])
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        KineticEnergyRule(**{name: value})
