"""A tensor as it was when it passed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_leaky.hooks.structures import shape_of


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
