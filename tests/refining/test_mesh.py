"""Estimated errors against exact solutions of the differential equation; the mesh against its promises."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_leaky.functional import equidistant_step_sizes, normalise_step_sizes
from lightning_leaky.refining import discretisation_errors, refined_step_sizes
from lightning_leaky.refining.mesh import merged_errors
from tests.strategies import generator_of, normal, seeds

meshes = st.lists(st.floats(1e-2, 1.0), min_size=1, max_size=10).map(
    lambda sizes: normalise_step_sizes(torch.tensor(sizes))
)
NO_LIMIT = 10**6


def uneven(num_layers):
    """Every other layer twice as long as its neighbours, as splitting makes them."""
    return normalise_step_sizes(torch.tensor([1.0, 2.0]).repeat(num_layers // 2))


# The errors: ∂_pA = A M(p), whose Euler steps and whose solution are known.


def euler_path(start, matrix_at, rho):
    path, place = [start], 0.0
    for size in rho.tolist():
        path.append(path[-1] + size * path[-1] @ matrix_at(place))
        place += size
    return torch.stack(path)


@pytest.mark.parametrize("mesh", [equidistant_step_sizes, uneven], ids=["equidistant", "uneven"])
def test_constant_weights_against_the_exact_solution(mesh):
    """Estimate over true error of a step tends to 1, at first order; e_l is of second order, Σ e_l of first."""
    generator = generator_of(0)
    start, matrix = normal(7, 4, generator=generator), normal(4, 4, generator=generator)
    defects, totals, largest = [], [], []
    for num_layers in (40, 80, 160):
        rho = mesh(num_layers)
        path = euler_path(start, lambda _: matrix, rho)
        exact = torch.stack([one @ torch.matrix_exp(size * matrix) for one, size in zip(path[:-1], rho, strict=True)])
        true = (exact - path[1:]).norm(dim=(1, 2)) / path[1:].norm(dim=(1, 2))
        found = discretisation_errors(path, rho)
        defects.append(float((found / true - 1).abs().max()))
        totals.append(float(found.sum()))
        largest.append(float(found.max()))
    assert defects[-1] < 0.02
    for values, order in ((defects, 1), (totals, 1), (largest, 2)):
        for coarse, fine in itertools.pairwise(values):
            assert coarse / fine == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize("mesh", [equidistant_step_sizes, uneven], ids=["equidistant", "uneven"])
def test_weights_that_change_with_p_against_the_exact_acceleration(mesh):
    """a' = w(p) a with w = 1 − 2p: a = exp(p − p²), and a'' = (w² − 2) a."""
    rho = mesh(400)
    path = euler_path(torch.ones(1, 1).double(), lambda place: torch.full((1, 1), 1 - 2 * place).double(), rho)
    places = rho.cumsum(0) - rho
    expected = rho**2 / 2 * ((1 - 2 * places) ** 2 - 2).abs()
    torch.testing.assert_close(discretisation_errors(path, rho), expected, rtol=0.02, atol=0)


@given(seed=seeds, rho=meshes.filter(lambda rho: len(rho) > 1))
def test_a_straight_path_at_constant_speed_has_no_error(seed, rho):
    start, speed = normal(2, 5, 3, generator=generator_of(seed))
    places = torch.cat([torch.zeros(1).double(), rho.cumsum(0)])
    assert bool((discretisation_errors(start + places[:, None, None] * speed, rho) < 1e-12).all())


@given(seed=seeds, scale=st.sampled_from([1e-6, 1e6]))
def test_is_relative(seed, scale):
    path, rho = normal(6, 5, 3, generator=generator_of(seed)), equidistant_step_sizes(5)
    torch.testing.assert_close(discretisation_errors(scale * path, rho), discretisation_errors(path, rho))


def test_errors_of_what_is_zero_are_undefined():
    assert not torch.isfinite(discretisation_errors(torch.zeros(3, 2, 2), equidistant_step_sizes(2))).any()


# The mesh. √e adds up along p where errors go with ρ²: a model of errors that every mesh can be asked for.


class Bends:
    """Errors of any mesh whose ends are among those of an ever halved first one, from √e per unit of p on the first."""

    def __init__(self, rho, densities):
        self.ends = torch.cat([torch.zeros(1).double(), rho.cumsum(0)])
        self.densities = torch.tensor(densities).double()

    def errors(self, rho):
        ends = torch.cat([torch.zeros(1).double(), rho.cumsum(0)])
        overlap = torch.minimum(ends[1:, None], self.ends[None, 1:]) - torch.maximum(
            ends[:-1, None], self.ends[None, :-1]
        )
        return (overlap.clamp(min=0) @ self.densities).square()


bent = st.tuples(meshes, st.data()).map(
    lambda drawn: (
        drawn[0],
        drawn[1].draw(st.lists(st.floats(0.0, 10.0), min_size=len(drawn[0]), max_size=len(drawn[0]))),
    )
)
tolerances = st.floats(0.1, 10.0)


