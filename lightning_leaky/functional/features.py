"""The features σ(A) of a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_leaky.functional._checks import check_matrix

Activation: TypeAlias = str | Callable[[Tensor], Tensor]
"""A name of an entrywise nonlinearity, or a function."""

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "identity": torch.clone,
}


def _both_signs(representation: Tensor) -> Tensor:
    return torch.cat([torch.relu(representation), torch.relu(-representation)], dim=-1)


_FEATURES = {**_ACTIVATIONS, "linear": torch.clone, "crelu": _both_signs}


def resolve_activation(activation: Activation) -> Callable[[Tensor], Tensor]:
    """Return the function of an activation.

    Args:
        activation: ``"relu"``, ``"leaky_relu"``, ``"gelu"``, ``"silu"``, ``"tanh"``, ``"identity"`` or a function.

    Raises:
        ValueError: If the name is not known.

    Example:
        >>> resolve_activation("relu")(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """
    return _resolve("activation", activation, _ACTIVATIONS)


def resolve_features(name: Activation) -> Callable[[Tensor], Tensor]:
    """Return the function of features without their constant column.

    Args:
        name: ``"linear"`` for A itself, ``"crelu"`` for ``[relu(A), relu(−A)]``, the name of an activation, or a
            function from shape (N, w) to (N, d).

    Raises:
        ValueError: If the name is not known.

    Example:
        >>> resolve_features("crelu")(torch.tensor([[-1.0, 2.0]]))
        tensor([[0., 2., 1., 0.]])
    """
    return _resolve("features", name, _FEATURES)


def _resolve(arg: str, name: Activation, known: Mapping[str, Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    if callable(name):
        return name
    if name not in known:
        raise ValueError(f"`{arg}` must be one of {sorted(known)} or a function, got {name!r}.")
    return known[name]


def features(representation: Tensor, activation: Activation = "relu", constant_column: bool = True) -> Tensor:
    """Features, by default ``σ(A) = [relu(A), 1]`` (arXiv 2405.17573, section 1).

    Args:
        representation: A, shape (..., N, w).
        activation: As of `resolve_features`.
        constant_column: Whether to append the column of ones that carries the bias.

    Returns:
        σ(A), shape (..., N, w + 1), or (..., N, w) without the constant column; ``"crelu"`` has 2w in place of w.

    Raises:
        ValueError: If the name is not known, or the function changes the number of rows.

    Example:
        >>> features(torch.tensor([[-1.0, 2.0]]))
        tensor([[0., 2., 1.]])
    """
    function = resolve_features(activation)
    # A user's function may overwrite its input, as nn.ReLU(inplace=True) does.
    activated = function(representation if function in _FEATURES.values() else representation.clone())
    if activated.shape[:-1] != representation.shape[:-1]:
        told = f"from shape {tuple(representation.shape)} to {tuple(activated.shape)}"
        raise ValueError(f"`features` must map (N, w) to (N, d), got a function {told}.")
    return torch.cat([activated, torch.ones_like(activated[..., :1])], dim=-1) if constant_column else activated


def given_features(representation: Tensor, given: Tensor | None) -> Tensor:
    """Features in the working dtype: those given, checked, or by default those of `features`."""
    if given is None:
        return features(representation)
    wide = check_matrix("features", given)
    if wide.shape[:-1] != representation.shape[:-1]:
        raise ValueError(
            f"`features` must have one row for each of the representation, {tuple(representation.shape[:-1])}, got "
            f"{tuple(wide.shape[:-1])}; form them of the same samples."
        )
    return wide
