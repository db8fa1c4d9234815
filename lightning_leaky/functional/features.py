"""The features σ(A) that a layer's weight acts on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

Activation: TypeAlias = str | Callable[[Tensor], Tensor]
"""An entrywise nonlinearity: one of the names that `resolve_activation` knows, or any function of a tensor."""

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "identity": torch.clone,
}


def resolve_activation(activation: Activation) -> Callable[[Tensor], Tensor]:
    """Return the function that an activation names.

    Args:
        activation: ``"relu"``, ``"leaky_relu"``, ``"gelu"``, ``"silu"``, ``"tanh"``, ``"identity"`` or a function.

    Raises:
        ValueError: If the name is not known.

    Example:
        >>> resolve_activation("relu")(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """
    if callable(activation):
        return activation
    if activation not in _ACTIVATIONS:
        raise ValueError(f"`activation` must be one of {sorted(_ACTIVATIONS)} or a function, got {activation!r}.")
    return _ACTIVATIONS[activation]


def features(representation: Tensor, activation: Activation = "relu", constant_column: bool = True) -> Tensor:
    """Features of a representation: ``σ(A) = [relu(A), 1]`` (arXiv 2405.17573, section 1).

    Args:
        representation: A, shape (..., N, w).
        activation: Entrywise nonlinearity, a name or a function.
        constant_column: Append the column of ones that carries the bias.

    Returns:
        σ(A), shape (..., N, w + 1), or (..., N, w) without the constant column.

    Raises:
        ValueError: If the activation's name is not known.

    Example:
        >>> features(torch.tensor([[-1.0, 2.0]]))
        tensor([[0., 2., 1.]])
    """
    return features_beside((), representation, activation, constant_column)[0]


def features_beside(
    matrices: Sequence[Tensor], representation: Tensor, activation: Activation, constant_column: bool
) -> tuple[Tensor, Tensor]:
    """σ(A), a view of the other: [σ(A), M_1, …, M_k], shape (..., N, d + k w).

    One copy of everything, for products of σ(A)ᵀ with all of it: one large product in place of k + 1 small ones.
    """
    activated = resolve_activation(activation)(representation)
    ones = [torch.ones_like(activated[..., :1])] if constant_column else []
    beside = torch.cat([activated, *ones, *matrices], dim=-1)
    return beside[..., : activated.shape[-1] + len(ones)], beside