@given(problem=bent, tolerance=tolerances, limit=st.integers(1, 20), least=st.integers(1, 20))
def test_one_call_keeps_its_promises(problem, tolerance, limit, least):
    rho, densities = problem
    errors = Bends(rho, densities).errors(rho)
    limit, least, longest = max(limit, least), min(limit, least), 0.5
    new = refined_step_sizes(rho, errors, tolerance, limit, least, longest)
    assert new.dtype == torch.float64
    assert float(new.sum()) == pytest.approx(1, abs=1e-12)
    assert bool((new > 0).all())
    assert len(new) <= max(limit, len(rho))
    assert len(new) >= min(least, len(rho))
    assert set(new.tolist()) <= set(rho.tolist()) | set((rho / 2).tolist()) | set((rho[1:] + rho[:-1]).tolist())
    made_longer = [size for size in new.tolist() if size not in rho.tolist() and size not in (rho / 2).tolist()]
    assert all(size <= longest * (1 + 1e-9) for size in made_longer)


@given(problem=bent, tolerance=tolerances)
def test_repeated_calls_end_below_the_tolerance(problem, tolerance):
    """And then nothing changes any more."""
    rho, densities = problem
    bends = Bends(rho, densities)
    for _ in range(60):
        new = refined_step_sizes(rho, bends.errors(rho), tolerance, NO_LIMIT)
        if new.tolist() == rho.tolist():
            break
        rho = new
    assert new.tolist() == rho.tolist()
    assert float(bends.errors(rho).sum()) <= tolerance


@given(problem=bent, tolerance=tolerances)
def test_nothing_is_split_within_the_tolerance_and_nothing_merged_above_a_quarter(problem, tolerance):
    rho, densities = problem
    errors = Bends(rho, densities).errors(rho)
    new = refined_step_sizes(rho, errors, tolerance, NO_LIMIT)
    to_merge = bool((merged_errors(errors) <= 0.25 * tolerance / len(rho)).any())
    if errors.sum() <= tolerance:
        assert len(new) <= len(rho)
        assert to_merge or torch.equal(new, rho)
    if not to_merge:
        assert len(new) >= len(rho)
        assert errors.sum() <= tolerance or len(new) > len(rho)


def test_the_worst_layers_are_split_first():
    rho = equidistant_step_sizes(4)
    errors = torch.tensor([0.3, 0.5, 0.2, 0.4])
    halves = [rho[0] / 2] * 2
    assert refined_step_sizes(rho, errors, 0.1, max_layers=5).tolist() == [0.25, *halves, 0.25, 0.25]
    assert refined_step_sizes(rho, errors, 0.1, max_layers=6).tolist() == [0.25, *halves, 0.25, *halves]
    assert torch.equal(refined_step_sizes(rho, errors, 0.1, max_layers=3), rho)
    # 1.4 − ½ 0.5 − ½ 0.4 = 0.95: two are enough for 1, though three are above their share of 0.25.
    assert len(refined_step_sizes(rho, errors, 1.0, max_layers=9)) == 6


def test_a_layer_below_its_share_is_not_split_for_another():
    """One call cannot halve the worst layer twice, and halving the rest would not help."""
    rho, errors = equidistant_step_sizes(4), torch.tensor([10.0, 0.02, 0.02, 0.02])
    assert refined_step_sizes(rho, errors, 0.1, NO_LIMIT).tolist() == [0.125, 0.125, 0.25, 0.25, 0.25]


def test_cheap_neighbours_are_merged_in_pairs():
    rho, errors = equidistant_step_sizes(5), torch.tensor([1e-4, 1e-4, 1e-4, 1e-4, 0.5])
    assert refined_step_sizes(rho, errors, 1.0, NO_LIMIT).tolist() == pytest.approx([0.4, 0.4, 0.2])
    assert refined_step_sizes(rho, errors, 1.0, NO_LIMIT, min_layers=4).tolist() == pytest.approx([0.4, 0.2, 0.2, 0.2])
    assert torch.equal(refined_step_sizes(rho, errors, 1.0, NO_LIMIT, max_step_size=0.3), rho)


def test_a_split_layer_is_not_merged_again():
    """Its halves, merged, have the error for which it was split: four times what may be merged, and more."""
    rho, errors = equidistant_step_sizes(2), torch.tensor([0.51, 0.5])
    new = refined_step_sizes(rho, errors, 1.0, NO_LIMIT)
    assert len(new) == 3
    assert torch.equal(refined_step_sizes(new, torch.tensor([0.51 / 4, 0.51 / 4, 0.5]), 1.0, NO_LIMIT), new)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tolerance", {"tolerance": 0.0}),
        ("max_layers", {"max_layers": 1, "min_layers": 2}),
        ("min_layers", {"min_layers": 0}),
        ("errors", {"errors": torch.tensor([1.0, float("nan")])}),
        ("errors", {"errors": torch.tensor([1.0, -1.0])}),
        ("errors", {"errors": torch.ones(3)}),
        ("step_sizes", {"step_sizes": torch.ones(2)}),
    ],
)
def test_wrong_arguments_are_named(name, changes):
    arguments = {"step_sizes": equidistant_step_sizes(2), "errors": torch.ones(2), "tolerance": 1.0, "max_layers": 4}
    with pytest.raises(ValueError, match=f"`{name}`"):
        refined_step_sizes(**(arguments | changes))
