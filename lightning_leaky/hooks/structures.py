"""Tensors inside what modules take and return: tuples, dictionaries, dataclasses and the like."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def tensors_of(value: Any) -> list[Tensor]:
    """Return the floating-point tensors of a structure, in order; sparse ones, which no layer's state is, are left out.

    Example:
        >>> import torch
        >>> [len(tensor) for tensor in tensors_of((torch.ones(2), {"mask": None, "hidden": torch.ones(3)}))]
        [2, 3]
    """
    found, waiting = [], [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Tensor):
            found += [part] if part.is_floating_point() and part.layout == torch.strided else []
        elif isinstance(part, Mapping):
            waiting += reversed(list(part.values()))
        elif isinstance(part, (tuple, list)):
            waiting += reversed(part)
        elif dataclasses.is_dataclass(part) and not isinstance(part, type):
            waiting += reversed([getattr(part, field.name) for field in dataclasses.fields(part)])
    return found


def same_shape(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors have one shape; of nested ones, whether all of their parts have.

    Example:
        >>> import torch
        >>> same_shape(torch.ones(2, 3), torch.ones(2, 3)), same_shape(torch.ones(2, 3), torch.ones(3, 2))
        (True, False)
    """
    if tensor.is_nested or other.is_nested:
        return shape_of(tensor) == shape_of(other)
    return tensor.shape == other.shape


def shape_of(tensor: Tensor) -> tuple[Any, ...]:
    """Return the shape of a tensor; of a nested one, the shapes of its parts."""
    return tuple(map(shape_of, tensor.unbind())) if tensor.is_nested else tuple(tensor.shape)


def without_nesting(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return a nested tensor of sequences as a padded one, (batch, tokens, width), and which positions are padding.

    `nn.TransformerEncoder` packs padded batches so, in evaluation and without gradients.
    """
    padded = tensor.to_padded_tensor(0.0)
    lengths = torch.tensor([len(part) for part in tensor.unbind()], device=padded.device)
    return padded, torch.arange(padded.shape[1], device=padded.device) >= lengths[:, None]


def replaced(value: Any, old: Tensor, new: Tensor) -> Any:
    """Return a structure with one of its tensors replaced; the structure given is not changed.

    Example:
        >>> import torch
        >>> old = torch.zeros(1)
        >>> replaced({"hidden": old, "weights": None}, old, torch.ones(1))
        {'hidden': tensor([1.]), 'weights': None}
    """
    if value is old:
        return new
    if isinstance(value, Mapping):
        changed = {key: replaced(part, old, new) for key, part in value.items()}
        return type(value)(**changed) if dataclasses.is_dataclass(value) else type(value)(changed)  # type: ignore[call-arg]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        return dataclasses.replace(value, **{name: replaced(part, old, new) for name, part in fields.items()})
    if isinstance(value, (tuple, list)):
        parts = [replaced(part, old, new) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value
