"""Energies of a path from second moments: everything that representations and velocities alone tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_leaky.functional.cost_of_identity import potential_energy_of
from lightning_leaky.functional.hamiltonian import energy_hamiltonian_of
from lightning_leaky.functional.k_norm import KNorm, k_inner_products_from_moments
from lightning_leaky.functional.kinetic_energy import kinetic_energy_of, path_length_of, speed_of, velocity_of
from lightning_leaky.functional.lagrangian import lagrangian_of
from lightning_leaky.functional.leak import leak_scale
from lightning_leaky.functional.moments import inner_products, split_moments
from lightning_leaky.functional.step_sizes import check_segment_step_sizes, check_step_sizes
from lightning_leaky.metrics.base import LayerMetric


def energies_of(products: Tensor, effective_depth: float) -> dict[str, Tensor]:
    """Every energy by name, each of shape (...), from the inner products of (A, ∂_pA), shape (..., 2, 2)."""
    return {
        "cost_of_identity": products[..., 0, 0],
        "kinetic_energy": kinetic_energy_of(products[..., 1, 1], effective_depth),
        "potential_energy": potential_energy_of(products[..., 0, 0], effective_depth),
        "cross_term": products[..., 0, 1],
        "lagrangian": lagrangian_of(products, effective_depth),
        "energy_hamiltonian": energy_hamiltonian_of(products, effective_depth),
        "speed": speed_of(products[..., 1, 1]),
    }


class _MomentMetric(LayerMetric):
    """Sums the second moments of k matrices per layer."""

    feature_products: Tensor
    inner: Tensor

    def __init__(
        self, num_layers: int, width: int, num_matrices: int, k_norm: KNorm | None = None, **kwargs: Any
    ) -> None:
        super().__init__(num_layers, width, k_norm, **kwargs)
        self.add_sum("feature_products", num_layers, self.feature_width, self.feature_width + num_matrices * width)
        self.add_sum("inner", num_layers, num_matrices, num_matrices)

    def accumulate(self, index: int, representation: Tensor, *matrices: Tensor) -> None:
        """Add the moments of one layer's matrices."""
        features, beside = self.k_norm.features_beside(representation, matrices)
        self.feature_products[index].addmm_(features.mT, beside)
        self.inner[index] += inner_products(matrices)

    def products(self) -> Tensor:
        """Inner products ⟨M_i, M_j⟩_K of all layers, shape (L, k, k); one layer's workspace at a time."""
        layers = map(split_moments, self.feature_products, self.inner)
        return torch.stack([k_inner_products_from_moments(layer, self.k_norm) for layer in layers])


class CostOfIdentity(_MomentMetric):
    """Cost of identity ``‖A‖²_K`` of each layer over a data set; see `lightning_leaky.cost_of_identity`.

    Args:
        num_layers: L, the number of representations.
        width: w.
        k_norm: Which K-norm.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Returns:
        From `compute`: shape (L,), no unit.

    Raises:
        ValueError: From `update`, if there is not one (N, w) floating-point matrix for each layer.

    Example:
        >>> metric = CostOfIdentity(num_layers=1, width=3, k_norm=KNorm(gamma=0.0, constant_column=False))
        >>> metric.update(torch.eye(3)[None])
        >>> metric.compute()
        tensor(3., dtype=torch.float64)
    """

    def __init__(self, num_layers: int, width: int, k_norm: KNorm | None = None, **kwargs: Any) -> None:
        super().__init__(num_layers, width, 1, k_norm, **kwargs)

    def update(self, representations: Sequence[Tensor] | Tensor) -> None:
        """Add a batch.

        Args:
            representations: One matrix of shape (N, w) per layer.
        """
        for index, (representation,) in enumerate(self.layers_of(representations=representations)):
            self.accumulate(index, representation, representation)

    def compute(self) -> Tensor:
        """Return the values, shape (L,)."""
        return self.products()[:, 0, 0]


