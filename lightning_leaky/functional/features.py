"""The features σ(A) that a layer's weight acts on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_leaky.functional._checks import check_matrix

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


def _both_signs(representation: Tensor) -> Tensor:
    """[relu(A), relu(−A)], from which A can be put together again."""
    return torch.cat([torch.relu(representation), torch.relu(-representation)], dim=-1)


_FEATURES = {**_ACTIVATIONS, "linear": torch.clone, "crelu": _both_signs}


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


def resolve_features(name: Activation) -> Callable[[Tensor], Tensor]:
    """Return the function that the name of features stands for, without their constant column.

    Args:
        name: ``"linear"`` for A itself, ``"crelu"`` for ``[relu(A), relu(−A)]``, the name of an activation, or a
            function from shape (N, w) to (N, d).

    Raises:
        ValueError: If the name is not known.

    Example:
        >>> resolve_features("crelu")(torch.tensor([[-1.0, 2.0]]))
        tensor([[0., 2., 1., 0.]])
    """
    if callable(name):
        return name
    if name not in _FEATURES:
        raise ValueError(f"`features` must be one of {sorted(_FEATURES)} or a function, got {name!r}.")
    return _FEATURES[name]


def features(representation: Tensor, activation: Activation = "relu", constant_column: bool = True) -> Tensor:
    """Features of a representation: by default ``σ(A) = [relu(A), 1]`` (arXiv 2405.17573, section 1).

    Args:
        representation: A, shape (..., N, w).
        activation: A name that `resolve_features` knows, or a function.
        constant_column: Append the column of ones that carries the bias.

    Returns:
        σ(A), shape (..., N, w + 1), or (..., N, w) without the constant column; ``"crelu"`` has 2w in place of w.

    Raises:
        ValueError: If the name is not known, or the function returns another number of rows.

    Example:
        >>> features(torch.tensor([[-1.0, 2.0]]))
        tensor([[0., 2., 1.]])
    """
    function = resolve_features(activation)
    # A function of a user's may write into what it takes, as nn.ReLU(inplace=True) does.
    activated = function(representation if function in _FEATURES.values() else representation.clone())
    if activated.shape[:-1] != representation.shape[:-1]:
        told = f"from shape {tuple(representation.shape)} to {tuple(activated.shape)}"
        raise ValueError(f"`features` must map (N, w) to (N, d), got a function {told}.")
    return torch.cat([activated, torch.ones_like(activated[..., :1])], dim=-1) if constant_column else activated


def given_features(representation: Tensor, given: Tensor | None) -> Tensor:
    """Features in the working dtype: those given, or by default those of `features`.

    Args:
        representation: A, checked, shape (..., N, w).
        given: σ(A), shape (..., N, d), or ``None``.

    Raises:
        ValueError: If they are not floating-point and finite, or their rows are not those of the representation.
    """
    if given is None:
        return features(representation)
    wide = check_matrix("features", given)
    if wide.shape[:-1] != representation.shape[:-1]:
        raise ValueError(
            f"`features` must have one row for each of the representation, {tuple(representation.shape[:-1])}, got "
            f"{tuple(wide.shape[:-1])}; form them of the same samples."
        )
    return wide
