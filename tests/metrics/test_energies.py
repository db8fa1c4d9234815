"""The energy metrics against the N × N references, and their step-sizes."""

import pytest
import torch
from hypothesis import given, settings

from lightning_leaky.metrics import CostOfIdentity, PathEnergies, PathLength
from tests import references
from tests.metrics.cases import ENERGY_CASES, paths_in_batches, random_path
from tests.references import assert_close

REFERENCES = {
    "cost_of_identity": lambda A, V, depth, k_norm: references.cost_of_identity(A, k_norm),
    "kinetic_energy": references.kinetic_energy,
    "potential_energy": lambda A, V, depth, k_norm: references.potential_energy(A, depth, k_norm),
    "cross_term": lambda A, V, depth, k_norm: references.cross_term(A, V, k_norm),
    "lagrangian": references.lagrangian,
    "energy_hamiltonian": references.energy_hamiltonian,
}


@settings(max_examples=50)
@given(drawn=paths_in_batches())
def test_energies_equal_the_references_over_any_batches(drawn):
    path, batches = drawn
    found = ENERGY_CASES["PathEnergies"].read(path, batches)
    arguments = path.previous(), path.velocities(), path.depth, path.k_norm
    for name, reference in REFERENCES.items():
        assert_close(found[name].reshape(-1), reference(*arguments))
    speed = references.k_square(path.previous(), path.velocities(), path.k_norm)
    assert_close(found["speed"].reshape(-1).square(), speed)


@settings(max_examples=50)
@given(drawn=paths_in_batches())
def test_path_length_equals_the_reference_over_any_batches(drawn):
    path, batches = drawn
    expected = references.path_length(path.previous(), path.velocities(), path.step_sizes, path.k_norm)
    assert_close(ENERGY_CASES["PathLength"].read(path, batches), expected)


@pytest.mark.parametrize("case", ENERGY_CASES.values(), ids=ENERGY_CASES)
@pytest.mark.parametrize(
    ("step_sizes", "message"),
    [
        (torch.tensor([0.5, 0.5]), r"must have shape \(3,\).*got \(2,\)"),
        (torch.tensor([0.5, 0.5, 0.0]), "must be positive"),
    ],
    ids=["length", "zero"],
)
def test_bad_step_sizes_are_named(case, step_sizes, message):
    path = random_path()
    with pytest.raises(ValueError, match=f"`step_sizes` {message}"):
        case.make(path).update(path.previous(), path.current(), step_sizes)


def test_path_length_follows_the_step_sizes_of_its_last_update():
    """Σ_l ‖A_l − A_{l−1}‖_K is the same whatever the mesh; the sum is over ρ_l ‖V_l‖ all the same."""
    path = random_path()
    metric = ENERGY_CASES["PathLength"].make(path)
    metric.update(path.previous(), path.current(), path.step_sizes)
    on_one_mesh = metric.compute()
    metric.reset()
    metric.update(path.previous(), path.current(), path.step_sizes.flip(0))
    torch.testing.assert_close(metric.compute(), on_one_mesh, rtol=1e-12, atol=0)


@pytest.mark.parametrize("through", ["update", "forward"])
def test_of_several_step_sizes_the_last_count(through):
    path = random_path()
    meshes = path.step_sizes.flip(0), path.step_sizes
    metric, other = (ENERGY_CASES["PathLength"].make(path) for _ in range(2))
    for rho, rows in zip(meshes, (slice(0, 4), slice(4, None)), strict=True):
        getattr(metric, through)(path.previous(rows), path.current(rows), rho)
        other.update(path.previous(rows), path.current(rows), rho)
    squares = other.products()[:, 1, 1]
    expected = float((path.step_sizes * squares.sqrt()).sum())
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-12)


def test_path_length_keeps_the_step_sizes_it_was_given():
    path, rho = random_path(), random_path().step_sizes
    metric = PathLength(path.num_layers, path.width, path.depth)
    metric.update(path.previous(), path.current(), rho)
    rho.copy_(rho.flip(0))
    torch.testing.assert_close(metric.compute(), ENERGY_CASES["PathLength"].expected(path))


def test_lists_of_matrices_are_as_good_as_a_stacked_tensor():
    path = random_path()
    stacked, listed = (CostOfIdentity(path.num_layers, path.width) for _ in range(2))
    stacked.update(path.previous())
    listed.update(list(path.previous()))
    assert torch.equal(stacked.compute(), listed.compute())


def test_speed_is_read_where_the_step_starts():
    """The velocity of layer l is measured at A_{l−1}: a change of the last representation moves only the last layer."""
    path = random_path()
    moved = path._replace(representations=torch.cat([path.representations[:-1], 2 * path.representations[-1:]]))
    before, after = (ENERGY_CASES["PathEnergies"].read(each) for each in (path, moved))
    assert torch.equal(before["speed"][:-1], after["speed"][:-1])
    assert torch.equal(before["cost_of_identity"], after["cost_of_identity"])
    assert before["speed"][-1] != after["speed"][-1]


def test_path_energies_from_layers_with_samples_of_their_own():
    """Sums over samples are per layer: layers need not have seen equally many."""
    path = random_path()
    metric = PathEnergies(path.num_layers, path.width, path.depth)
    rows = [slice(0, 3 + layer) for layer in range(path.num_layers)]
    metric.update(
        [A[rows[layer]] for layer, A in enumerate(path.previous())],
        [A[rows[layer]] for layer, A in enumerate(path.current())],
        path.step_sizes,
    )
    for layer, found in enumerate(metric.compute()["kinetic_energy"]):
        A, V = path.previous()[layer, rows[layer]], path.velocities()[layer, rows[layer]]
        assert_close(found, references.kinetic_energy(A, V, path.depth, path.k_norm))


def test_sums_keep_no_graph():
    path = random_path()
    metric = CostOfIdentity(path.num_layers, path.width)
    metric.update(path.previous().clone().requires_grad_())
    assert not metric.feature_products.requires_grad
