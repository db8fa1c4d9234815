"""What a quantity is: one record that everything else about it is made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Need: TypeAlias = Literal[
    "representation", "squares", "energies", "turns", "spectrum", "gradients", "parameters", "momenta", "weights", "own"
]
"""Which sums over samples a quantity is computed from; see `Sums`."""

WORK = "Which layers do the work?"
"""The chart, in TensorBoard's custom scalars, of a quantity that names no other."""

_ABSENT = torch.empty(0)


@dataclass(frozen=True, eq=False)  # tensors have no truth value to compare by
class Sums:
    """What quantities are computed from: sums over the samples of a data set, of all L layers of a segment.

    Attributes:
        step_sizes: ρ of the layers, shape (L,).
        effective_depth: L̃.
        products: ⟨M_i, M_j⟩_K, shape (L, k, k), of A and ∂_pA; of A alone for needs of ``"representation"``. NaN beside
            the diagonal unless a quantity needs ``"energies"``.
        turns: Σ_i (1 − cos(A_{l−1}, A_l))_i over samples, and their number, shape (L, 2).
        singular_values: Those of A, largest first, shape (L, n).
        first_order: Σ_i ⟨∂C/∂A_l, A_{l−1} − A_l⟩_i over samples, and Σ_i of absolute values, shape (L, 2).
        parameters: (d/2)‖θ_l‖², ‖dθ_l + ∂C/∂θ_l‖² and ‖dθ_l‖² of the parameters of a layer, shape (L, 3).
        features_momentum_square: ‖Bᵀσ(A)‖²_F, shape (L,).
        momentum_representation: tr(BᵀA), shape (L,).
        momentum_square: ‖B‖²_F, shape (L,).
        residual: ‖W − L̃Bᵀσ(A)‖/‖W‖, shape (L,).
        own: What a quantity has summed by itself, shape (L, ...).

    Example:
        >>> sums = Sums(torch.tensor([0.5, 0.5]), 2.0, singular_values=torch.tensor([[3.0, 1.0], [2.0, 2.0]]))
        >>> sums.singular_values[:, 0] / sums.singular_values.sum(-1)
        tensor([0.7500, 0.5000])
    """

    step_sizes: Tensor
    effective_depth: float
    products: Tensor = _ABSENT
    turns: Tensor = _ABSENT
    singular_values: Tensor = _ABSENT
    first_order: Tensor = _ABSENT
    parameters: Tensor = _ABSENT
    features_momentum_square: Tensor = _ABSENT
    momentum_representation: Tensor = _ABSENT
    momentum_square: Tensor = _ABSENT
    residual: Tensor = _ABSENT
    own: Tensor = _ABSENT


@dataclass(frozen=True)
class Summary:
    """One number for a whole path, made of a quantity of its layers.

    Attributes:
        end: Last part of its key, as ``"min"``.
        says: What a reader learns from it, in a line.
        compute: The number, from the values, shape (L,), the step-sizes, shape (L,), and L̃.
        needs_leak: Whether it means something with L̃ > 0 only.
        chart: Category and chart in TensorBoard's custom scalars; ``None`` for no chart of its own.
        unit: ``"energy"``, or ``"–"`` for none.

    Example:
        >>> def least(values, step_sizes, effective_depth):
        ...     return values.amin()
        >>> Summary("min", "Least over the layers.", least).compute(torch.tensor([3.0, 1.0]), torch.ones(2) / 2, 0.0)
        tensor(1.)
    """

    end: str
    says: str
    compute: Callable[[Tensor, Tensor, float], Tensor]
    needs_leak: bool = False
    chart: tuple[str, str] | None = None
    unit: str = "–"


@dataclass(frozen=True)
class Quantity:
    """A quantity of every layer: how it is computed, logged, charted and explained.

    Log keys, guide, charts, report and tables are made from it. Pass one of your own to `EnergyMonitor(quantities=...)`
    or `measure_path`, in YAML by its import path. Functions have names, no lambdas, where processes are spawned.

    Args:
        key: First part of its log keys, as ``"cost_of_identity"``.
        compute: The values, shape (L,), from the sums of a data set; see `Sums`.
        needs: Which sums: ``"representation"``, ``"squares"`` or ``"energies"`` (`Sums.products` of A, of A and ∂_pA
            each with itself, or of all pairs), ``"turns"`` (`Sums.turns`), ``"spectrum"`` (`Sums.singular_values`),
            ``"gradients"`` (`Sums.first_order`), ``"parameters"`` (gradients and `Sums.parameters`), ``"momenta"``
            (gradients and λ), ``"weights"`` (momenta and `Sums.residual`), or ``"own"``.
        sums: Where they are its own: sums over samples, of any shape, from A_{l−1} and A_l of one layer, each of shape
            (N, w) in float64. Those of batches and processes are added up.
        title: Its name, in charts; the key by default.
        formula: In plain text.
        unit: ``"energy"``, ``"cost"``, or ``"–"`` for none.
        says: What a reader learns from it, in a line.
        summaries: Numbers for the whole path.
        category: Category of its chart in TensorBoard's custom scalars.
        heading: Heading of its column in a terminal's table; without one it has no column.
        heat_map: Scale of its heat map in `PathFigures`; ``None`` for none.
        default: On which paths it is read by default: ``"all"``, those with a ``"leak"``, or with ``"weights"`` W_l
            where λ is known; ``None`` for none.

    Raises:
        ValueError: If its own sums are missing, or given where it does not need them.

    Example:
        >>> def share(sums):
        ...     return sums.singular_values[:, 0] / sums.singular_values.sum(-1)
        >>> leading = Quantity("leading_share", share, "spectrum", says="Near 1 one direction holds everything.")
        >>> leading.title
        'leading_share'
    """

    key: str
    compute: Callable[[Sums], Tensor]
    needs: Need = "energies"
    sums: Callable[[Tensor, Tensor], Tensor] | None = None
    title: str = ""
    formula: str = ""
    unit: str = "–"
    says: str = ""
    summaries: tuple[Summary, ...] = ()
    category: str = WORK
    heading: str = ""
    heat_map: Literal["linear", "log"] | None = None
    default: Literal["all", "leak", "weights"] | None = None

    def __post_init__(self) -> None:
        if not self.key or "/" in self.key:
            raise ValueError(f"`key` must be a name without a slash, got {self.key!r}: it begins the log keys.")
        if (self.sums is None) == (self.needs == "own"):
            raise ValueError(
                f'`sums` must be given where `needs` is "own", and nowhere else; {self.key!r} needs {self.needs!r} and '
                f"its sums are {self.sums!r}."
            )
        if not self.title:
            object.__setattr__(self, "title", self.key)

    @property
    def has_gradients(self) -> bool:
        """Whether it is computed from gradients, so that it is read in training only."""
        return self.needs in ("gradients", "parameters", "momenta", "weights")

    @property
    def has_momenta(self) -> bool:
        """Whether it is computed from momenta, which are gradients divided by λ."""
        return self.needs in ("momenta", "weights")

    def label(self) -> str:
        """Title, formula and unit in a line.

        Example:
            >>> Quantity("speed", lambda sums: sums.products, title="speed", formula="‖∂_pA‖_K").label()
            'speed: ‖∂_pA‖_K'
        """
        unit = "" if self.unit == "–" else f" ({self.unit})"
        return f"{self.title}: {self.formula}{unit}" if self.formula else f"{self.title}{unit}"
