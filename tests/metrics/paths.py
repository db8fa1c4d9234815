"""Random paths, how they are read in batches, and what must come of it."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from lightning_leaky import functional
from lightning_leaky.functional import KNorm, features
from lightning_leaky.metrics import QUANTITIES, PathReader, Quantity, Readings, Recipe
from tests import references
from tests.functional.readings import READINGS
from tests.metrics.own_records import OWN
from tests.references import Reference, assert_close
from tests.strategies import Problem, assume_clear_cut_off, effective_depths, generator_of, normal, seeds

ALL_ROWS, HALVES = slice(None), (slice(0, 4), slice(4, None))
EVERYTHING = [*QUANTITIES, *OWN]
MOMENTA = [key for key, record in QUANTITIES.items() if record.has_gradients]
WITHOUT_MOMENTA = [key for key in QUANTITIES if key not in MOMENTA]


def both_signs(A: Tensor) -> Tensor:
    """Features [relu(A), relu(−A), 1], nearly twice as many as neurons."""
    return torch.cat([A.relu(), (-A).relu(), torch.ones_like(A[..., :1])], dim=-1)


# Norms with features: those by default, fewer, others, and many more.
DEFAULT_MEASURES = ((KNorm(), features), (KNorm(gamma=0.0), features))
MEASURES = (
    *DEFAULT_MEASURES,
    (KNorm(gamma=0.5), torch.relu),
    (KNorm(gamma_rel=0.1), partial(features, activation="gelu")),
    (KNorm(), both_signs),
)


class Path(NamedTuple):
    """A_0, …, A_L of N samples, and for each layer the gradient of each sample's own loss."""

    representations: Tensor
    gradients: Tensor
    weights: Tensor
    step_sizes: Tensor
    depth: float = 2.0
    k_norm: KNorm = KNorm()
    feature_map: Callable[[Tensor], Tensor] = features

    @property
    def num_layers(self) -> int:
        return len(self.step_sizes)

    @property
    def num_samples(self) -> int:
        return self.representations.shape[1]

    @property
    def width(self) -> int:
        return self.representations.shape[-1]

    @property
    def parameters(self) -> Tensor:
        """What `PathReader.compute` takes of the layers' parameters: any positive numbers."""
        return 1 + torch.arange(3.0 * self.num_layers, dtype=torch.float64).reshape(-1, 3) % 5

    def previous(self, rows: slice = ALL_ROWS) -> Tensor:
        return self.representations[:-1, rows]

    def current(self, rows: slice = ALL_ROWS) -> Tensor:
        return self.representations[1:, rows]

    def momenta(self, rows: slice = ALL_ROWS, reduction: str = "mean") -> Tensor:
        """B_1, …, B_L of a loss that is the mean, or the sum, over the given rows."""
        batch = -self.gradients[:, rows]
        return batch / batch.shape[1] if reduction == "mean" else batch

    def map(self, change: Callable[[Tensor], Tensor]) -> "Path":
        """The same path with its matrices changed."""
        return self._replace(representations=change(self.representations), gradients=change(self.gradients))

    def batch(self, rows: slice = ALL_ROWS, reduction: str = "mean") -> tuple[Tensor, ...]:
        """What `PathReader.update` takes of some rows."""
        return self.previous(rows), self.current(rows), self.step_sizes, self.momenta(rows, reduction)

    def problem(self, reduction: str = "mean") -> Problem:
        """All layers over all rows, as the functions take them."""
        A, V = self.previous(), (self.current() - self.previous()) / self.step_sizes[:, None, None]
        B = self.momenta(reduction=reduction)
        return Problem(A, V, B, self.weights, self.depth, self.k_norm, self.feature_map(A))

    def reader(
        self, quantities: Iterable[str | Quantity] = QUANTITIES, form: str = "moments", reduction: str = "mean"
    ) -> PathReader:
        recipe = Recipe(list(quantities), self.depth, self.k_norm, self.feature_map, reduction)
        return PathReader([(self.width, self.num_layers)], recipe, form)

    def read(
        self,
        quantities: Iterable[str | Quantity] = QUANTITIES,
        form: str = "moments",
        reduction: str = "mean",
        batches: Sequence[slice] = (ALL_ROWS,),
    ) -> Readings:
        reader = self.feed(self.reader(quantities, form, reduction), batches, reduction)
        return reader.compute(weights=self.weights, parameters=self.parameters)

    def feed(self, reader: PathReader, batches: Sequence[slice] = (ALL_ROWS,), reduction: str = "mean") -> PathReader:
        for rows in batches:
            reader.update(*self.batch(rows, reduction))
        return reader


