"""Tensors in tuples, dictionaries, dataclasses and the like, and as they were when they passed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def tensors_of(value: Any) -> list[Tensor]:
    """Return the floating-point tensors of a structure, in order, without sparse ones."""
    return [one for one in all_tensors_of(value) if one.is_floating_point() and one.layout == torch.strided]


def all_tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors of a structure, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in parts_of(value).values() for tensor in all_tensors_of(part)]


def parts_of(value: Any) -> dict[Any, Any]:
    """Return the parts of a structure by name, or else by number; none of a single value."""
    if isinstance(value, Mapping):
        return dict(value.items())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return dict(zip(getattr(value, "_fields", range(len(value))), value, strict=True))
    return {}


def same_shape(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors, or all parts of nested ones, have one shape."""
    return shape_of(tensor) == shape_of(other)


def shape_of(tensor: Tensor) -> tuple[Any, ...]:
    """Return the shape of a tensor, or those of a nested tensor's parts."""
    return tuple(map(shape_of, tensor.unbind())) if tensor.is_nested else tuple(tensor.shape)


def without_nesting(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return a nested tensor as a padded one, (batch, tokens, width), and which positions are real.

    `nn.TransformerEncoder` nests padded batches in evaluation without gradients.
    """
    padded = tensor.to_padded_tensor(0.0)
    lengths = torch.tensor([len(part) for part in tensor.unbind()], device=padded.device)
    return padded, torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]


def replaced(value: Any, old: Tensor, new: Tensor) -> Any:
    """Return a copy of a structure with one tensor replaced."""
    if value is old:
        return new
    changed = {key: replaced(part, old, new) for key, part in parts_of(value).items()}
    if isinstance(value, Mapping):
        return type(value)(**changed) if dataclasses.is_dataclass(value) else type(value)(changed)  # type: ignore[call-arg]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        given = {field.name: changed[field.name] for field in dataclasses.fields(value) if field.init}
        return dataclasses.replace(value, **given)
    if isinstance(value, (tuple, list)):
        return type(value)(*changed.values()) if hasattr(value, "_fields") else type(value)(changed.values())
    return value


class Seen:
    """A tensor that has passed a layer, and whether it still holds the same values.

    Torch counts writes to a tensor, but not in inference mode or through `data`; only a copy shows these.

    Raises:
        ValueError: If the tensor has no values.
    """

    __slots__ = ("copy", "tensor", "version")

    def __init__(self, tensor: Tensor, copies: bool = False) -> None:
        if not has_values(tensor):
            raise ValueError("its tensors have no values (meta or fake)")
        self.tensor = tensor.detach()
        self.version = None if tensor.is_inference() else tensor._version
        self.copy = self.tensor.clone() if copies else None

    @property
    def is_overwritten(self) -> bool:
        """Whether the tensor has been written to since."""
        if self.version is not None and self.tensor._version != self.version:
            return True
        if self.copy is None:
            return False
        pairs = zip(*(one.unbind() if one.is_nested else [one] for one in (self.copy, self.tensor)), strict=True)
        return not all(torch.equal(*pair) for pair in pairs)

    @property
    def value(self) -> Tensor | None:
        """What the tensor held; ``None`` if it was overwritten and not copied."""
        return self.copy if self.is_overwritten else self.tensor

    @property
    def identity(self) -> tuple[Any, ...]:
        """Address, version and shape: unique while all are kept."""
        return (self.tensor.data_ptr(), self.version, *shape_of(self.tensor))


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers: not on the meta device or in fake mode."""
    return not tensor.is_meta and type(tensor).__name__ != "FakeTensor"
