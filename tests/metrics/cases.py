"""The metrics of single quantities, each with what it takes from a path and what it must make of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from lightning_leaky.metrics import CostOfIdentity, Hamiltonian, KineticEnergy, StableRank
from tests.metrics.paths import ALL_ROWS, Path, assert_same_reading, expected_of


class Case(NamedTuple):
    """A metric, the quantity that it reads, and what it takes from a path."""

    key: str
    make: Callable[..., Any]
    batch: Callable[[Path, slice], dict[str, Any]]
    reduction: str = "mean"

    def fed(self, path: Path, *batches: slice, **kwargs: Any) -> Any:
        metric = self.make(path, **kwargs)
        for rows in batches:
            metric.update(**self.batch(path, rows))
        return metric

    def assert_reads(self, values: Tensor, path: Path, rows: slice = ALL_ROWS, rtol: float = 1e-10) -> None:
        """Values are those of the function over some rows; torchmetrics squeezes those of a single layer."""
        expected = expected_of(path.map(lambda tensor: tensor[:, rows].cpu().double()), self.reduction)[self.key]
        assert_same_reading({self.key: values.reshape(expected.shape)}, {self.key: expected}, rtol)


def representations_of(path, rows):
    return {"representations": path.previous(rows)}


def steps_of(path, rows):
    return {"previous": path.previous(rows), "current": path.current(rows), "step_sizes": path.step_sizes}


def hamiltonian_case(reduction):
    return Case(
        "hamiltonian",
        lambda path, **kwargs: Hamiltonian(path.num_layers, path.width, path.depth, reduction, **kwargs),
        lambda path, rows: {"representations": path.previous(rows), "momenta": path.momenta(rows, reduction)},
        reduction,
    )


CASES = {
    "CostOfIdentity": Case(
        "cost_of_identity",
        lambda path, **kwargs: CostOfIdentity(path.num_layers, path.width, path.k_norm, **kwargs),
        representations_of,
    ),
    "KineticEnergy": Case(
        "kinetic_energy",
        lambda path, **kwargs: KineticEnergy(path.num_layers, path.width, path.depth, path.k_norm, **kwargs),
        steps_of,
    ),
    "StableRank": Case(
        "stable_rank", lambda path, **kwargs: StableRank(path.num_layers, path.width, **kwargs), representations_of
    ),
    "Hamiltonian, mean": hamiltonian_case("mean"),
    "Hamiltonian, sum": hamiltonian_case("sum"),
}
