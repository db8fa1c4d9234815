"""What all quantities of a layer have in common: a reference, invariances, derivatives, errors."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lightning_leaky.functional import KNorm, features
from tests.functional.readings import ENERGIES, MOMENTA, READINGS
from tests.references import Reference, assert_close
from tests.strategies import Problem, k_norms, normal, problems, seeds

DEFAULT_NORM = KNorm()
FIELDS = {"representation": "A", "velocity": "V", "momentum": "B", "features": "S"}

every_reading = pytest.mark.parametrize("reading", READINGS.values(), ids=READINGS)
every_energy = pytest.mark.parametrize("reading", ENERGIES.values(), ids=ENERGIES)
every_momentum_reading = pytest.mark.parametrize("reading", MOMENTA.values(), ids=MOMENTA)


def routes_of(readings):
    return pytest.mark.parametrize(
        ("route", "reading"),
        [
            pytest.param(route, reading, id=f"{key}-{name}")
            for key, reading in readings.items()
            for name, route in reading.routes.items()
        ],
    )


every_route, every_energy_route = routes_of(READINGS), routes_of(ENERGIES)
each_argument = pytest.mark.parametrize(
    ("reading", "argument"),
    [
        pytest.param(reading, name, id=f"{key}-{name}")
        for key, reading in READINGS.items()
        for name in reading.arguments
    ],
)


def smooth_problem(num_samples, width, k_norm=DEFAULT_NORM, activation=None):
    """A problem whose representation keeps clear of the kink of ReLU; with an activation, no constant column."""
    generator = torch.Generator().manual_seed(0)
    A, V, B = (normal(num_samples, width, generator=generator) for _ in range(3))
    A = A + 0.3 * A.sign()
    S = None if activation is None else features(A, activation, constant_column=False)
    W = normal(width, width + (S is None), generator=generator)
    return Problem(A, V, B, W, 2.0, k_norm, S)


def is_relative_or_raw(problem):
    """Not so where all features of a layer are zero: the relative stabiliser is then replaced by an absolute one."""
    return problem.k_norm.gamma is None or problem.k_norm.gamma == 0


@every_route
@given(problem=problems())
def test_equals_the_reference(reading, route, problem):
    assert_close(route(problem), reading.reference(problem))


@every_route
@settings(max_examples=30)
@given(problem=problems(norms=k_norms(forms=("relative", "raw"))))
def test_float32_inputs_are_read_in_float64(reading, route, problem):
    """The reading of float32 tensors is exact, whatever their rounding did to what they were rounded from."""
    single = problem.to(torch.float32)
    assert_close(route(single), reading.reference(single.to(torch.float64)))


@every_reading
@settings(max_examples=25)
@given(
    problem=problems(
        kinds=("generic", "non_negative"),
        norms=st.sampled_from([KNorm(), KNorm(gamma=0.0)]),
        activations=("relu",),
        constant_columns=(True,),
    )
)
def test_float32_inputs_cost_no_more_than_their_rounding(reading, problem):
    assert_close(reading.from_tensors(problem.to(torch.float32)), reading.reference(problem), rtol=1e-3)


@every_reading
@settings(max_examples=25)
@given(problem=problems(leading=((),)), seed=seeds)
def test_order_of_samples_is_no_matter(reading, problem, seed):
    order = torch.randperm(problem.A.shape[0], generator=torch.Generator().manual_seed(seed))
    shuffled = problem.map(lambda matrix: matrix[order])
    assert_close(reading.from_tensors(shuffled), reading.reference(problem))


@every_reading
@settings(max_examples=25)
@given(problem=problems(leading=((),)), seed=seeds)
def test_order_of_neurons_is_no_matter(reading, problem, seed):
    order = torch.randperm(problem.A.shape[-1], generator=torch.Generator().manual_seed(seed))
    columns = torch.cat([order, torch.arange(len(order), problem.W.shape[-1])])
    shuffled = problem.map(lambda matrix: matrix[:, order], "AVB").map(lambda matrix: matrix[:, columns], "SW")
    shuffled = shuffled._replace(W=shuffled.W[order])
    assert_close(reading.from_tensors(shuffled), reading.reference(problem))


@every_energy_route
@settings(max_examples=25)
@given(problem=problems(leading=((),), norms=k_norms(forms=("relative", "raw"))), times=st.integers(2, 4))
def test_energies_do_not_grow_with_a_repeated_data_set(reading, route, problem, times):
    """With the relative stabiliser, wherever there are features at all."""
    assume(is_relative_or_raw(problem))
    repeated = problem.map(lambda matrix: matrix.repeat(times, 1))
    assert_close(route(repeated), reading.reference(problem))


@every_momentum_reading
@settings(max_examples=25)
@given(problem=problems(leading=((),)), times=st.integers(2, 4))
def test_momentum_readings_of_a_mean_loss_do_not_grow_with_a_repeated_data_set(reading, problem, times):
    repeated = problem.map(lambda matrix: matrix.repeat(times, 1))
    assert_close(reading.from_tensors(repeated._replace(B=repeated.B / times)), reading.reference(problem))


@every_energy
@settings(max_examples=25)
@given(
    problem=problems(
        kinds=("generic", "non_negative", "rank_deficient"),
        norms=k_norms(forms=("relative", "raw")),
        activations=("relu", "leaky_relu", "identity"),
        constant_columns=(False,),
    ),
    scale=st.floats(1e-3, 1e3),
)
def test_energies_do_not_depend_on_the_scale_of_a_homogeneous_path(reading, problem, scale):
    """Without the constant column K grows with A², and so does a relative stabiliser; V grows with A."""
    assume(is_relative_or_raw(problem))
    scaled = problem.map(lambda matrix: scale * matrix, "AVS")
    assert_close(reading.from_tensors(scaled), reading.reference(problem))


@every_reading
@settings(max_examples=25)
@given(problem=problems(leading=((3,), (2, 2), (1,))))
def test_leading_dimensions_are_read_one_by_one(reading, problem):
    whole = reading.from_tensors(problem).flatten()
    count = problem.A.shape[:-2].numel()
    parts = [
        reading.from_tensors(problem.map(lambda tensor, i=i: tensor.flatten(0, -3)[i], "AVBWS")) for i in range(count)
    ]
    size = reading.reference(problem).size.flatten()
    assert_close(whole, Reference(torch.stack(parts), size), rtol=1e-9)


@every_reading
@pytest.mark.parametrize("num_samples", [3, 9], ids=["N<d", "N>=d"])
@pytest.mark.parametrize(
    ("k_norm", "activation"),
    [(KNorm(), None), (KNorm(gamma=0.5), "relu"), (KNorm(gamma=0.0), None), (KNorm(gamma_rel=0.1), "tanh")],
    ids=["relative", "absolute", "raw", "tanh"],
)
def test_derivatives(reading, num_samples, k_norm, activation):
    """With respect to features that are given, too."""
    problem = smooth_problem(num_samples, 4, k_norm, activation)

    def read(*tensors):
        return reading.from_tensors(problem._replace(**dict(zip(problem.tensors, tensors, strict=True))))

    assert torch.autograd.gradcheck(read, [tensor.clone().requires_grad_() for tensor in problem.tensors.values()])


@each_argument
@pytest.mark.parametrize(
    "spoil",
    [
        lambda A: A[0],
        lambda A: A[:0],
        lambda A: A.long(),
        lambda A: A / 0,
        lambda A: A * float("nan"),
        lambda A: A.tolist(),
    ],
    ids=["one_dimension", "empty", "integers", "infinite", "nan", "list"],
)
def test_bad_tensors_are_named(reading, argument, spoil):
    problem = smooth_problem(5, 4, activation="relu")
    with pytest.raises(ValueError, match=f"`{argument}`"):
        reading.from_tensors(problem.map(spoil, FIELDS[argument]))


@pytest.mark.parametrize(
    ("reading", "argument"),
    [
        pytest.param(reading, reading.arguments[1], id=key)
        for key, reading in READINGS.items()
        if len(reading.arguments) > 2
    ],
)
@pytest.mark.parametrize("shape", [(5, 3), (4, 4), (1, 5, 4)], ids=["width", "samples", "layers"])
def test_another_shape_is_named_with_both_shapes(reading, argument, shape):
    problem = smooth_problem(5, 4)._replace(**{FIELDS[argument]: torch.ones(shape)})
    with pytest.raises(
        ValueError, match=rf"`{argument}` must have the shape of `representation`.*\({shape[0]}, .*5, 4"
    ):
        reading.from_tensors(problem)


@every_reading
def test_features_of_other_samples_are_refused(reading):
    problem = smooth_problem(5, 4)._replace(S=torch.ones(4, 5))
    with pytest.raises(ValueError, match=r"`features` must have one row for each .*\(5,\), got \(4,\)"):
        reading.from_tensors(problem)


@pytest.mark.parametrize(
    "reading", [READINGS[key] for key in READINGS if key not in ("cost_of_identity", "cross_term")]
)
@pytest.mark.parametrize("depth", [-1.0, float("nan"), float("inf")])
def test_bad_effective_depth_is_named_with_its_value(reading, depth):
    with pytest.raises(ValueError, match=rf"`effective_depth`.*got {depth}"):
        reading.from_tensors(smooth_problem(5, 4)._replace(depth=depth))
