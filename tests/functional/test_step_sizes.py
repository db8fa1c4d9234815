"""Step-size schemes against their formulas, the adaptive iteration against its fixed point, the bound on the leak."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lightning_leaky.functional import (
    adaptive_step_sizes,
    cap_step_sizes,
    check_step_sizes,
    equidistant_step_sizes,
    irregular_step_sizes,
    normalise_step_sizes,
    relative_distances,
)
from lightning_leaky.functional.step_sizes import distances_are_usable
from tests.strategies import generator_of, normal, problems, seeds

num_layers = st.integers(1, 200)
unevenness = st.floats(0.0, 1.0, exclude_max=True)
distributions = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=30).map(
    lambda numbers: torch.tensor(numbers, dtype=torch.float64) / sum(numbers)
)


def sums_to_one(rho):
    return abs(math.fsum(rho.tolist()) - 1) <= 4e-16 * max(4, len(rho)) and bool((rho > 0).all())


@given(num_layers=num_layers)
def test_equidistant(num_layers):
    rho = equidistant_step_sizes(num_layers)
    assert rho.shape == (num_layers,)
    assert rho.dtype == torch.float64
    assert sums_to_one(rho)
    assert set(rho.tolist()) == {1 / num_layers}


@given(num_layers=num_layers, unevenness=unevenness)
def test_irregular_is_its_formula_normalised(num_layers, unevenness):
    L, a = num_layers, unevenness
    literal = [1 / L + (a / L) * (1 / 4 - abs(layer / L - 1 / 2)) for layer in range(1, L + 1)]
    rho = irregular_step_sizes(L, a)
    assert sums_to_one(rho)
    assert rho.tolist() == pytest.approx([value / math.fsum(literal) for value in literal], rel=1e-13)


def test_irregular_is_smaller_near_both_ends_and_equidistant_without_unevenness():
    rho = irregular_step_sizes(20)
    assert rho.argmax() == 9
    assert bool((rho[:10].diff() > 0).all())
    assert bool((rho[9:].diff() < 0).all())
    assert torch.equal(irregular_step_sizes(20, 0.0), equidistant_step_sizes(20))


@given(rho=distributions, data=st.data())
def test_adaptive_update_is_its_formula(rho, data):
    distances = torch.tensor(data.draw(st.lists(st.floats(1e-3, 1e3), min_size=len(rho), max_size=len(rho)))).double()
    damping = data.draw(st.floats(1e-3, 1.0))
    target = [1 / c / math.fsum(1 / c for c in distances.tolist()) for c in distances.tolist()]
    found = adaptive_step_sizes(rho, distances, damping)
    assert sums_to_one(found)
    expected = [(1 - damping) * old + damping * new for old, new in zip(rho.tolist(), target, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    assert adaptive_step_sizes(rho, distances).tolist() == pytest.approx(target, rel=1e-12)


def smooth_path(positions):
    """A curve of matrices that moves fast near both ends, for any positions in [0, 1]."""
    generator = generator_of(0)
    constant, early, late, slow = (normal(6, 4, generator=generator) for _ in range(4))
    p = positions[:, None, None]
    return 3 * constant + early * torch.exp(-8 * p) + late * torch.exp(8 * (p - 1)) + 0.3 * slow * p


@pytest.mark.parametrize("start", [equidistant_step_sizes, irregular_step_sizes], ids=["equidistant", "irregular"])
@pytest.mark.parametrize("num_layers", [1, 5, 20])
def test_adaptive_iteration_ends_where_all_relative_distances_are_equal(num_layers, start):
    rho = start(num_layers)
    for _ in range(300):
        path = smooth_path(torch.cat([torch.zeros(1, dtype=torch.float64), rho.cumsum(0)]))
        distances = relative_distances(path, rho)
        rho = adaptive_step_sizes(rho, distances, damping=0.3)
    moved = rho * distances
    assert float(moved.max() / moved.min()) - 1 < 1e-6
    if num_layers > 1:
        assert rho[0] < rho[num_layers // 2] > rho[-1]


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("damping", [0.5, 1.0])
def test_an_undefined_update_returns_the_present_step_sizes(bad, damping):
    rho, distances = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), torch.tensor([1.0, bad, 2.0])
    assert not distances_are_usable(distances)
    assert torch.equal(adaptive_step_sizes(rho, distances, damping), rho)


@pytest.mark.parametrize("distances", [[1e-310, 1.0], [1e-200, 1e200]], ids=["overflow", "underflow"])
def test_extreme_distances_leave_a_distribution(distances):
    rho = adaptive_step_sizes(torch.tensor([0.5, 0.5]), torch.tensor(distances, dtype=torch.float64))
    assert sums_to_one(rho)


@given(problem=problems(leading=((2,), (5,))), seed=seeds)
def test_relative_distances_are_their_formula(problem, seed):
    A = problem.A
    rho = torch.rand(len(A) - 1, generator=generator_of(seed), dtype=torch.float64) + 0.1
    rho = rho / rho.sum()
    found = relative_distances(A, rho)
    for layer in range(1, len(A)):
        if A[layer].any():
            expected = torch.dist(A[layer], A[layer - 1]) / (rho[layer - 1] * torch.linalg.norm(A[layer]))
            assert float(found[layer - 1]) == pytest.approx(float(expected), rel=1e-12)


@given(rho=distributions, tightness=st.floats(1.0, 10.0))
@example(rho=torch.tensor([0.5001, 0.4999], dtype=torch.float64), tightness=1.0)
def test_capped_step_sizes(rho, tightness):
    """What exceeds the bound ends at the bound, and the others grow by one common factor: so order is kept."""
    rtol, maximum = 1e-11, tightness / len(rho)
    capped = cap_step_sizes(rho, maximum)
    assert sums_to_one(capped)
    assert bool((capped <= maximum * (1 + rtol)).all())
    torch.testing.assert_close(cap_step_sizes(capped, maximum), capped, rtol=rtol, atol=0)
    assert bool((capped[rho > maximum] >= maximum * (1 - rtol)).all())
    factors = (capped / rho)[capped < maximum * (1 - rtol)]
    assert bool((factors >= 1 - rtol).all())
    assert len(factors) == 0 or float(factors.max() / factors.min()) == pytest.approx(1, rel=rtol)
    assert bool((capped[rho.argsort()].diff() >= -rtol).all())


@given(rho=distributions)
def test_a_bound_that_is_kept_already_changes_nothing(rho):
    for maximum in (float(rho.max()), 1.0, float("inf")):
        torch.testing.assert_close(cap_step_sizes(rho, maximum), rho, rtol=1e-12, atol=0)


def test_a_bound_of_one_over_the_number_of_layers_leaves_equal_steps():
    capped = cap_step_sizes(torch.tensor([0.7, 0.2, 0.05, 0.05]), 0.25)
    assert capped.tolist() == pytest.approx([0.25] * 4, rel=1e-12)


@given(numbers=st.lists(st.floats(2**-20, 2**20, width=32), min_size=1, max_size=50))
def test_normalised_numbers_keep_their_proportions(numbers):
    rho = normalise_step_sizes(torch.tensor(numbers, dtype=torch.float32))
    assert sums_to_one(rho)
    assert (rho / rho[0]).tolist() == pytest.approx([number / numbers[0] for number in numbers], rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_checked_step_sizes_are_wide_and_as_given(dtype):
    given_sizes = torch.full((64,), 1 / 64, dtype=dtype)
    checked = check_step_sizes(given_sizes, num_layers=64)
    assert checked.dtype == torch.float64
    assert torch.equal(checked, given_sizes.double())


BAD_STEP_SIZES = [
    pytest.param([[0.5, 0.5]], r"must have shape \(2,\).*got \(1, 2\)", id="two_dimensions"),
    pytest.param([], r"must have shape \(2,\).*got \(0,\)", id="empty"),
    pytest.param([0.2, 0.3, 0.5], r"must have shape \(2,\).*got \(3,\)", id="length"),
    pytest.param([1.0, 0.0], r"must be positive and finite, got \[1.0, 0.0\]", id="zero"),
    pytest.param([1.5, -0.5], r"must be positive and finite, got \[1.5, -0.5\]", id="negative"),
    pytest.param([0.5, float("nan")], "must be positive and finite, got .*nan", id="nan"),
    pytest.param([0.5, float("inf")], "must be positive and finite, got .*inf", id="inf"),
    pytest.param([0.5, 0.6], "must sum to 1, got 1.1", id="sum"),
]


@pytest.mark.parametrize(("bad", "message"), BAD_STEP_SIZES)
def test_bad_step_sizes_are_named_with_their_value(bad, message):
    with pytest.raises(ValueError, match="`step_sizes` " + message):
        check_step_sizes(torch.tensor(bad), num_layers=2)


@pytest.mark.parametrize(
    "function",
    [
        lambda rho: adaptive_step_sizes(rho, torch.ones(2)),
        lambda rho: cap_step_sizes(rho, 1.0),
        lambda rho: relative_distances(torch.ones(3, 2, 2), rho),
    ],
    ids=["adaptive", "cap", "relative_distances"],
)
def test_every_function_checks_its_step_sizes(function):
    with pytest.raises(ValueError, match="`step_sizes` must sum to 1"):
        function(torch.ones(2))


@pytest.mark.parametrize("scheme", [equidistant_step_sizes, irregular_step_sizes])
@pytest.mark.parametrize("value", [0, -3])
def test_schemes_want_a_layer(scheme, value):
    with pytest.raises(ValueError, match=f"`num_layers` must be at least 1, got {value}"):
        scheme(value)


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_irregular_names_its_unevenness(value):
    with pytest.raises(ValueError, match=rf"`unevenness` must be in \[0, 1\), got {value}"):
        irregular_step_sizes(4, value)


@pytest.mark.parametrize("value", [0.0, -0.1, 1.1, float("nan")])
def test_adaptive_names_its_damping(value):
    with pytest.raises(ValueError, match=rf"`damping` must be in \(0, 1\], got {value}"):
        adaptive_step_sizes(torch.ones(1), torch.ones(1), value)


def test_adaptive_wants_a_distance_a_layer():
    with pytest.raises(ValueError, match=r"`distances` must have the shape of `step_sizes`, got \(3,\) and \(2,\)"):
        adaptive_step_sizes(torch.tensor([0.5, 0.5]), torch.ones(3))


@pytest.mark.parametrize("value", [0.3, 0.0, -1.0])
def test_cap_names_a_bound_that_nothing_can_keep(value):
    with pytest.raises(ValueError, match=f"`maximum` must be at least 1/L = 0.5 for 2 layers, got {value}"):
        cap_step_sizes(torch.tensor([0.5, 0.5]), value)


def test_cap_names_a_bound_that_is_not_a_number():
    with pytest.raises(ValueError, match="`maximum`"):
        cap_step_sizes(torch.tensor([0.5, 0.5]), float("nan"))


@pytest.mark.parametrize(
    ("bad", "message"),
    [(torch.ones(3, 2, 2).int(), "int32"), (torch.full((3, 2, 2), float("nan")), "12 NaN"), (torch.ones(3), r"\(3,\)")],
    ids=["integers", "nan", "shape"],
)
def test_relative_distances_name_bad_representations(bad, message):
    with pytest.raises(ValueError, match=f"`representations`.*{message}"):
        relative_distances(bad, torch.tensor([0.5, 0.5]))


def test_step_sizes_left_as_they_are_are_a_copy():
    rho = torch.tensor([0.5, 0.5], dtype=torch.float64)
    adaptive_step_sizes(rho, torch.zeros(2)).mul_(2)
    assert rho.tolist() == [0.5, 0.5]