class PotentialEnergy(CostOfIdentity):
    """Potential energy ``−(L̃/2)‖A‖²_K`` of each layer over a data set; see `lightning_leaky.potential_energy`.

    Args:
        num_layers: L, the number of representations.
        width: w.
        effective_depth: L̃ ≥ 0.
        k_norm: Which K-norm.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Returns:
        From `compute`: shape (L,), an energy.

    Raises:
        ValueError: If L̃ is negative; from `update`, if there is not one (N, w) floating-point matrix for each layer.

    Example:
        >>> metric = PotentialEnergy(1, 2, effective_depth=7.0, k_norm=KNorm(gamma=4.0))
        >>> metric.update([torch.tensor([[1.0, 2.0]])])
        >>> metric.compute()
        tensor(-1.7500, dtype=torch.float64)
    """

    def __init__(
        self, num_layers: int, width: int, effective_depth: float, k_norm: KNorm | None = None, **kwargs: Any
    ) -> None:
        super().__init__(num_layers, width, k_norm, **kwargs)
        leak_scale(effective_depth)
        self.effective_depth = effective_depth

    def compute(self) -> Tensor:
        """Return the values, shape (L,)."""
        return potential_energy_of(super().compute(), self.effective_depth)


class _PathMetric(_MomentMetric):
    """Sums the second moments of representation and velocity; a subclass chooses what `compute` returns."""

    def __init__(
        self, num_layers: int, width: int, effective_depth: float, k_norm: KNorm | None = None, **kwargs: Any
    ) -> None:
        super().__init__(num_layers, width, 2, k_norm, **kwargs)
        leak_scale(effective_depth)
        self.effective_depth = effective_depth

    def update(
        self, previous: Sequence[Tensor] | Tensor, current: Sequence[Tensor] | Tensor, step_sizes: Tensor
    ) -> None:
        """Add a batch.

        Args:
            previous: A_0, …, A_{L−1}, each of shape (N, w).
            current: A_1, …, A_L, each of shape (N, w).
            step_sizes: ρ, shape (L,).
        """
        rho = check_segment_step_sizes(step_sizes, self.num_layers).tolist()
        for index, (start, end) in enumerate(self.layers_of(previous=previous, current=current)):
            self.accumulate(index, start, start, velocity_of(start, end, rho[index]))

    def energies(self) -> dict[str, Tensor]:
        """Return the energies by name, each of shape (L,)."""
        return energies_of(self.products(), self.effective_depth)


class PathEnergies(_PathMetric):
    """All energies of a path over a data set, from one factorisation per layer.

    `compute` returns a dictionary of tensors of shape (L,): ``cost_of_identity``, ``kinetic_energy``,
    ``potential_energy``, ``cross_term``, ``lagrangian``, ``energy_hamiltonian`` and ``speed`` (‖∂_pA‖_K). Layer l is
    read at A_{l−1} with the velocity (A_l − A_{l−1})/ρ_l.

    Args:
        num_layers: L, the number of layers.
        width: w.
        effective_depth: L̃ ≥ 0.
        k_norm: Which K-norm.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: If L̃ is negative; from `update`, if the matrices or step-sizes do not fit the layers.

    Example:
        >>> metric = PathEnergies(1, 2, effective_depth=0.5, k_norm=KNorm(gamma=4.0))
        >>> metric.update(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 7.0]]]), torch.ones(1))
        >>> metric.compute()["kinetic_energy"]
        tensor(2.5000, dtype=torch.float64)
    """

    def compute(self) -> dict[str, Tensor]:
        """Return the energies by name, each of shape (L,)."""
        return self.energies()


class KineticEnergy(_PathMetric):
    """Kinetic energy ``(1/(2L̃))‖∂_pA‖²_K`` of each layer over a data set; see `lightning_leaky.kinetic_energy`.

    Takes the arguments of `PathEnergies`; `compute` returns shape (L,), an energy.

    Example:
        >>> metric = KineticEnergy(1, 2, effective_depth=0.5, k_norm=KNorm(gamma=4.0))
        >>> metric.update(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 7.0]]]), torch.ones(1))
        >>> metric.compute()
        tensor(2.5000, dtype=torch.float64)
    """

    def compute(self) -> Tensor:
        """Return the values, shape (L,)."""
        return self.energies()["kinetic_energy"]


