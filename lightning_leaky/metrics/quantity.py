"""Quantities as records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Need: TypeAlias = Literal[
    "representation", "squares", "energies", "turns", "spectrum", "gradients", "parameters", "momenta", "weights", "own"
]

WORK = "Which layers do the work?"

_ABSENT = torch.empty(0)


@dataclass(frozen=True, eq=False)  # tensors have no truth value
class Sums:
    """Holds sums over the samples of a data set for the L layers of a segment.

    Attributes:
        step_sizes: ρ of the layers, shape (L,).
        effective_depth: L̃.
        products: ⟨M_i, M_j⟩_K of A and ∂_pA, shape (L, k, k); of A alone for ``"representation"``. NaN off the diagonal
            unless a quantity needs ``"energies"``.
        turns: Σ_i (1 − cos(A_{l−1}, A_l))_i over samples, and their number, shape (L, 2).
        singular_values: Those of A, largest first, shape (L, n).
        first_order: Σ_i ⟨∂C/∂A_l, A_{l−1} − A_l⟩_i over samples, and Σ_i of absolute values, shape (L, 2).
        parameters: (d/2)‖θ_l‖², ‖dθ_l + ∂C/∂θ_l‖² and ‖dθ_l‖², shape (L, 3).
        features_momentum_square: ‖Bᵀσ(A)‖²_F, shape (L,).
        momentum_representation: tr(BᵀA), shape (L,).
        momentum_square: ‖B‖²_F, shape (L,).
        residual: ‖W − L̃Bᵀσ(A)‖/‖W‖, shape (L,).
        own: The quantity's own sums, shape (L, ...).

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
    """One number for a whole path, from a quantity of its layers.

    Attributes:
        end: Last part of its key, as ``"min"``.
        says: Its meaning in a line.
        compute: From the values, shape (L,), the step-sizes, shape (L,), and L̃ to the number.
        needs_leak: Whether it has a meaning only if L̃ > 0.
        chart: Category and chart in TensorBoard's custom scalars; ``None`` for no chart.
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
    """A quantity of every layer: how to compute, log, chart and explain it.

    Pass your own to `EnergyMonitor(quantities=...)` or `measure_path`, in YAML by its import path. If processes are
    spawned, its functions cannot be lambdas.

    Args:
        key: First part of its log keys, as ``"cost_of_identity"``.
        compute: From `Sums` to the values, shape (L,).
        needs: Which sums: ``"representation"``, ``"squares"`` or ``"energies"`` (`Sums.products` of A, of A and ∂_pA
            each with itself, or of all pairs), ``"turns"`` (`Sums.turns`), ``"spectrum"`` (`Sums.singular_values`),
            ``"gradients"`` (`Sums.first_order`), ``"parameters"`` (gradients and `Sums.parameters`), ``"momenta"``
            (gradients and λ), ``"weights"`` (momenta and `Sums.residual`), or ``"own"``.
        sums: For ``"own"``, from A_{l−1} and A_l of one layer, each of shape (N, w) in float64, to sums over samples of
            any shape, which add up over batches and processes.
        title: Its name in charts; the key by default.
        formula: In plain text.
        unit: ``"energy"``, ``"cost"``, or ``"–"`` for none.
        says: Its meaning in a line.
        summaries: Numbers for the whole path.
        category: Category of its chart in TensorBoard's custom scalars.
        heading: Heading of its column in a terminal's table; no column without one.
        heat_map: Scale of its heat map in `PathFigures`; ``None`` for none.
        default: Which paths read it by default: ``"all"``, those with a ``"leak"``, or those with ``"weights"`` W_l and
            a known λ; ``None`` for none.

    Raises:
        ValueError: If the key is empty or has a slash, or if `sums` is given without ``"own"`` or the reverse.

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
        """Whether it needs gradients, and so training."""
        return self.needs in ("gradients", "parameters", "momenta", "weights")

    @property
    def has_momenta(self) -> bool:
        """Whether it needs momenta, which are gradients divided by λ."""
        return self.needs in ("momenta", "weights")

    def label(self) -> str:
        """Title, formula and unit in a line.

        Example:
            >>> Quantity("speed", lambda sums: sums.products, title="speed", formula="‖∂_pA‖_K").label()
            'speed: ‖∂_pA‖_K'
        """
        unit = "" if self.unit == "–" else f" ({self.unit})"
        return f"{self.title}: {self.formula}{unit}" if self.formula else f"{self.title}{unit}"