def random_path(num_layers=3, num_samples=9, width=4, seed=0, **fields) -> Path:
    """A path that moves little from layer to layer, each layer of its own size."""
    generator = generator_of(seed)
    start = normal(1, num_samples, width, generator=generator)
    steps = 0.3 * normal(num_layers, num_samples, width, generator=generator)
    rho = torch.rand(num_layers, generator=generator, dtype=torch.float64) + 0.2
    size = fields.get("feature_map", features)(start).shape[-1]
    return Path(
        representations=torch.cat([start, start + steps.cumsum(0)]),
        gradients=normal(num_layers, num_samples, width, generator=generator),
        weights=normal(num_layers, width, size, generator=generator),
        step_sizes=rho / rho.sum(),
        **fields,
    )


@st.composite
def paths(draw, measures=MEASURES):
    k_norm, feature_map = draw(st.sampled_from(measures))
    path = random_path(
        num_layers=draw(st.integers(1, 4)),
        num_samples=draw(st.integers(1, 12)),
        width=draw(st.integers(1, 5)),
        seed=draw(seeds),
        depth=draw(effective_depths),
        k_norm=k_norm,
        feature_map=feature_map,
    )
    if k_norm.is_raw:
        assume_clear_cut_off(feature_map(path.previous()), least_kept=1e-2)
    return path


@st.composite
def paths_in_batches(draw, **kwargs):
    """A path and the slices of any split of its samples into batches, empty ones included."""
    path = draw(paths(**kwargs))
    cuts = sorted(draw(st.lists(st.integers(0, path.num_samples), max_size=5)))
    return path, [slice(*ends) for ends in zip([0, *cuts], [*cuts, path.num_samples], strict=True)]


def expected_of(path: Path, reduction: str = "mean") -> dict[str, Tensor]:
    """Everything over all samples at once: by functional/, and by plain code where it has no function."""
    p = path.problem(reduction)
    values = functional.singular_values(p.A)
    shares = values / values.sum(-1, keepdim=True)
    current, gradients = path.current(), -p.B  # the momenta of a path are those at λ = 1
    return {name: reading.from_tensors(p) for name, reading in READINGS.items()} | {
        "speed": (2 * functional.kinetic_energy(p.A, p.V, 1.0, p.k_norm, p.S)).sqrt(),
        "stable_rank": functional.stable_rank(p.A),
        "momentum_norm": p.B.square().sum((-2, -1)).sqrt(),
        "features_momentum_norm": (p.B.mT @ p.features).square().sum((-2, -1)).sqrt(),
        "effective_rank": (-shares * shares.log()).sum(-1).exp(),
        "relative_speed": torch.stack(
            [
                functional.relative_speed(start, end, p.k_norm, features=sigma)
                for start, end, sigma in zip(p.A, current, p.features, strict=True)
            ]
        ),
        "block_influence": functional.block_influence(p.A, current),
        "relative_distance": functional.relative_distance(p.A, current),
        "first_order": functional.first_order(gradients, p.A, current),
        "pontryagin_hamiltonian": functional.pontryagin_hamiltonian(
            gradients, p.A, current, path.parameters[:, 0], path.step_sizes
        ),
        "pontryagin_residual": (path.parameters[:, 1] / path.parameters[:, 2]).sqrt(),
        "growth": current.square().sum((-2, -1)) - p.A.square().sum((-2, -1)),
    }


def references_of(path: Path, reduction: str = "mean") -> dict[str, Reference | Tensor]:
    """What the formulas make of all samples at once."""
    p = path.problem(reduction)
    found = references.energies(p.A, p.V, p.features, p.depth, p.k_norm)
    found |= references.momentum_readings(p.W, p.A, p.B, p.features, p.depth)
    found |= references.movements(p.A, path.current(), p.features, -p.B, p.k_norm)
    cost, left, decayed = path.parameters.unbind(-1)
    worth = (p.B * (path.current() - p.A)).sum((-2, -1))
    most = (p.B * (path.current() - p.A)).abs().sum((-2, -1)) + cost
    found["pontryagin_hamiltonian"] = Reference((worth - cost) / path.step_sizes, most / path.step_sizes)
    found["pontryagin_residual"] = (left / decayed).sqrt()
    return found | {"stable_rank": references.stable_rank(p.A)}


def assert_same_reading(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-10) -> None:
    """Equal keys, and values within ``rtol`` of the largest of the layers: differences have their terms' rounding."""
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        assert found[name].dtype == torch.float64
        atol = rtol * float(wanted.abs().max())
        if name == "block_influence":  # between 0 and 2, from terms near 1
            atol = max(atol, 1e-14)
        torch.testing.assert_close(found[name], wanted, rtol=rtol, atol=atol, msg=name)


def assert_by_formula(found: dict[str, Tensor], expected: dict[str, Reference | Tensor]) -> None:
    """Values within rounding of the terms that their formulas have."""
    for name, values in found.items():
        assert_close(values.square() if name in ("speed", "relative_speed") else values, expected[name])
