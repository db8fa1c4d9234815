"""The discrete Hamilton path at several resolutions, made once: conservation laws are tests of order along it."""

import pytest

from tests.references import hamilton_path
from tests.strategies import generator_of, normal

NUM_LAYERS = (20, 40, 80, 160, 320)
EFFECTIVE_DEPTH = 2.0


@pytest.fixture(scope="session")
def hamilton_paths():
    """Paths from one (A_0, B_0) at L̃ = 2, by number of layers."""
    generator = generator_of(0)
    A, B = normal(20, 8, generator=generator), 0.02 * normal(20, 8, generator=generator)
    return {num_layers: hamilton_path(A, B, EFFECTIVE_DEPTH, num_layers) for num_layers in NUM_LAYERS}
