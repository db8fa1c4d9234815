"""How quantities are computed from sums over samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lightning_leaky.functional._checks import check_non_negative
from lightning_leaky.functional.features import features
from lightning_leaky.functional.k_norm import KNorm
from lightning_leaky.metrics.layer_batch import MOMENTUM_SUMS, FeatureMap
from lightning_leaky.metrics.quantity import Quantity, Sums
from lightning_leaky.metrics.records import QUANTITIES
from lightning_leaky.utilities.arguments import located

LossReduction: TypeAlias = Literal["mean", "sum"]

Precision: TypeAlias = Literal["default", "high"]
"""How float32 representations are multiplied: in float32, if the stabiliser allows it, or in float64."""

Weights: TypeAlias = Sequence[Tensor] | Tensor | None
"""W_1, …, W_L, each of shape (w, d), read one at a time; ``None`` if unknown."""

_DEFAULT = KNorm()
OWN = "own_"
_GIVEN = {"weights": "residual", "parameters": "parameters"}


@dataclass(frozen=True)
class Recipe:
    """Which quantities to read, and what their values depend on beside the samples.

    Args:
        quantities: Records, keys or import paths; see `Quantity`.
        effective_depth: L̃ ≥ 0.
        k_norm: Which K-norm.
        feature_map: From representations, shape (N, w), to features σ(A), shape (N, d).
        loss_reduction: ``"mean"`` or ``"sum"``, how the loss reduces the samples of a batch.
        weight_decay: λ of the momenta; any number if only gradients are read.
        precision: ``"high"``, or ``"default"`` to multiply float32 representations in float32; see `ReadingSettings`.

    Raises:
        ValueError: If a quantity is not known, or another argument is out of range.

    Example:
        >>> Recipe(["cost_of_identity", "hamiltonian"]).state_shapes(width=2)
        {'feature_products': (3, 5), 'inner': (1, 1), 'features_momentum': (3, 2), 'momentum_sums': (3,)}
    """

    quantities: Sequence[str | Quantity]
    effective_depth: float = 0.0
    k_norm: KNorm = _DEFAULT
    feature_map: FeatureMap = features
    loss_reduction: LossReduction = "mean"
    weight_decay: float = 1.0
    precision: Precision = "high"

    def __post_init__(self) -> None:
        check_non_negative("effective_depth", self.effective_depth)
        check_loss_reduction(self.loss_reduction)
        check_precision(self.precision)
        _ = self.records  # refuses unknown ones
        object.__setattr__(self, "quantities", plain_quantities(self.quantities))

    @cached_property
    def records(self) -> tuple[Quantity, ...]:
        """Records of `quantities`."""
        return resolve_quantities(self.quantities)

    @cached_property
    def num_matrices(self) -> int:
        """How many of A and ∂_pA are measured in the K-norm."""
        return 2 if self.has_cross or self._has("squares") else int(self._has("representation"))

    @cached_property
    def has_cross(self) -> bool:
        """Whether ⟨∂_pA, A⟩_K is needed."""
        return self._has("energies")

    @cached_property
    def has_turns(self) -> bool:
        """Whether turns are needed."""
        return self._has("turns")

    @cached_property
    def has_spectrum(self) -> bool:
        """Whether singular values are needed."""
        return self._has("spectrum")

    @cached_property
    def has_gradients(self) -> bool:
        """Whether batches need momenta."""
        return any(record.has_gradients for record in self.records)

    @cached_property
    def has_first_order(self) -> bool:
        """Whether first-order sums are needed."""
        return self._has("gradients") or self.needs_parameters

    @cached_property
    def has_momenta(self) -> bool:
        """Whether momentum sums are needed."""
        return any(record.has_momenta for record in self.records)

    @cached_property
    def has_own(self) -> bool:
        """Whether own sums are needed."""
        return self._has("own")

    @cached_property
    def needs_weights(self) -> bool:
        """Whether weights are needed."""
        return self._has("weights")

    @cached_property
    def needs_parameters(self) -> bool:
        """Whether parameters and their gradients are needed."""
        return self._has("parameters")

    def dtype(self, samples: torch.dtype) -> torch.dtype:
        """Dtype in which products of kept samples are formed and factorised."""
        is_single = self.precision == "default" and self.k_norm.bears_float32()
        return torch.float32 if is_single and samples != torch.float64 else torch.float64

    def share(self, momentum: Tensor) -> int:
        """Factor that makes momenta of batches add up, and divisor of their sum.

        A mean loss puts 1/N into each row of its gradient.
        """
        return len(momentum) if self.loss_reduction == "mean" else 1

    def state_shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the sums over samples of one layer, by name."""
        one = torch.zeros(1, width, dtype=torch.float64)
        size, count = self.feature_map(one).shape[-1], self.num_matrices
        found: dict[str, tuple[int, ...]] = {}
        if count:
            found |= {"feature_products": (size, size + count * width), "inner": (count, count)}
        if self.has_turns:
            found["turns"] = (2,)
        if self.has_spectrum:
            found["second_moment"] = (width, width)
        if self.has_first_order:
            found["first_order"] = (3,)  # and the number of samples
        if self.has_momenta:  # tr(BᵀA), ‖B‖² and the number of samples
            found |= {"features_momentum": (size, width), "momentum_sums": (3,)}
        return found | {name: tuple(own.shape) for name, own in self.own_sums(one, one).items()}

    def sum_shapes(self, width: int, num_values: int, has_weights: bool) -> dict[str, tuple[int, ...]]:
        """Shapes of the fields of `Sums` of one layer, by name."""
        shapes = self.state_shapes(width)
        found = {name: shape for name, shape in shapes.items() if name == "turns" or name.startswith(OWN)}
        if self.num_matrices:
            found["products"] = shapes["inner"]
        if self.has_spectrum:
            found["singular_values"] = (num_values,)
        if self.has_first_order:
            found["first_order"] = (2,)
        if self.has_momenta:
            found |= dict.fromkeys(MOMENTUM_SUMS, ())
        if has_weights:
            found["residual"] = ()
        return found

    def state_bytes(self, num_layers: int, width: int) -> int:
        """Bytes of the sums over samples: ``8 (d² + 2dw)`` per layer for the energies.

        Example:
            >>> Recipe(["kinetic_energy"]).state_bytes(num_layers=1, width=2)
            200
        """
        return 8 * num_layers * sum(map(math.prod, self.state_shapes(width).values()))

    def own_sums(self, previous: Tensor, current: Tensor) -> dict[str, Tensor]:
        """Own sums of the quantities over the samples of one layer, by name."""
        return {
            f"{OWN}{record.key}": record.sums(previous, current) for record in self.records if record.sums is not None
        }

    def values(
        self, sums: Mapping[str, Tensor], step_sizes: Tensor, failures: dict[str, Exception] | None = None
    ) -> dict[str, Tensor]:
        """Every quantity that the sums allow, by key, each of shape (L,).

        With `failures`, errors go there and the quantity reads NaN: a process that raised would leave the others in a
        collective.
        """
        known_sums = {field.name: sums[field.name] for field in fields(Sums) if field.name in sums}
        if self.has_first_order:
            known_sums["first_order"] = self.weight_decay * known_sums["first_order"]  # B = −(1/λ) ∂C/∂A
        common = Sums(step_sizes, self.effective_depth, **known_sums)
        found = {}
        for record in self.records:
            if _GIVEN.get(record.needs) in (None, *known_sums):
                known = common if record.sums is None else replace(common, own=sums[f"{OWN}{record.key}"])
                try:
                    values = record.compute(known)
                    if values.shape != step_sizes.shape:
                        raise ValueError(
                            f"`compute` of {record.key!r} must return one number for each of {len(step_sizes)} layers, "
                            f"got shape {tuple(values.shape)}."
                        )
                    found[record.key] = values
                except Exception as error:
                    if failures is None:
                        raise
                    failures[record.key] = error
                    found[record.key] = torch.full_like(step_sizes, torch.nan)
        return found

    def __getstate__(self) -> dict[str, object]:
        """Leave out the cached records, which do not pickle."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def _has(self, need: str) -> bool:
        return any(record.needs == need for record in self.records)


def check_precision(precision: Precision) -> Precision:
    """Return a known precision, or raise ValueError."""
    if precision not in ("default", "high"):
        raise ValueError(f'`precision` must be "default" or "high", got {precision!r}.')
    return precision


def check_loss_reduction(loss_reduction: LossReduction) -> LossReduction:
    """Return a known loss reduction, or raise ValueError."""
    if loss_reduction not in ("mean", "sum"):
        raise ValueError(f'`loss_reduction` must be "mean" or "sum", got {loss_reduction!r}.')
    return loss_reduction


def resolve_quantities(quantities: Sequence[str | Quantity]) -> tuple[Quantity, ...]:
    """Return the records of some quantities: ours in the order of `QUANTITIES`, then others as they come."""
    if isinstance(quantities, str):
        raise ValueError(f"`quantities` must be a list of names, got the string {quantities!r}; put it in brackets.")
    if not quantities:
        raise ValueError(f"`quantities` must be chosen from {list(QUANTITIES)}, got none.")
    found = list(dict.fromkeys(map(_resolved, quantities)))
    keys = [record.key for record in found]
    if len(set(keys)) < len(keys):
        raise ValueError(f"`quantities` must have different keys, got {keys}; rename those of your own.")
    return tuple(sorted(found, key=lambda record: [*QUANTITIES, record.key].index(record.key)))


def plain_quantities(quantities: Sequence[str | Quantity]) -> tuple[str | Quantity, ...]:
    """Replace our records, which do not pickle, by their keys."""
    return tuple(one.key if isinstance(one, Quantity) and QUANTITIES.get(one.key) is one else one for one in quantities)


def _resolved(quantity: str | Quantity) -> Quantity:
    record = (QUANTITIES.get(quantity) or located(quantity)) if isinstance(quantity, str) else quantity
    if not isinstance(record, Quantity):
        raise ValueError(
            f"`quantities` must be chosen from {list(QUANTITIES)}, or be records, or their import paths, got "
            f"{quantity!r}."
        )
    return record
