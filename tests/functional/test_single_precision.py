"""Energies and norms in float32: as exact as is promised, and in float64 wherever float32 would not do."""

import functools

import pytest
import torch

from lightning_leaky import LeakyResNet
from lightning_leaky.functional import KNorm, features, k_inner_products_from_moments, operator_norm
from lightning_leaky.functional.moments import moments_of
from lightning_leaky.metrics import QUANTITIES, PathReader, Recipe
from lightning_leaky.metrics.layer_batch import layer_batch
from lightning_leaky.metrics.sample_sums import sums_of_samples
from tests.references import k_product
from tests.strategies import generator_of, normal

DEPTH, RHO = 2.0, torch.tensor([0.4, 0.6])
NAMES = ["cost_of_identity", "kinetic_energy"]
FEATURES = {"relu": features, "linear": functools.partial(features, activation="linear")}
NORMS = {"small": KNorm(gamma_rel=1e-4), "absolute": KNorm(gamma=0.5), "raw": KNorm(gamma=0.0)}
NUMBERS = {"N<w": lambda w: w - 2, "N=w": lambda w: w, "N=w+1": lambda w: w + 1, "N>w+1": lambda w: 3 * w}


def decaying(power):
    """Singular values 1/n^power, in random directions."""

    def make(n, w, generator):
        left, right = (torch.linalg.qr(normal(side, min(n, w), generator=generator))[0] for side in (n, w))
        return left / torch.arange(1.0, min(n, w) + 1, dtype=torch.float64) ** power @ right.mT

    return make


def rank_one(n, w, generator):
    return normal(n, 1, generator=generator) @ normal(1, w, generator=generator)


def offset(by):
    return lambda n, w, generator: by + normal(n, w, generator=generator)


STARTS = {
    "random": offset(0.0),
    "rank one": rank_one,
    "+100": offset(100.0),
    "-100": offset(-100.0),
    "1/n": decaying(1),
    "1/n^2": decaying(2),
}


def forward_pass(n, w):
    torch.manual_seed(0)
    network = LeakyResNet(8, 3, width=w, num_layers=2, effective_depth=DEPTH, step_sizes=RHO.tolist())
    with torch.no_grad():
        path = network.representations(torch.randn(n, 8))
    return path[:-1], path[1:]


def layers_of(start, step, n, w):
    """What two layers take and return, float32."""
    generator = generator_of(n + w)
    taken = torch.stack([start(n, w, generator) for _ in RHO])
    moved = torch.stack([step(n, w, generator) for _ in RHO])
    return taken.float(), (taken + moved).float()


def scaled(make, by):
    return lambda n, w, generator: by * make(n, w, generator)


PATHS = {
    "forward pass": forward_pass,
    **{name: functools.partial(layers_of, start, scaled(start, 0.3)) for name, start in STARTS.items()},
    "small steps": functools.partial(layers_of, STARTS["random"], scaled(STARTS["random"], 1e-3)),
    "small steps from afar": functools.partial(layers_of, STARTS["+100"], scaled(STARTS["random"], 0.1)),
}
every_path = pytest.mark.parametrize("make", PATHS.values(), ids=PATHS)
every_map = pytest.mark.parametrize("feature_map", FEATURES.values(), ids=FEATURES)
every_number = pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
every_width = pytest.mark.parametrize("width", [5, 32, 100])


def read(previous, current, precision, k_norm=None, feature_map=features, names=NAMES):
    recipe = Recipe(names, DEPTH, k_norm or KNorm(), feature_map, precision=precision)
    reader = PathReader([(previous.shape[-1], len(previous))], recipe)
    reader.update(previous, current, RHO, is_last=True)
    found = reader.compute()
    return torch.stack([found[name] for name in names])


def expected_of(previous, current, feature_map):
    """Both energies in float64 of the same float32 matrices, by a full SVD."""
    A, after = previous.double(), current.double()
    V, S = (after - A) / RHO.double()[:, None, None], feature_map(A)
    cost, square = k_product(S, A, A, KNorm()), k_product(S, V, V, KNorm())
    return torch.stack([cost, square / (2 * DEPTH)])


