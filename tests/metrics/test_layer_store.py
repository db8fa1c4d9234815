"""Samples while they are few, sums once they are many: when, in how much memory, and to which digit."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_leaky.functional import KNorm
from lightning_leaky.metrics import Recipe
from lightning_leaky.metrics.accumulator import Accumulator
from lightning_leaky.metrics.layer_store import LayerStore
from tests import references
from tests.metrics.paths import EVERYTHING, QUANTITIES, WITHOUT_MOMENTA, assert_same_reading, both_signs, random_path

ENERGIES = ["cost_of_identity", "kinetic_energy"]


def store_of(path, quantities=WITHOUT_MOMENTA, form="samples"):
    """The store of a reader that has seen a path."""
    return path.feed(path.reader(quantities, form)).stores[0]


def test_samples_are_kept_until_they_are_more_than_neurons():
    path, held = random_path(num_samples=12, width=5), []
    reader = path.reader(EVERYTHING, "auto")
    store = reader.stores[0]
    for rows in (slice(0, 2), slice(2, 5), slice(5, 6), slice(6, 12)):
        path.feed(reader, [rows])
        held.append((store.samples_in_bytes // (3 * 3 * 5 * 8), store.is_summing))
    assert held == [(2, False), (5, False), (0, True), (0, True)]
    reader.reset()
    path.feed(reader, [slice(0, 2)])
    assert not store.is_summing
    few = path.map(lambda tensor: tensor[:, :2])
    assert_same_reading(
        reader.compute(weights=path.weights, parameters=path.parameters).quantities, few.read(EVERYTHING).quantities
    )


def test_a_cycle_that_begins_with_many_samples_after_one_with_few():
    few, many = random_path(num_samples=3), random_path(num_samples=9)
    reader = few.feed(few.reader(EVERYTHING, "auto"))
    reader.reset()
    found = many.feed(reader).compute(weights=many.weights, parameters=many.parameters)
    assert_same_reading(found.quantities, many.read(EVERYTHING).quantities)


def test_samples_are_kept_once_and_nothing_of_the_square_of_the_width():
    store = store_of(random_path(num_layers=2, num_samples=8, width=300))
    assert store.samples_in_bytes == 2 * 8 * 2 * 300 * 8
    store.reset()
    assert store.samples_in_bytes == 0


def test_half_precision_is_kept_in_float32():
    path = random_path().map(lambda tensor: tensor.bfloat16())
    assert store_of(path).samples_in_bytes == 2 * 9 * 3 * 4 * 4
    assert store_of(path, QUANTITIES).samples_in_bytes == 3 * 9 * 3 * 4 * 4


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that any operation returns."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.numel())
        return result


def test_nothing_of_the_square_of_the_width_is_formed():
    path = random_path(num_layers=2, num_samples=8, width=500)
    with Largest() as largest:
        path.feed(path.reader(form="samples")).compute()
    assert largest.entries <= 2 * 3 * 8 * 501 < 500 * 500


@pytest.mark.parametrize("quantities", [["cost_of_identity"], ["kinetic_energy", "stable_rank"], ["speed"], EVERYTHING])
@pytest.mark.parametrize("feature_map", [torch.relu, both_signs])
def test_sums_take_the_memory_that_the_recipe_says(quantities, feature_map):
    recipe = Recipe(quantities, feature_map=feature_map)
    held = sum(state.nbytes for state in Accumulator(3, 4, recipe).metric_state.values())
    assert held == recipe.state_bytes(num_layers=3, width=4)


# Digits of float32 samples.


@pytest.mark.parametrize("num_samples", [40, 5])
@pytest.mark.parametrize(
    ("k_norm", "feature_map"),
    [(KNorm(), both_signs), (KNorm(gamma=0.3), torch.relu), (KNorm(), torch.tanh)],
)
def test_both_forms_agree_in_float32(num_samples, k_norm, feature_map):
    """To 1e-6, with more samples than neurons and with fewer."""
    path = random_path(num_layers=4, num_samples=num_samples, width=12, k_norm=k_norm, feature_map=feature_map)
    path = path.map(lambda tensor: tensor.float())
    assert_same_reading(*(path.read(EVERYTHING, form).quantities for form in ("samples", "moments")), rtol=1e-6)


def float32_energies(previous, current, feature_map):
    store = LayerStore(1, previous.shape[1], Recipe(ENERGIES, 2.0, feature_map=feature_map), "samples")
    store.step_sizes = torch.ones(1)
    store.update([[previous], [current]])
    assert store.samples_in_bytes == 4 * (previous.numel() + current.numel())
    return store.values()


def hard_path(kind, num_samples=40, width=64):
    """Both ends of a layer, in float32, where sums of products cancel most."""
    generator = torch.Generator().manual_seed(0)
    A, noise = torch.randn(2, num_samples, width, generator=generator)
    if kind == "rank one":
        return A[:, :1] * A[:1], A[:, :1] * noise[:1]
    if kind == "equal samples":
        return A[:1].expand_as(A).clone(), noise[:1].expand_as(A).clone()
    if kind == "far from zero":
        return 1e3 + A, 1e3 + noise
    if kind == "hardly moving":
        return A, A + 1e-5 * noise
    if kind == "inside its features":  # V is a combination of leading singular vectors: 1/γ0 times below the rest
        features = torch.relu(A)
        return A, A + 0.1 * features @ (features.mT @ A) / num_samples
    return A * 10.0 ** -torch.arange(width).div(8), noise  # "falling": neurons from 1 to 1e-8


@pytest.mark.parametrize("num_samples", [40, 65])
@pytest.mark.parametrize(
    "kind", ["rank one", "equal samples", "far from zero", "hardly moving", "inside its features", "falling"]
)
def test_products_in_float32_keep_six_digits(kind, num_samples):
    previous, current = hard_path(kind, num_samples)
    A, V = previous.double(), current.double() - previous.double()
    expected = references.energies(A, V, references.sigma(A), 2.0, KNorm())
    for name, values in float32_energies(previous, current, references.sigma).items():
        torch.testing.assert_close(values[0], expected[name].value, rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100, 2.0**120])
def test_energies_do_not_depend_on_the_scale_of_float32_samples(scale):
    """Not where their squares, or the sum of them all, are beyond float32, either: K and γ scale with them."""
    torch.manual_seed(0)
    start, end = torch.rand(2, 64, 128) + 0.5
    found, scaled = (float32_energies(factor * start, factor * (start + end), torch.relu) for factor in (1.0, scale))
    torch.testing.assert_close(scaled, found, rtol=1e-6, atol=0)
