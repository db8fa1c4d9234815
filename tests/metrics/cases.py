"""Random paths, and every metric class with what it takes from a path and what it must make of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from lightning_leaky import functional, metrics
from lightning_leaky.functional import KNorm
from lightning_leaky.metrics.base import LayerMetric
from tests.strategies import assume_clear_cut_off, effective_depths, generator_of, normal, seeds

ALL_ROWS = slice(None)
PATH_NORMS = (
    KNorm(),
    KNorm(gamma=0.5, constant_column=False),
    KNorm(gamma=0.0),
    KNorm(gamma_rel=0.1, activation="gelu"),
)


class Path(NamedTuple):
    """A_0, …, A_L of N samples, and for each layer the gradient of each sample's own loss."""

    representations: Tensor
    gradients: Tensor
    weights: Tensor
    step_sizes: Tensor
    depth: float = 2.0
    k_norm: KNorm = KNorm()

    @property
    def num_layers(self) -> int:
        return len(self.step_sizes)

    @property
    def num_samples(self) -> int:
        return self.representations.shape[1]

    @property
    def width(self) -> int:
        return self.representations.shape[-1]

    def previous(self, rows: slice = ALL_ROWS) -> Tensor:
        return self.representations[:-1, rows]

    def current(self, rows: slice = ALL_ROWS) -> Tensor:
        return self.representations[1:, rows]

    def velocities(self) -> Tensor:
        return (self.current() - self.previous()) / self.step_sizes[:, None, None]

    def momenta(self, rows: slice = ALL_ROWS, reduction: str = "mean") -> Tensor:
        """B_1, …, B_L of a loss that is the mean, or the sum, over the given rows."""
        batch = -self.gradients[:, rows]
        return batch / batch.shape[1] if reduction == "mean" else batch

    def map(self, change: Callable[[Tensor], Tensor]) -> "Path":
        """The same path with its matrices changed."""
        return self._replace(representations=change(self.representations), gradients=change(self.gradients))

    def features(self) -> dict[str, Any]:
        return {"activation": self.k_norm.activation, "constant_column": self.k_norm.constant_column}


def random_path(num_layers=3, num_samples=9, width=4, seed=0, **fields) -> Path:
    """A path that moves little from layer to layer, each layer of its own size."""
    generator = generator_of(seed)
    start = normal(1, num_samples, width, generator=generator)
    steps = 0.3 * normal(num_layers, num_samples, width, generator=generator)
    rho = torch.rand(num_layers, generator=generator, dtype=torch.float64) + 0.2
    k_norm = fields.get("k_norm", KNorm())
    return Path(
        representations=torch.cat([start, start + steps.cumsum(0)]),
        gradients=normal(num_layers, num_samples, width, generator=generator),
        weights=normal(num_layers, width, width + k_norm.constant_column, generator=generator),
        step_sizes=rho / rho.sum(),
        **fields,
    )


@st.composite
def paths(draw, k_norms=PATH_NORMS):
    path = random_path(
        num_layers=draw(st.integers(1, 4)),
        num_samples=draw(st.integers(1, 12)),
        width=draw(st.integers(1, 5)),
        seed=draw(seeds),
        depth=draw(effective_depths),
        k_norm=draw(st.sampled_from(k_norms)),
    )
    if path.k_norm.is_raw:
        assume_clear_cut_off(path.previous(), path.k_norm, least_kept=1e-2)
    return path


@st.composite
def paths_in_batches(draw, **kwargs):
    """A path and the slices of any split of its samples into batches, empty ones included."""
    path = draw(paths(**kwargs))
    cuts = sorted(draw(st.lists(st.integers(0, path.num_samples), max_size=5)))
    return path, [slice(*ends) for ends in zip([0, *cuts], [*cuts, path.num_samples], strict=True)]


class Case(NamedTuple):
    make: Callable[..., LayerMetric]
    """From a path and the keywords of torchmetrics, a metric."""
    batch: Callable[[Path, slice], tuple]
    """The arguments of `update` for some rows of a path."""
    expected: Callable[[Path], Tensor | dict[str, Tensor]]
    """What functional/ makes of the whole path."""
    arguments: tuple[str, ...]
    """The names of the sequences that `update` takes."""

    def read(self, path: Path, batches: list[slice] = (ALL_ROWS,), **kwargs) -> Tensor | dict[str, Tensor]:
        metric = self.make(path, **kwargs)
        for rows in batches:
            metric.update(*self.batch(path, rows))
        return metric.compute()


def _of_representations(cls, function):
    return Case(
        make=lambda path, **kwargs: cls(path.num_layers, path.width, k_norm=path.k_norm, **kwargs),
        batch=lambda path, rows=ALL_ROWS: (path.previous(rows),),
        expected=function,
        arguments=("representations",),
    )


