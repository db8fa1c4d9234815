"""Settings of a Leaky ResNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from lightning_leaky.functional._checks import check_non_negative
from lightning_leaky.functional.features import resolve_activation

MapKind: TypeAlias = Literal["learned", "fixed", "identity"]


@dataclass(frozen=True)
class NetworkSettings:
    """Arguments of `LeakyResNet` and `LeakyResNetModule`.

    Args:
        in_features: Size of an input.
        out_features: Size of an output.
        width: w, the width of all layers.
        num_layers: L ≥ 1.
        effective_depth: L̃ ≥ 0.
        activation: ``"relu"``, ``"leaky_relu"``, ``"gelu"``, ``"silu"``, ``"tanh"`` or ``"identity"``.
        constant_column: Whether σ(A) ends with a constant column, so that layers have biases.
        step_sizes: ``"equidistant"``, ``"irregular"``, or L positive numbers.
        input_map: Map of inputs to the width: ``"learned"``, ``"fixed"`` (random orthonormal columns, which keep
            distances) or ``"identity"``.
        output_map: Map to the outputs: ``"learned"``, ``"fixed"`` (random orthonormal rows) or ``"identity"``.
        init: ``"identity"`` draws W = L̃[I, 0] + `init_noise` · N(0, 1/w), whose mean keeps a non-negative
            representation; ``"plain"`` draws N(0, 2/w), whose signal decays like exp(−L̃) and
            whose training collapses at large L̃.
        init_noise: Size of that noise.

    Raises:
        ValueError: If a number is out of range or a name unknown.

    Example:
        >>> NetworkSettings(30, 30, width=100, num_layers=20, effective_depth=7.0).init_noise
        0.3
    """

    in_features: int
    out_features: int
    width: int
    num_layers: int
    effective_depth: float
    activation: str = "relu"
    constant_column: bool = True
    step_sizes: Literal["equidistant", "irregular"] | Sequence[float] = "equidistant"
    input_map: MapKind = "learned"
    output_map: MapKind = "learned"
    init: Literal["identity", "plain"] = "identity"
    init_noise: float = 0.3

    def __post_init__(self) -> None:
        for name in ("in_features", "out_features", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)!r}.")
        if self.init not in ("identity", "plain"):
            raise ValueError(f'`init` must be "identity" or "plain", got {self.init!r}.')
        resolve_activation(self.activation)
        check_non_negative("effective_depth", self.effective_depth)
        check_non_negative("init_noise", self.init_noise)
