"""Velocities, and the length of the path they make."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_leaky.functional import (
    features,
    kinetic_energy,
    path_length,
    relative_distances,
    velocity,
)
from tests import references
from tests.functional.readings import ENERGIES
from tests.references import assert_close
from tests.strategies import generator_of, k_norms, normal, problems, seeds

LAYERS = ((1,), (2,), (5,))


def random_step_sizes(num_layers, generator):
    rho = torch.rand(num_layers, dtype=torch.float64, generator=generator) + 0.1
    return rho / rho.sum()


@given(problem=problems(leading=LAYERS), seed=seeds)
def test_velocity_moves_the_representation_by_its_step_size(problem, seed):
    rho = random_step_sizes(len(problem.A), generator_of(seed))
    moved = problem.A + rho[:, None, None] * problem.V
    found = velocity(problem.A, moved, rho)
    size = (problem.A.abs().amax((-2, -1)) / rho + problem.V.abs().amax((-2, -1)))[:, None, None]
    assert bool(((found - problem.V).abs() <= 1e-14 * size).all())


def test_velocity_takes_a_number_and_widens_float32():
    found = velocity(torch.zeros(2, 3), torch.ones(2, 3), 0.25)
    assert found.dtype == torch.float64
    assert found.tolist() == [[4.0] * 3] * 2


@pytest.mark.parametrize("step_size", [0.0, -0.5, float("nan"), torch.tensor([0.5, 0.0])])
def test_velocity_names_a_bad_step_size(step_size):
    with pytest.raises(ValueError, match="`step_size` must be > 0"):
        velocity(torch.zeros(2, 2, 3), torch.ones(2, 2, 3), step_size)


@pytest.mark.parametrize("argument", ["previous", "current"])
@pytest.mark.parametrize(
    "bad", [torch.ones(3), torch.ones(2, 3).int(), torch.full((2, 3), float("nan")), [[1.0]]], ids=repr
)
def test_velocity_names_a_bad_representation(argument, bad):
    arguments = {"previous": torch.ones(2, 3), "current": torch.ones(2, 3), argument: bad}
    with pytest.raises(ValueError, match=f"`{argument}`"):
        velocity(**arguments, step_size=0.5)


@pytest.mark.parametrize("shape", [(2, 4), (3, 3)], ids=["width", "samples"])
def test_velocity_wants_two_representations_of_one_shape(shape):
    with pytest.raises(ValueError, match="`current` must have the shape of `previous`"):
        velocity(torch.ones(2, 3), torch.ones(shape), 0.5)


@given(problem=problems(leading=LAYERS), seed=seeds)
def test_path_length_equals_the_reference(problem, seed):
    rho = random_step_sizes(len(problem.A), generator_of(seed))
    expected = references.path_length(problem.V, problem.features, rho, problem.k_norm)
    assert_close(path_length(problem.A, problem.V, rho, problem.k_norm, problem.S), expected)


@settings(max_examples=40)
@given(problem=problems(norms=k_norms()), factor=st.just(0.0) | st.floats(1e-3, 1e3) | st.floats(-1e3, -1e-3))
def test_kinetic_energy_grows_with_the_square_of_the_velocity(problem, factor):
    value, size = ENERGIES["kinetic_energy"].reference(problem)
    found = kinetic_energy(problem.A, factor * problem.V, problem.depth, problem.k_norm, problem.S)
    assert_close(found, references.Reference(factor**2 * value, factor**2 * size))


def test_path_length_is_differentiable():
    A, V = (normal(3, 5, 4, generator=generator_of(seed)).requires_grad_() for seed in range(2))
    rho = random_step_sizes(3, generator_of(2))
    assert torch.autograd.gradcheck(lambda A, V: path_length(A, V, rho, features=features(A, "tanh")), (A, V))


@pytest.mark.parametrize(
    ("step_sizes", "message"),
    [
        (torch.tensor([0.5, 0.5]), r"`step_sizes` must have shape \(3,\).*got \(2,\)"),
        (torch.tensor([0.5, 0.7, -0.2]), "`step_sizes` must be positive"),
        (torch.tensor([0.5, 0.5, 0.5]), "`step_sizes` must sum to 1, got 1.5"),
    ],
    ids=["length", "sign", "sum"],
)
def test_path_length_names_bad_step_sizes(step_sizes, message):
    A = torch.ones(3, 5, 4)
    with pytest.raises(ValueError, match=message):
        path_length(A, A, step_sizes)


@pytest.mark.parametrize("argument", ["representations", "velocities"])
def test_path_length_names_a_diverged_tensor(argument):
    arguments = {"representations": torch.ones(2, 5, 4), "velocities": torch.ones(2, 5, 4)}
    arguments[argument] = arguments[argument] * float("nan")
    with pytest.raises(ValueError, match=f"`{argument}`"):
        path_length(**arguments, step_sizes=torch.tensor([0.5, 0.5]))


def test_path_length_wants_velocities_of_the_representations_shape():
    with pytest.raises(ValueError, match="`velocities` must have the shape of `representations`"):
        path_length(torch.ones(2, 5, 4), torch.ones(2, 5, 3), torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize(
    "length",
    [lambda A, rho: path_length(A, A, rho), lambda A, rho: relative_distances(A, rho[:-1] * 1.5)],
    ids=["path_length", "relative_distances"],
)
def test_a_path_without_a_dimension_of_layers_is_refused(length):
    with pytest.raises(ValueError, match="`representations`"):
        length(torch.eye(3), torch.full((3,), 1 / 3))


def test_step_sizes_of_other_layers_are_refused():
    A = torch.ones(4, 3)
    with pytest.raises(ValueError, match=r"`step_size`.*\(3,\)"):
        velocity(A, A, torch.ones(3))