@every_path
@every_map
@every_number
@every_width
def test_energies_in_float32_are_as_exact_as_promised(make, feature_map, number, width):
    layers = make(number(width), width)
    expected = expected_of(*layers, feature_map)
    for precision, rtol in {"default": 5e-5, "high": 1e-6}.items():
        torch.testing.assert_close(read(*layers, precision, None, feature_map), expected, rtol=rtol, atol=0)


@every_number
@pytest.mark.parametrize("k_norm", NORMS.values(), ids=NORMS)
def test_stabilisers_that_float32_does_not_bear_are_read_in_float64(k_norm, number):
    layers = PATHS["random"](number(32), 32)
    assert torch.equal(*(read(*layers, precision, k_norm) for precision in ("default", "high")))


@every_number
def test_float64_samples_are_read_in_float64(number):
    previous, current = (side.double() for side in PATHS["random"](number(32), 32))
    assert torch.equal(*(read(previous, current, precision) for precision in ("default", "high")))


def test_float32_is_what_the_default_multiplies_in():
    """Or the tests above would say nothing."""
    layers = PATHS["random"](96, 32)
    assert not torch.equal(*(read(*layers, precision) for precision in ("default", "high")))


@every_width
def test_layers_whose_second_moments_cancel_are_read_as_a_minimum(width):
    """Far more exactly than by the same moments alone."""
    layers = PATHS["rank one"](4 * width, width)
    expected = expected_of(*layers, FEATURES["linear"])
    found = read(*layers, "default", None, FEATURES["linear"])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    moments = moments_of(FEATURES["linear"](layers[0]), [layers[0]])
    by_moments = k_inner_products_from_moments(moments, KNorm())[:, 0, 0]
    assert float((by_moments / expected[0] - 1).abs().max()) > 2e-6


MOST = [key for key, record in QUANTITIES.items() if record.needs not in ("parameters", "spectrum")]


@pytest.mark.parametrize("k_norm", [KNorm(), KNorm(gamma=0.5)], ids=["relative", "absolute"])
@pytest.mark.parametrize("number", [20, 33, 90], ids=["N<w", "N=w+1", "N>w+1"])
@pytest.mark.parametrize("has_momenta", [True, False])
def test_on_other_devices_nothing_waits_for_a_number(k_norm, number, has_momenta):
    """A tensor on the device "meta" has no numbers: a look at one raises."""
    chosen = [key for key in MOST if has_momenta or not QUANTITIES[key].has_gradients]
    recipe = Recipe(chosen, DEPTH, k_norm, precision="default")
    A, after, *momenta = torch.empty(3 if has_momenta else 2, number, 32, device="meta")
    layers = [layer_batch(features, 0.5, recipe.dtype(A.dtype), A, after, *momenta) for _ in range(3)]
    weights = torch.empty(3, 32, 33, dtype=recipe.dtype(A.dtype), device="meta") if has_momenta else None
    found = sums_of_samples(layers, recipe, weights)
    assert {one.device.type for one in found.values()} == {"meta"}
    assert {len(one) for one in found.values()} == {3}


# The operator norm.


SPECTRA = {"1/n": -1.0, "1/n^2": -2.0, "flat": 0.0, "nearly flat": -0.01}


def matrices(power, number=100, size=60):
    """Symmetric float32 matrices of eigenvalues n^power in random directions."""
    bases = torch.linalg.qr(normal(number, size, size, generator=generator_of(0)))[0]
    values = torch.arange(1.0, size + 1, dtype=torch.float64) ** power
    return (bases * values @ bases.mT).float()


@pytest.mark.parametrize("size", [40, 60])
@pytest.mark.parametrize("power", SPECTRA.values(), ids=SPECTRA)
def test_the_operator_norm_in_float32_is_the_largest_eigenvalue(power, size):
    grams = matrices(power, size=size)
    expected = torch.linalg.eigvalsh(grams.double())[..., -1]
    torch.testing.assert_close(operator_norm(grams).double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [40, 60])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_matrix_that_is_not_finite_spoils_no_other(size, value):
    grams = matrices(-1.0, 5, size)
    grams[2, 3, 3] = value
    found, others = operator_norm(grams), [0, 1, 3, 4]
    assert found[2].isnan()
    torch.testing.assert_close(found[others], operator_norm(grams[others]), rtol=1e-6, atol=0)
