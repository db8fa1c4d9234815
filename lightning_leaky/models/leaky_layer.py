"""One leaky layer."""

from __future__ import annotations

from typing import Any, TypeAlias
from weakref import ReferenceType

import torch
from torch import Tensor, nn

from lightning_leaky.functional.leaky_step import leaky_step
from lightning_leaky.functional.relu_step import square_handle, step_behind
from lightning_leaky.paths.layers import at_rest
from lightning_leaky.utilities.processes import unsharded

_Seen: TypeAlias = tuple[Tensor | None, int]


class LeakyLayer(nn.Module):
    """One Euler step ``A_l = (1 − ρ_l L̃) A_{l−1} + ρ_l σ(A_{l−1}) W_lᵀ`` (arXiv 2405.17573, section 1.1).

    Args:
        width: Common width w of the representations.
        effective_depth: L̃ ≥ 0.
        activation: Name of the nonlinearity.
        constant_column: Whether the layer has a bias.

    Example:
        >>> layer = LeakyLayer(width=3, effective_depth=2.0)
        >>> layer(torch.zeros(5, 3), torch.tensor(0.25)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self, width: int, effective_depth: float, activation: str = "relu", constant_column: bool = True
    ) -> None:
        super().__init__()
        self.effective_depth = effective_depth
        self.activation = activation
        self.weight = nn.Parameter(torch.zeros(width, width))
        self.bias = nn.Parameter(torch.zeros(width)) if constant_column else None
        self._last: list[tuple[ReferenceType[Any], list[_Seen]]] = []  # setting an attribute is slow

    def forward(self, representation: Tensor, step_size: Tensor) -> Tensor:
        """Return A_l, shape (..., w), from A_{l−1}, shape (..., w), and ρ_l, a scalar tensor."""
        weight, bias = self.weight, self.bias  # each access computes a parametrized weight
        current = leaky_step(representation, weight, bias, step_size, self.effective_depth, self.activation)
        if self.training and not torch.compiler.is_compiling():
            step = step_behind(current, weight)
            self._last[:] = [] if step is None else [(step, _seen(weight, bias))]
        return current

    def handle(self) -> Tensor | None:
        """Return a `square_handle` with the last forward pass in training, if it is still valid."""
        if not self._last or not torch.is_grad_enabled():  # first: access may change a parametrized weight
            return None
        (reference, seen), now = self._last[0], _seen(self.weight, self.bias)
        is_same = all(one is other and at == since for (one, at), (other, since) in zip(seen, now, strict=True))
        step = reference()
        return square_handle(step, self.weight, self.bias) if is_same and step is not None else None

    def augmented_weight(self) -> Tensor:
        """W_l with its bias as last column, shape (w, w + 1); (w, w) without the constant column.

        Every process must call it, because it gathers sharded parameters. It does not update a parametrized weight.
        """
        with at_rest(self):
            weight = unsharded(self.weight)
            return weight if self.bias is None else torch.cat([weight, unsharded(self.bias)[:, None]], dim=1)

    def square_norm(self) -> Tensor:
        """‖W_l‖²_F, bias included."""
        square = self.weight.square().sum()
        return square if self.bias is None else square + self.bias.square().sum()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": []}

    def extra_repr(self) -> str:
        """Describe the layer."""
        with at_rest(self):
            return f"width={len(self.weight)}, effective_depth={self.effective_depth}, activation={self.activation!r}"


def _seen(*parameters: Tensor | None) -> list[_Seen]:
    return [(one, 0 if one is None else one._version) for one in parameters]
