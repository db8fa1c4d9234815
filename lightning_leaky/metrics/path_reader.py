"""Any choice of quantities of a path at once, accumulated together and returned as one object."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_leaky.functional._checks import check_non_negative
from lightning_leaky.functional.hamiltonian import bottleneck_rank, hamiltonian_spread
from lightning_leaky.functional.k_norm import KNorm
from lightning_leaky.functional.kinetic_energy import path_length_of
from lightning_leaky.functional.path_median import path_median
from lightning_leaky.functional.step_sizes import check_segment_step_sizes, equidistant_step_sizes
from lightning_leaky.metrics.energies import PathEnergies
from lightning_leaky.metrics.momenta import LossReduction, PathMomenta
from lightning_leaky.metrics.samples import PathSamples
from lightning_leaky.metrics.spectrum import StableRank
from lightning_leaky.utilities.processes import num_processes, summed

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


@dataclass(frozen=True, eq=False)  # tensors have no truth value to compare by
class Readings:
    """Quantities of every layer of a path, on the CPU in float64.

    Attributes:
        quantities: Tensors of shape (L,) by name. Layer l is read at A_{l−1}, with V_l and B_l.
        step_sizes: ρ as they were when the representations were taken, shape (L,).
        effective_depth: L̃.
        names: Names of the layers in their model, where they are known.
        segments: Numbers of layers of the segments. Layers that change the shape of their representation, as the first
            block of a stage of a convolutional network does, are not read and split the path: step-sizes and positions
            run through all segments, summaries are per segment. Empty for a path in one piece.

    Example:
        >>> readings = Readings({"hamiltonian": torch.tensor([-3.0, -2.0])}, torch.tensor([0.25, 0.75]), 2.0)
        >>> readings.positions
        tensor([0.0000, 0.2500])
        >>> readings.summaries()["hamiltonian/bottleneck_rank"]
        tensor(2., dtype=torch.float64)
    """

    quantities: dict[str, Tensor]
    step_sizes: Tensor
    effective_depth: float
    names: tuple[str, ...] = ()
    segments: tuple[int, ...] = ()

    @property
    def positions(self) -> Tensor:
        """Position p_{l−1} = ρ_1 + … + ρ_{l−1} where layer l is read, shape (L,)."""
        return self.step_sizes.cumsum(0) - self.step_sizes

    def boundaries(self) -> list[Tensor]:
        """Positions p of A_0, …, A_L along the whole path, shape (L + 1,), of each segment.

        Example:
            >>> Readings({}, torch.tensor([0.5, 0.25, 0.25]), 0.0, segments=(1, 2)).boundaries()
            [tensor([0.0000, 0.5000]), tensor([0.5000, 0.7500, 1.0000])]
        """
        ends = torch.cat([self.positions, self.step_sizes.sum()[None]])
        lengths = list(self.segments) or [len(self.step_sizes)]
        starts = [sum(lengths[:number]) for number in range(len(lengths))]
        return [ends[start : start + length + 1] for start, length in zip(starts, lengths, strict=True)]

    def __getitem__(self, name: str) -> Tensor:
        """Return one quantity, shape (L,)."""
        return self.quantities[name]

    def is_finite(self) -> bool:
        """Whether no quantity of any layer is NaN or infinite."""
        return all(bool(torch.isfinite(values).all()) for values in self.quantities.values())

    def summaries(self, prefix: str = "") -> dict[str, Tensor]:
        """One number for the whole path, by log key; `EnergyMonitor` explains each.

        In a path of several segments one for each of them: ``cost_of_identity/segment_2/min``.

        Args:
            prefix: Put before each key, as ``"val_"``.
        """
        parts = self.split()
        place = "/segment_{}/" if len(parts) > 1 else "/"
        return {
            f"{prefix}{key.replace('/', place.format(number))}": value
            for number, part in enumerate(parts, start=1)
            for key, value in part._summaries().items()
        }

    def layers(self, prefix: str = "") -> dict[str, Tensor]:
        """Every quantity of every layer by log key: ``cost_of_identity/layer_03``.

        Args:
            prefix: Put before each key, as ``"val_"``.
        """
        return {
            f"{prefix}{name}/{layer_key(index, len(values))}": value
            for name, values in self.quantities.items()
            for index, value in enumerate(values)
        }

    def split(self) -> list[Readings]:
        """Return the readings of each segment."""
        lengths = list(self.segments) or [len(self.step_sizes)]
        columns = {name: torch.split(values, lengths) for name, values in self.quantities.items()}
        return [
            Readings({name: parts[index] for name, parts in columns.items()}, rho, self.effective_depth)
            for index, rho in enumerate(torch.split(self.step_sizes, lengths))
        ]

    def _summaries(self) -> dict[str, Tensor]:
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
                    ranks = bottleneck_rank(self[name], self.effective_depth)
                    found[f"{name}/bottleneck_rank"] = path_median(ranks, self.step_sizes)
                    found[f"{name}/bottleneck_rank_min"] = ranks.amin()
                    found[f"{name}/bottleneck_rank_max"] = ranks.amax()
                found[f"{name}/spread"] = hamiltonian_spread(self[name])
        return found

    def scalars(self, prefix: str = "") -> dict[str, Tensor]:
        """Every number by log key, those of `layers` and of `summaries`.

        Args:
            prefix: Put before each key, as ``"val_"``.
        """
        return self.layers(prefix) | self.summaries(prefix)

    def table(self, names: Sequence[str] | None = None) -> str:
        """Text table with one line per layer: its number, name, step-size, position p_{l−1} and quantities.

        Args:
            names: Which quantities, in which order; all by default.
        """
        shown = list(self.quantities if names is None else names)
        named = bool(self.names)
        header = ["layer", *(["name"] if named else []), "step_size", "position", *shown]
        rows = [
            [f"{index + 1}", *self.names[index : index + 1], f"{rho:.4f}", f"{position:.4f}"]
            + [f"{self[name][index]:.4g}" for name in shown]
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
    if isinstance(quantities, str):
        raise ValueError(f"`quantities` must be a list of names, got the string {quantities!r}; put it in brackets.")
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
        form: ``"moments"`` sums second moments, which take `moments_in_bytes`; ``"samples"`` keeps the samples and
            works with N × N matrices, see `PathSamples`; ``"auto"`` works on the smaller side: it keeps the samples
            while those of all processes are at most w, and turns to moments when they become more.

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
        form: Literal["auto", "moments", "samples"] = "moments",
    ) -> None:
        super().__init__()
        self.quantities = check_quantities(quantities)
        self.width = width
        self.effective_depth = check_non_negative("effective_depth", effective_depth)
        self.k_norm, self.loss_reduction, self.form = k_norm, loss_reduction, form
        self.step_sizes = equidistant_step_sizes(num_layers)
        self.energies: PathEnergies | None = None
        self.spectrum: StableRank | None = None
        self.momenta: PathMomenta | None = None
        self.samples: PathSamples | None = None
        self._is_summing = form == "moments"
        if form == "moments":
            self._make_sums()
        else:
            self.samples = PathSamples(
                num_layers,
                width,
                effective_depth,
                with_momenta=self._wants(MOMENTA),
                with_energies=self._wants(ENERGIES),
                with_spectrum=self._wants(SPECTRUM),
                loss_reduction=loss_reduction,
                k_norm=k_norm,
            )

    def update(
        self,
        previous: Sequence[Tensor] | Tensor,
        current: Sequence[Tensor] | Tensor,
        step_sizes: Tensor,
        momenta: Sequence[Tensor] | Tensor | None = None,
        weights: Sequence[Tensor] | Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            previous: A_0, …, A_{L−1}, each of shape (N, w).
            current: A_1, …, A_L, each of shape (N, w).
            step_sizes: ρ of these layers, shape (L,), the same for all batches between two resets.
            momenta: B_1, …, B_L, each of shape (N, w), where a momentum quantity is read.
            weights: W_1, …, W_L, as in `PathMomenta`; without them there is no criticality residual.

        Raises:
            ValueError: If the tensors do not fit the layers, or the momenta are missing.
        """
        self.step_sizes = check_segment_step_sizes(step_sizes, len(self.step_sizes)).cpu().clone()
        if momenta is None and self._wants(MOMENTA):
            raise ValueError(f"`momenta` must be given to read {sorted(set(MOMENTA) & set(self.quantities))}.")
        if self.samples is not None and self._keeps(previous):
            self.samples.update(previous, current, step_sizes, momenta, weights)
        else:
            self._turn_to_sums()
            self._add(previous, current, momenta, weights)

    def compute(self) -> Readings:
        """Return the readings; under torch.distributed a collective that every process must join."""
        if self._must_sum():
            self._turn_to_sums()
        values: dict[str, Tensor] = {}
        for metric in self._sums() if self._is_summing else (self.samples,):
            if metric is not None:
                found = metric.compute()
                values |= found if isinstance(found, dict) else {"stable_rank": found}
        # torchmetrics squeezes the values of a single layer.
        shown = {name: values[name].cpu().reshape(-1) for name in self.quantities if name in values}
        return Readings(shown, self.step_sizes, self.effective_depth)

    def samples_in_bytes(self) -> int:
        """Bytes of the samples kept so far on this process."""
        return 0 if self.samples is None else self.samples.in_bytes()

    def reset(self) -> None:
        """Forget every batch."""
        self._is_summing = self.form == "moments"
        for metric in (*self._sums(), self.samples):
            if metric is not None:
                metric.reset()

    def _wants(self, kind: Collection[str]) -> bool:
        return bool(set(kind) & set(self.quantities))

    def _sums(self) -> tuple[PathEnergies | None, StableRank | None, PathMomenta | None]:
        return self.energies, self.spectrum, self.momenta

    def _make_sums(self) -> None:
        sizes = len(self.step_sizes), self.width
        if self._wants(ENERGIES):
            self.energies = PathEnergies(*sizes, self.effective_depth, self.k_norm)
        if self._wants(SPECTRUM):
            self.spectrum = StableRank(*sizes, self.k_norm)
        if self._wants(MOMENTA):
            self.momenta = PathMomenta(*sizes, self.effective_depth, self.loss_reduction, self.k_norm)

    def _keeps(self, previous: Sequence[Tensor] | Tensor) -> bool:
        """Whether the samples of a batch are to be kept, with those before and as many of each other process."""
        if self.samples is None or self.form == "samples":
            return self.samples is not None
        rows = {len(matrix) for matrix in previous}
        total = num_processes() * (self.samples.num_rows() + sum(rows))
        return not self._is_summing and len(rows) == 1 and total <= self.width

    def _must_sum(self) -> bool:
        """Whether a process has turned to sums, as one has where all samples together are too many; one collective."""
        if self.samples is None or self.form == "samples" or num_processes() == 1:
            return self._is_summing
        return bool(summed(torch.tensor([int(self._is_summing)], device=self.samples.device)) > 0)

    def _turn_to_sums(self) -> None:
        """Sum the moments of the samples kept, and of all that come until the next reset."""
        if self._is_summing or self.samples is None:
            return
        self._is_summing = True
        if all(metric is None for metric in self._sums()):
            self._make_sums()
            self.to(self.samples.device)
        if self.samples.previous:  # batches without samples tell the weights
            self._add(*self.samples.matrices(), self.samples.weights)
            self.samples.reset()

    def _add(
        self,
        previous: Sequence[Tensor] | Tensor,
        current: Sequence[Tensor] | Tensor,
        momenta: Sequence[Tensor] | Tensor | None,
        weights: Sequence[Tensor] | Tensor | None,
    ) -> None:
        if self.energies is not None:
            self.energies.update(previous, current, self.step_sizes)
        if self.spectrum is not None:
            self.spectrum.update(previous)
        if self.momenta is not None and momenta is not None:
            self.momenta.update(previous, momenta, weights)


def moments_in_bytes(num_layers: int, width: int, quantities: Collection[str], constant_column: bool = True) -> int:
    """Bytes that the second moments of a choice of quantities take: what `PathReader` holds once it sums them.

    Per layer ``8 (d² + 2dw)`` for the energies, ``8 w²`` for the spectrum and ``8 dw`` for the momenta, d = w + 1.

    Example:
        >>> moments_in_bytes(num_layers=48, width=8192, quantities=["cost_of_identity"]) / 2**30
        72.01171910762787
    """
    features, wanted = width + int(constant_column), set(quantities)
    entries = 0
    entries += features**2 + 2 * features * width if wanted & set(ENERGIES) else 0
    entries += width**2 if wanted & set(SPECTRUM) else 0
    entries += features * width if wanted & set(MOMENTA) else 0
    return 8 * num_layers * entries
