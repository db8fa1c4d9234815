"""Every quantity of a path from the samples themselves: for widths whose second moments would not fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_leaky.functional._checks import working_dtype
from lightning_leaky.functional.criticality import criticality_residual_of
from lightning_leaky.functional.hamiltonian import hamiltonian_of
from lightning_leaky.functional.k_norm import KNorm, inner_products_of
from lightning_leaky.functional.kinetic_energy import velocity_of
from lightning_leaky.functional.leak import leak_scale
from lightning_leaky.functional.moments import (
    features_momentum_square_of,
    momentum_moments_of,
    momentum_representation_of,
    momentum_square_of,
)
from lightning_leaky.functional.spectrum import singular_values_by_smaller_side, stable_rank_of
from lightning_leaky.functional.step_sizes import check_segment_step_sizes, equidistant_step_sizes
from lightning_leaky.metrics.base import WeightsMetric
from lightning_leaky.metrics.energies import energies_of
from lightning_leaky.metrics.momenta import LossReduction, check_loss_reduction


class PathSamples(WeightsMetric):
    """All readings of a path over a data set from its samples, by N × N matrices where N ≤ w.

    The twin of `PathEnergies`, `StableRank` and `PathMomenta` for wide networks: nothing of size w × w is formed where
    samples are fewer than neurons. It keeps every sample, so its memory grows with their number N: for L layers
    ``2 N L w`` float32 (``3 N L w`` with momenta; float64 where the representations are), and one layer's workspace of
    ``4 N² + 4 N w`` float64. What second moments take, whatever N is, says `moments_in_bytes`.

    Where N ≤ w, half of the work on float32 samples is done in float32: the energies err by about 1e-7, where a float32
    forward pass moves them by 1e-7 to 2e-5.

    `compute` returns a dictionary of tensors of shape (L,), by the names of `PathReader`.

    Args:
        num_layers: L, the number of layers.
        width: w.
        effective_depth: L̃ ≥ 0.
        with_momenta: Whether `update` is given momenta.
        with_energies: Whether to read the energies.
        with_spectrum: Whether to read the stable rank.
        loss_reduction: ``"mean"`` where the loss is a mean over the batch, ``"sum"`` where it is a sum.
        k_norm: Which K-norm.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: If L̃ is negative; from `update`, if the matrices or step-sizes do not fit the layers.

    Example:
        >>> metric = PathSamples(1, 2, effective_depth=0.5, k_norm=KNorm(gamma=4.0))
        >>> metric.update(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 7.0]]]), torch.ones(1))
        >>> metric.compute()["kinetic_energy"]
        tensor(2.5000, dtype=torch.float64)
    """

    previous: list[Tensor]
    current: list[Tensor]
    momenta: list[Tensor]

    def __init__(
        self,
        num_layers: int,
        width: int,
        effective_depth: float,
        with_momenta: bool = False,
        with_energies: bool = True,
        with_spectrum: bool = True,
        loss_reduction: LossReduction = "mean",
        k_norm: KNorm | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_layers, width, k_norm, **{"dist_sync_fn": gather_all_tensors, **kwargs})
        leak_scale(effective_depth)
        self.effective_depth = effective_depth
        self.loss_reduction = check_loss_reduction(loss_reduction)
        self.with_momenta, self.with_energies, self.with_spectrum = with_momenta, with_energies, with_spectrum
        self.step_sizes = equidistant_step_sizes(num_layers)
        for name in ("previous", "current", *(("momenta",) if with_momenta else ())):
            self.add_state(name, [], dist_reduce_fx="cat")

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
            previous: A_0, …, A_{L−1}, each of shape (N, w), with one N for all layers.
            current: A_1, …, A_L, each of shape (N, w).
            step_sizes: ρ, shape (L,).
            momenta: B_1, …, B_L, each of shape (N, w).
            weights: As in `PathMomenta`, for the criticality residual.
        """
        self.step_sizes = check_segment_step_sizes(step_sizes, self.num_layers)
        groups = {"previous": previous, "current": current}
        if self.with_momenta:
            if momenta is None:
                raise ValueError("`momenta` must be given, got None.")
            groups["momenta"] = momenta
        self.check_layers(**groups)
        rows = len(previous[0])
        if any(len(matrix) != rows for matrix in previous):
            raise ValueError(f"`previous` must have one number of rows, got {[len(matrix) for matrix in previous]}.")
        share = rows if self.loss_reduction == "mean" else 1
        for name, matrices in groups.items():
            stacked = torch.stack([_at_least_float32(matrix) for matrix in matrices], dim=1).detach()
            getattr(self, name).append((stacked * share if name == "momenta" else stacked).to(self.device))
        self.keep(weights)

    def compute(self) -> dict[str, Tensor]:
        """Return the readings by name, each of shape (L,)."""
        layers = [self._read(index, *self._samples_of(index)) for index in range(self.num_layers)]
        return {name: torch.stack([layer[name] for layer in layers]) for name in layers[0]}

    def num_rows(self) -> int:
        """Number of samples kept on this process."""
        return sum(len(batch) for batch in self.previous)

    def matrices(self) -> tuple[list[Tensor], list[Tensor], list[Tensor] | None]:
        """Samples of all batches, as `update` takes those of one: A_{l−1}, A_l and the momenta."""
        layers = zip(*map(self._samples_of, range(self.num_layers)), strict=True)
        previous, current, *momenta = (list(matrices) for matrices in layers)
        share = self.num_rows() if self.loss_reduction == "mean" else 1
        return previous, current, [momentum / share for momentum in momenta[0]] if momenta else None

    def in_bytes(self) -> int:
        """Bytes of the samples kept on this process."""
        return sum(batch.nbytes for name in self._defaults for batch in getattr(self, name))

    def _samples_of(self, index: int) -> list[Tensor]:
        """A_{l−1}, A_l and, where they are kept, B_l of one layer; what synchronisation has joined is a tensor."""
        states = [getattr(self, name) for name in self._defaults]
        batches = [[state] if isinstance(state, Tensor) else state for state in states]
        return [
            kept[0][:, index] if len(kept) == 1 else torch.cat([batch[:, index] for batch in kept]) for kept in batches
        ]

    def _read(self, index: int, previous: Tensor, current: Tensor, momentum: Tensor | None = None) -> dict[str, Tensor]:
        """Every reading of one layer."""
        dtype = working_dtype(self.device)
        kept = previous.dtype if self.k_norm.bears_float32 else dtype
        start, end = previous.to(kept), current.to(kept)
        moved = velocity_of(start, end, float(self.step_sizes[index]))
        # LAPACK raises on NaN: a diverged layer is read through a harmless matrix and masked.
        finite = bool(torch.isfinite(moved.sum(dtype=dtype)))
        safe, moved = (start, moved) if finite else (torch.zeros_like(start), torch.zeros_like(moved))
        wide = safe.to(dtype)
        readings = {}
        if self.with_energies:
            readings = energies_of(inner_products_of(self.k_norm, wide, safe, moved), self.effective_depth)
        if self.with_spectrum:
            readings["stable_rank"] = stable_rank_of(singular_values_by_smaller_side(wide))
        readings = {name: value if finite else torch.full_like(value, torch.nan) for name, value in readings.items()}
        if momentum is None:
            return readings
        return readings | self._momentum_readings(index, start.to(dtype), momentum.to(dtype))

    def _momentum_readings(self, index: int, start: Tensor, momentum: Tensor) -> dict[str, Tensor]:
        """The readings that need a momentum, which a batch's share of the samples has multiplied."""
        if self.loss_reduction == "mean":
            momentum = momentum / len(momentum)
        sigma, residual = self.k_norm.features(start), {}
        if self.weights is None:
            square = features_momentum_square_of(sigma, momentum)
        else:
            moments, weight = momentum_moments_of(sigma, start, momentum), self.weights[index].detach().to(momentum)
            square = momentum_square_of(moments.features_momentum)
            residual["criticality_residual"] = criticality_residual_of(weight, moments, self.effective_depth)
        inner = momentum_representation_of(start, momentum)
        return {
            "hamiltonian": hamiltonian_of(square, inner, self.effective_depth),
            "momentum_norm": momentum_square_of(momentum).sqrt(),
            "features_momentum_norm": square.sqrt(),
            **residual,
        }


def _at_least_float32(matrix: Tensor) -> Tensor:
    # One dtype, whatever mixed precision has made of a layer, for samples of several processes are gathered.
    return matrix.to(torch.promote_types(matrix.dtype, torch.float32))