def _of_steps(cls, function):
    return Case(
        make=lambda path, **kwargs: cls(path.num_layers, path.width, path.depth, k_norm=path.k_norm, **kwargs),
        batch=lambda path, rows=ALL_ROWS: (path.previous(rows), path.current(rows), path.step_sizes),
        expected=function,
        arguments=("previous", "current"),
    )


def _of_momenta(cls, function, reduction):
    return Case(
        make=lambda path, **kwargs: cls(path.num_layers, path.width, path.depth, reduction, path.k_norm, **kwargs),
        batch=lambda path, rows=ALL_ROWS: (path.previous(rows), path.momenta(rows, reduction), path.weights),
        expected=lambda path: function(path, path.momenta(reduction=reduction)),
        arguments=("representations", "momenta"),
    )


def energies_of(path: Path) -> dict[str, Tensor]:
    A, V, depth, k_norm = path.previous(), path.velocities(), path.depth, path.k_norm
    return {
        "cost_of_identity": functional.cost_of_identity(A, k_norm),
        "kinetic_energy": functional.kinetic_energy(A, V, depth, k_norm),
        "potential_energy": functional.potential_energy(A, depth, k_norm),
        "cross_term": functional.cross_term(A, V, k_norm),
        "lagrangian": functional.lagrangian(A, V, depth, k_norm),
        "energy_hamiltonian": functional.energy_hamiltonian(A, V, depth, k_norm),
        "speed": (2 * functional.kinetic_energy(A, V, 1.0, k_norm)).sqrt(),
    }


def hamiltonian_of(path: Path, B: Tensor) -> Tensor:
    return functional.hamiltonian(path.previous(), B, path.depth, **path.features())


def residual_of(path: Path, B: Tensor) -> Tensor:
    return functional.criticality_residual(path.weights, path.previous(), B, path.depth, **path.features())


def momentum_readings_of(path: Path, B: Tensor) -> dict[str, Tensor]:
    S = functional.features(path.previous(), **path.features())
    return {
        "hamiltonian": hamiltonian_of(path, B),
        "momentum_norm": B.square().sum((-2, -1)).sqrt(),
        "features_momentum_norm": (B.mT @ S).square().sum((-2, -1)).sqrt(),
        "criticality_residual": residual_of(path, B),
    }


def _energy(name):
    return lambda path: energies_of(path)[name]


def _padded_singular_values(path: Path) -> Tensor:
    values = functional.singular_values(path.previous())
    return torch.nn.functional.pad(values, (0, path.width - values.shape[-1]))


CASES = {
    "CostOfIdentity": _of_representations(metrics.CostOfIdentity, _energy("cost_of_identity")),
    "PotentialEnergy": _of_representations(metrics.PotentialEnergy, _energy("potential_energy"))._replace(
        make=lambda path, **kwargs: metrics.PotentialEnergy(
            path.num_layers, path.width, path.depth, k_norm=path.k_norm, **kwargs
        )
    ),
    "StableRank": _of_representations(metrics.StableRank, lambda path: functional.stable_rank(path.previous())),
    "SingularValues": _of_representations(metrics.SingularValues, _padded_singular_values),
    "PathEnergies": _of_steps(metrics.PathEnergies, energies_of),
    "KineticEnergy": _of_steps(metrics.KineticEnergy, _energy("kinetic_energy")),
    "CrossTerm": _of_steps(metrics.CrossTerm, _energy("cross_term")),
    "Lagrangian": _of_steps(metrics.Lagrangian, _energy("lagrangian")),
    "EnergyHamiltonian": _of_steps(metrics.EnergyHamiltonian, _energy("energy_hamiltonian")),
    "PathLength": _of_steps(
        metrics.PathLength,
        lambda path: functional.path_length(path.previous(), path.velocities(), path.step_sizes, path.k_norm),
    ),
    "PathMomenta-mean": _of_momenta(metrics.PathMomenta, momentum_readings_of, "mean"),
    "PathMomenta-sum": _of_momenta(metrics.PathMomenta, momentum_readings_of, "sum"),
    "Hamiltonian": _of_momenta(metrics.Hamiltonian, hamiltonian_of, "mean"),
    "CriticalityResidual": _of_momenta(metrics.CriticalityResidual, residual_of, "mean"),
}

ENERGY_CASES = {key: CASES[key] for key in CASES if CASES[key].arguments == ("previous", "current")}
MOMENTUM_CASES = {key: CASES[key] for key in CASES if CASES[key].arguments == ("representations", "momenta")}


def as_dict(values: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    return values if isinstance(values, dict) else {"value": values}


def assert_same_reading(found, expected, rtol=1e-10):
    """Equal keys, and values within ``rtol`` of the largest of the layers: differences have their terms' rounding."""
    found, expected = as_dict(found), as_dict(expected)
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        # torchmetrics squeezes the values of a single layer.
        actual = found[name].reshape(wanted.shape)
        assert actual.dtype == torch.float64
        torch.testing.assert_close(actual, wanted, rtol=rtol, atol=rtol * float(wanted.abs().max()), msg=name)
