"""Readings that need the momentum B_l = −(1/λ) ∂C/∂A_l: the Hamiltonian and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lightning_leaky.functional.criticality import criticality_residual_of
from lightning_leaky.functional.hamiltonian import hamiltonian_from_moments
from lightning_leaky.functional.k_norm import KNorm
from lightning_leaky.functional.leak import leak_scale
from lightning_leaky.functional.moments import MomentumMoments, momentum_moments_of
from lightning_leaky.metrics.base import WeightsMetric, summed_state

LossReduction: TypeAlias = Literal["mean", "sum"]
"""How a cost runs over the samples of a batch."""


def check_loss_reduction(loss_reduction: LossReduction) -> LossReduction:
    """Return a loss reduction, or raise ValueError where it is none."""
    if loss_reduction not in ("mean", "sum"):
        raise ValueError(f'`loss_reduction` must be "mean" or "sum", got {loss_reduction!r}.')
    return loss_reduction


class _MomentumMetric(WeightsMetric):
    """Sums the momentum moments; a subclass chooses what `compute` returns."""

    features_momentum: Tensor
    momentum_representation: Tensor
    momentum_square: Tensor
    num_samples: Tensor

    def __init__(
        self,
        num_layers: int,
        width: int,
        effective_depth: float,
        loss_reduction: LossReduction = "mean",
        k_norm: KNorm | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_layers, width, k_norm, **{"dist_sync_fn": _summed_layers, **kwargs})
        leak_scale(effective_depth)
        self.effective_depth = effective_depth
        self.loss_reduction = check_loss_reduction(loss_reduction)
        self.add_sum("features_momentum", num_layers, self.feature_width, width)
        self.add_sum("momentum_representation", num_layers)
        self.add_sum("momentum_square", num_layers)
        self.add_sum("num_samples", num_layers)
        # Of metrics with equal states a MetricCollection updates but one, and the others would not hear of the weights.
        # NaN equals nothing.
        self.add_state("unequal", torch.tensor(torch.nan, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        representations: Sequence[Tensor] | Tensor,
        momenta: Sequence[Tensor] | Tensor,
        weights: Sequence[Tensor] | Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            representations: A_0, …, A_{L−1}, each of shape (N, w).
            momenta: B_1, …, B_L, each of shape (N, w).
            weights: W_1, …, W_L, each of shape (w, d), for the criticality residual: the same at every batch and
                process. A tensor or list is copied; of any other sequence one layer at a time is asked for in
                `compute`, as sharded weights need. A process without data gives them with an empty batch.
        """
        for index, (start, momentum) in enumerate(self.layers_of(representations=representations, momenta=momenta)):
            share = len(start) if self.loss_reduction == "mean" else 1
            moments = momentum_moments_of(self.k_norm.features(start), start, momentum)
            self.features_momentum[index] += share * moments.features_momentum
            self.momentum_representation[index] += share * moments.momentum_representation
            self.momentum_square[index] += share**2 * moments.momentum_square
            self.num_samples[index] += share
        self.keep(weights)

    def moments(self) -> MomentumMoments:
        """Return the moments of the whole data set."""
        total = self.num_samples if self.loss_reduction == "mean" else torch.ones_like(self.num_samples)
        return MomentumMoments(
            features_momentum=self.features_momentum / total[:, None, None],
            momentum_representation=self.momentum_representation / total,
            momentum_square=self.momentum_square / total**2,
        )

    def readings(self) -> dict[str, Tensor]:
        """Return the readings by name, each of shape (L,)."""
        moments = self.moments()
        readings = {
            "hamiltonian": hamiltonian_from_moments(moments, self.effective_depth),
            "momentum_norm": moments.momentum_square.sqrt(),
            "features_momentum_norm": torch.linalg.matrix_norm(moments.features_momentum),
        }
        if self.weights is not None:
            readings["criticality_residual"] = self._residuals(self.weights, moments)
        return readings

    def _residuals(self, weights: Sequence[Tensor] | Tensor, moments: MomentumMoments) -> Tensor:
        """Criticality residuals, shape (L,), with one layer's weights at a time."""
        return torch.stack(
            [
                criticality_residual_of(
                    weights[index].detach().to(layer.features_momentum), layer, self.effective_depth
                )
                for index, layer in enumerate(map(MomentumMoments, *moments))
            ]
        )


class PathMomenta(_MomentumMetric):
    """All momentum readings of a path over a data set.

    `compute` returns a dictionary of tensors of shape (L,): ``hamiltonian`` (momentum form), ``momentum_norm``
    (‖B‖_F), ``features_momentum_norm`` (‖Bᵀσ(A)‖_F) and, where weights were given, ``criticality_residual``. Layer l
    pairs A_{l−1} with B_l.

    A loss that is a mean over the samples of its batch puts 1/N into each row of the gradient. The momenta of a data
    set are then those of its batches, each weighted by its share of the samples: `loss_reduction` says so.

    Args:
        num_layers: L, the number of layers.
        width: w.
        effective_depth: L̃ ≥ 0.
        loss_reduction: ``"mean"`` where the loss is a mean over the batch, ``"sum"`` where it is a sum.
        k_norm: Supplies activation and constant column.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: If L̃ is negative or `loss_reduction` is neither; from `update`, if the matrices do not fit.

    Example:
        >>> metric = PathMomenta(1, 2, effective_depth=2.0)
        >>> metric.update(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.0, 1.0]]]))
        >>> metric.compute()["hamiltonian"]
        tensor(2., dtype=torch.float64)
    """

    def compute(self) -> dict[str, Tensor]:
        """Return the readings by name, each of shape (L,)."""
        return self.readings()


class Hamiltonian(_MomentumMetric):
    """Hamiltonian in momentum form of each layer over a data set; see `lightning_leaky.hamiltonian`.

    Takes the arguments of `PathMomenta`; `compute` returns shape (L,), an energy.

    Example:
        >>> metric = Hamiltonian(1, 2, effective_depth=2.0)
        >>> metric.update(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.0, 1.0]]]))
        >>> metric.compute()
        tensor(2., dtype=torch.float64)
    """

    def compute(self) -> Tensor:
        """Return the values, shape (L,)."""
        return self.readings()["hamiltonian"]


class CriticalityResidual(_MomentumMetric):
    """Criticality residual of each layer over a data set; see `lightning_leaky.functional.criticality_residual`.

    Takes the arguments of `PathMomenta`; `update` wants the weights; `compute` returns shape (L,), no unit.

    Example:
        >>> metric = CriticalityResidual(1, 2, effective_depth=2.0)
        >>> W = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
        >>> metric.update(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.0, 1.0]]]), W)
        >>> metric.compute()
        tensor(5., dtype=torch.float64)
    """

    def compute(self) -> Tensor:
        """Return the values, shape (L,)."""
        readings = self.readings()
        if "criticality_residual" not in readings:
            raise ValueError("`weights` must be given to `update` for a criticality residual, got None.")
        return readings["criticality_residual"]


def _summed_layers(state: Tensor, group: Any = None) -> list[Tensor]:
    """Sums over processes, as of every metric of a path; what is of no layer is no sum and is not sent."""
    return summed_state(state, group) if state.ndim else [state]
