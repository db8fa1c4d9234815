"""Checks, whose errors name argument, value and remedy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def implements(value: Any, protocol: type) -> bool:
    """Return whether ``value`` has every member of a protocol.

    Since Python 3.12 ``isinstance`` misses what ``__getattr__`` returns: buffers and submodules of an ``nn.Module``.
    """
    names = (name for part in protocol.__mro__ for name in (*vars(part), *getattr(part, "__annotations__", ())))
    return all(hasattr(value, name) for name in names if not name.startswith("_"))


def working_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def widen(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in its working dtype."""
    return tensor.to(working_dtype(tensor.device))


def check_matrix(name: str, tensor: Tensor) -> Tensor:
    """Return a floating-point, finite matrix in the working dtype, or raise ValueError."""
    if not isinstance(tensor, Tensor):
        raise ValueError(
            f"`{name}` must be a torch.Tensor, got {type(tensor).__name__}; convert it with torch.as_tensor."
        )
    if not tensor.is_floating_point():
        raise ValueError(f"`{name}` must be a floating-point tensor, got {tensor.dtype}; convert it with `.float()`.")
    if tensor.ndim < 2 or 0 in tensor.shape:
        raise ValueError(
            f"`{name}` must have shape (..., rows, columns) with at least one entry, got {tuple(tensor.shape)}; "
            "put samples in rows and neurons in columns."
        )
    if not bool(torch.isfinite(tensor).all()):
        count = int((~torch.isfinite(tensor)).sum())
        raise ValueError(f"`{name}` must be finite, got {count} NaN or infinite entries; look for a diverged layer.")
    return widen(tensor)


def check_same_shape(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ValueError unless the shapes agree."""
    if tensor.shape != other.shape:
        raise ValueError(
            f"`{name}` must have the shape of `{other_name}`, got {tuple(tensor.shape)} and {tuple(other.shape)}; "
            "take both from the same samples and layers of one width."
        )


def check_matrices(**tensors: Tensor) -> list[Tensor]:
    """Return `check_matrix` of tensors of one shape, or raise ValueError."""
    wide = [check_matrix(name, tensor) for name, tensor in tensors.items()]
    names = list(tensors)
    for name, tensor in zip(names, wide, strict=True):
        check_same_shape(name, tensor, names[0], wide[0])
    return wide


def check_layers(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor of three dimensions, or raise ValueError."""
    if tensor.ndim != 3:
        raise ValueError(f"`{name}` must have shape (L, rows, columns), got {tuple(tensor.shape)}; stack the layers.")
    return tensor


def check_non_negative(name: str, value: float) -> float:
    """Return a finite value ≥ 0, or raise ValueError."""
    if not 0.0 <= value < float("inf"):
        raise ValueError(f"`{name}` must be a finite number >= 0, got {value!r}.")
    return value


def check_positive(name: str, value: float) -> float:
    """Return a finite value > 0, or raise ValueError."""
    if not 0.0 < value < float("inf"):
        raise ValueError(f"`{name}` must be a finite number > 0, got {value!r}.")
    return value