class CrossTerm(_PathMetric):
    """Cross term ``⟨∂_pA, A⟩_K`` of each layer over a data set; see `lightning_leaky.functional.cross_term`.

    Takes the arguments of `PathEnergies`; `compute` returns shape (L,), no unit.

    Example:
        >>> metric = CrossTerm(1, 2, effective_depth=0.5, k_norm=KNorm(gamma=4.0))
        >>> metric.update(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 7.0]]]), torch.ones(1))
        >>> metric.compute()
        tensor(1., dtype=torch.float64)
    """

    def compute(self) -> Tensor:
        """Return the values, shape (L,)."""
        return self.energies()["cross_term"]


class Lagrangian(_PathMetric):
    """Lagrangian ``(1/(2L̃))‖L̃A + ∂_pA‖²_K`` of each layer over a data set; see `lightning_leaky.functional.lagrangian`.

    Takes the arguments of `PathEnergies`; `compute` returns shape (L,), an energy.

    Example:
        >>> metric = Lagrangian(1, 2, effective_depth=0.5, k_norm=KNorm(gamma=4.0))
        >>> metric.update(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 7.0]]]), torch.ones(1))
        >>> metric.compute()
        tensor(3.6250, dtype=torch.float64)
    """

    def compute(self) -> Tensor:
        """Return the values, shape (L,)."""
        return self.energies()["lagrangian"]


class EnergyHamiltonian(_PathMetric):
    """Hamiltonian in energy form of each layer; see `lightning_leaky.functional.energy_hamiltonian`.

    Takes the arguments of `PathEnergies`; `compute` returns shape (L,), an energy.

    Example:
        >>> metric = EnergyHamiltonian(1, 2, effective_depth=0.5, k_norm=KNorm(gamma=4.0))
        >>> metric.update(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 7.0]]]), torch.ones(1))
        >>> metric.compute()
        tensor(2.3750, dtype=torch.float64)
    """

    def compute(self) -> Tensor:
        """Return the values, shape (L,)."""
        return self.energies()["energy_hamiltonian"]


class PathLength(_PathMetric):
    """Length of the path ``Σ_l ρ_l ‖V_l‖_K`` over a data set; see `lightning_leaky.functional.path_length`.

    Takes the arguments of `PathEnergies`; `compute` returns a scalar, with the step-sizes of the last update.

    Example:
        >>> metric = PathLength(1, 2, effective_depth=0.5, k_norm=KNorm(gamma=6.5))
        >>> metric.update(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 7.0]]]), torch.ones(1))
        >>> metric.compute()
        tensor(1.4142, dtype=torch.float64)
    """

    step_sizes: Tensor

    def __init__(
        self, num_layers: int, width: int, effective_depth: float, k_norm: KNorm | None = None, **kwargs: Any
    ) -> None:
        # Not all of its states are sums, so they are gathered.
        super().__init__(num_layers, width, effective_depth, k_norm, **{"dist_sync_fn": gather_all_tensors, **kwargs})
        unknown = torch.full((num_layers,), torch.nan, dtype=torch.float64)
        self.add_state("step_sizes", unknown, dist_reduce_fx=latest_given)

    def update(
        self, previous: Sequence[Tensor] | Tensor, current: Sequence[Tensor] | Tensor, step_sizes: Tensor
    ) -> None:
        """Add a batch; its step-sizes replace those of the batches before."""
        super().update(previous, current, step_sizes)
        self.step_sizes = check_step_sizes(step_sizes).to(self.feature_products, copy=True)

    def compute(self) -> Tensor:
        """Return the value, a scalar."""
        return path_length_of(self.energies()["speed"], self.step_sizes)


def latest_given(values: Tensor) -> Tensor:
    """Return the last row that is not NaN: what a later batch or another process gave, where one has."""
    given = values[~values.isnan().any(-1)]
    return given[-1] if len(given) else values[-1]
