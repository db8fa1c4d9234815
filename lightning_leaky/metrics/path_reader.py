"""Any choice of quantities of a path at once, accumulated together and returned as one object."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_leaky.functional._checks import check_non_negative
from lightning_leaky.functional.hamiltonian import bottleneck_rank, hamiltonian_spread
from lightning_leaky.functional.k_norm import KNorm
from lightning_leaky.functional.kinetic_energy import path_length_of
from lightning_leaky.functional.step_sizes import check_step_sizes, equidistant_step_sizes
from lightning_leaky.metrics.energies import PathEnergies
from lightning_leaky.metrics.momenta import LossReduction, PathMomenta
from lightning_leaky.metrics.spectrum import StableRank

ENERGIES = (
    "cost_of_identity",
    "kinetic_energy",
    "potential_energy",
    "cross_term",
    "lagrangian",
    "energy_hamiltonian",
    "speed",
)
SPECTRUM = ("stable_rank",)
MOMENTA = ("hamiltonian", "criticality_residual", "momentum_norm", "features_momentum_norm")
QUANTITIES = ENERGIES + SPECTRUM + MOMENTA
"""Every quantity a reading can hold."""


@dataclass(frozen=True)
class Readings:
    """Quantities of every layer of a path, on the CPU in float64.

    Attributes:
        quantities: Tensors of shape (L,) by name. Layer l is read at A_{l−1}, with V_l and B_l.
        step_sizes: ρ as they were when the representations were taken, shape (L,).
        effective_depth: L̃.

    Example:
        >>> readings = Readings({"hamiltonian": torch.tensor([-3.0, -2.0])}, torch.tensor([0.25, 0.75]), 2.0)
        >>> readings.positions
        tensor([0.0000, 0.2500])
        >>> {key: float(value) for key, value in readings.summaries().items()}
        {'hamiltonian/bottleneck_rank': 2.5, 'hamiltonian/spread': 1.0}
    """

    quantities: dict[str, Tensor]
    step_sizes: Tensor
    effective_depth: float

    @property
    def positions(self) -> Tensor:
        """Position p_{l−1} = ρ_1 + … + ρ_{l−1} where layer l is read, shape (L,)."""
        return self.step_sizes.cumsum(0) - self.step_sizes

    def __getitem__(self, name: str) -> Tensor:
        """Return one quantity, shape (L,)."""
        return self.quantities[name]

    def is_finite(self) -> bool:
        """Whether no quantity of any layer is NaN or infinite."""
        return all(bool(torch.isfinite(values).all()) for values in self.quantities.values())

    def summaries(self) -> dict[str, Tensor]:
        """One number for the whole path, by log key; `EnergyMonitor` explains each."""
        found: dict[str, Tensor] = {}
        if "cost_of_identity" in self.quantities:
            found["cost_of_identity/min"] = self["cost_of_identity"].amin()
        if "speed" in self.quantities:
            found["speed/path_length"] = path_length_of(self["speed"], self.step_sizes)
        if "criticality_residual" in self.quantities:
            found["criticality_residual/max"] = self["criticality_residual"].amax()
        for name in ("hamiltonian", "energy_hamiltonian"):
            if name in self.quantities:
                if self.effective_depth > 0:
                    found[f"{name}/bottleneck_rank"] = bottleneck_rank(self[name].quantile(0.5), self.effective_depth)
                found[f"{name}/spread"] = hamiltonian_spread(self[name])
        return found

    def scalars(self, prefix: str = "") -> dict[str, Tensor]:
        """Every number by log key: ``cost_of_identity/layer_03``, … and the summaries.

        Args:
            prefix: Put before each key, as ``"val_"``.
        """
        layers = {
            f"{prefix}{name}/{layer_key(index, len(values))}": value
            for name, values in self.quantities.items()
            for index, value in enumerate(values)
        }
        return layers | {f"{prefix}{key}": value for key, value in self.summaries().items()}

    def table(self, names: Sequence[str] | None = None) -> str:
        """Text table with one line per layer: its number, step-size, position p_{l−1} and quantities.

        Args:
            names: Which quantities, in which order; all by default.
        """
        shown = list(self.quantities if names is None else names)
        header = ["layer", "step_size", "position", *shown]
        rows = [
            [f"{index + 1}", f"{rho:.4f}", f"{position:.4f}", *(f"{self[name][index]:.4g}" for name in shown)]
            for index, (rho, position) in enumerate(zip(self.step_sizes, self.positions, strict=True))
        ]
        widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]
        ]
        return "\n".join(lines)


def layer_key(index: int, num_layers: int) -> str:
    """Log key of a layer, counted from 1 and padded so that keys sort: ``layer_03``.

    Example:
        >>> layer_key(2, num_layers=20)
        'layer_03'
    """
    return f"layer_{index + 1:0{max(2, len(str(num_layers)))}d}"


def check_quantities(quantities: Collection[str]) -> tuple[str, ...]:
    """Return the quantities in their fixed order, or raise ValueError where a name is not known.

    Example:
        >>> check_quantities(["stable_rank", "cost_of_identity"])
        ('cost_of_identity', 'stable_rank')
    """
    unknown = sorted(set(quantities) - set(QUANTITIES))
    if unknown or not quantities:
        raise ValueError(f"`quantities` must be chosen from {list(QUANTITIES)}, got {unknown or 'none'}.")
    return tuple(name for name in QUANTITIES if name in quantities)


class PathReader(nn.Module):
    """Accumulates any choice of quantities over batches and processes and returns them as `Readings`.

    The trainer-free core of `EnergyMonitor`: it holds one metric for each kind of sum that the choice needs, so that
    each layer's moments are formed and factorised once, and the number of collectives does not depend on L.

    Args:
        num_layers: L.
        width: w.
        effective_depth: L̃ ≥ 0.
        quantities: Names from `QUANTITIES`.
        k_norm: Which K-norm.
        loss_reduction: ``"mean"`` or ``"sum"``, how the loss behind the momenta runs over the samples of a batch.

    Raises:
        ValueError: If a name is not known or a number is out of range.

    Example:
        >>> reader = PathReader(1, 2, effective_depth=0.5, quantities=["cost_of_identity"], k_norm=KNorm(gamma=4.0))
        >>> reader.update([torch.tensor([[1.0, 2.0]])], [torch.tensor([[1.0, 7.0]])], torch.ones(1))
        >>> reader.compute()["cost_of_identity"]
        tensor([0.5000], dtype=torch.float64)
    """

    def __init__(
        self,
        num_layers: int,
        width: int,
        effective_depth: float,
        quantities: Collection[str],
        k_norm: KNorm | None = None,
        loss_reduction: LossReduction = "mean",
    ) -> None:
        super().__init__()
        self.quantities = check_quantities(quantities)
        self.width = width
        self.effective_depth = check_non_negative("effective_depth", effective_depth)
        self.step_sizes = equidistant_step_sizes(num_layers)
        wanted = set(self.quantities)
        self.energies = PathEnergies(num_layers, width, effective_depth, k_norm) if wanted & set(ENERGIES) else None
        self.spectrum = StableRank(num_layers, width, k_norm) if wanted & set(SPECTRUM) else None
        self.momenta = (
            PathMomenta(num_layers, width, effective_depth, loss_reduction, k_norm) if wanted & set(MOMENTA) else None
        )

    def update(
        self,
        previous: Sequence[Tensor] | Tensor,
        current: Sequence[Tensor] | Tensor,
        step_sizes: Tensor,
        momenta: Sequence[Tensor] | Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            previous: A_0, …, A_{L−1}, each of shape (N, w).
            current: A_1, …, A_L, each of shape (N, w).
            step_sizes: ρ, shape (L,), the same for all batches between two resets.
            momenta: B_1, …, B_L, each of shape (N, w), where a momentum quantity is read.
            weights: W_1, …, W_L, shape (L, w, d); without them there is no criticality residual.

        Raises:
            ValueError: If the tensors do not fit the layers, or the momenta are missing.
        """
        self.step_sizes = check_step_sizes(step_sizes, len(self.step_sizes)).cpu().clone()
        if self.energies is not None:
            self.energies.update(previous, current, step_sizes)
        if self.spectrum is not None:
            self.spectrum.update(previous)
        if self.momenta is not None:
            if momenta is None:
                raise ValueError(f"`momenta` must be given to read {sorted(set(MOMENTA) & set(self.quantities))}.")
            self.momenta.update(previous, momenta, weights)

    def compute(self) -> Readings:
        """Return the readings; under torch.distributed a collective that every process must join."""
        values: dict[str, Tensor] = {}
        if self.energies is not None:
            values |= self.energies.compute()
        if self.spectrum is not None:
            values["stable_rank"] = self.spectrum.compute()
        if self.momenta is not None:
            values |= self.momenta.compute()
        # torchmetrics squeezes the values of a single layer.
        shown = {name: values[name].cpu().reshape(-1) for name in self.quantities if name in values}
        return Readings(shown, self.step_sizes, self.effective_depth)

    def reset(self) -> None:
        """Forget every batch."""
        for metric in (self.energies, self.spectrum, self.momenta):
            if metric is not None:
                metric.reset()
