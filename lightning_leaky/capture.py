"""Forward hooks on the layers of a path: they see representations pass, and are gone when detached."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_leaky.functional._checks import working_dtype
from lightning_leaky.functional.step_sizes import distance_squares

Self = TypeVar("Self", bound="LayerHooks")


class LayerHooks:
    """Owns one forward hook on each of some layers.

    Pickling and deep-copying drop the handles, not the layers: a copy has no hooks until it is attached.

    Args:
        layers: The layers of a path, in order.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = list(layers)
        self.armed = False
        self._handles: list[RemovableHandle] = []

    def attach(self: Self) -> Self:
        """Register the hooks, once, and return this object."""
        if not self._handles:
            self._handles = [
                layer.register_forward_hook(partial(self._hook, index)) for index, layer in enumerate(self.layers)
            ]
            _forget_compiled_code()
        return self

    def detach(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.armed = False

    def _hook(self, index: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.armed:
            if not args or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
                raise ValueError(
                    "`layers` must take a tensor as first positional argument and return one, but a "
                    f"{type(module).__name__} took {[type(arg).__name__ for arg in args]} and returned "
                    f"{type(output).__name__}; choose other layers."
                )
            self._observe(index, args[0], output)

    def _observe(self, index: int, previous: Tensor, current: Tensor) -> None:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": [], "armed": False}


class PathCapture(LayerHooks):
    """Keeps, while armed, what passed through each layer: A_{l−1}, A_l and, on request, ∂loss/∂A_l.

    Tensors are detached and kept until `clear`; a later forward pass overwrites an earlier one.

    Args:
        layers: The layers of a path, in order.
        gradients: Whether to keep the gradients that a backward pass brings.
    """

    def __init__(self, layers: Sequence[nn.Module], gradients: bool = False) -> None:
        super().__init__(layers)
        self.gradients_wanted = gradients
        self.clear()

    def clear(self) -> None:
        """Forget every tensor."""
        self.previous: list[Tensor | None] = [None] * len(self.layers)
        self.current: list[Tensor | None] = [None] * len(self.layers)
        self.gradients: list[Tensor | None] = [None] * len(self.layers)

    def _observe(self, index: int, previous: Tensor, current: Tensor) -> None:
        self.previous[index] = previous.detach()
        self.current[index] = current.detach()
        if self.gradients_wanted and current.requires_grad:
            current.register_hook(partial(self._keep_gradient, index))  # type: ignore[no-untyped-call]

    def _keep_gradient(self, index: int, gradient: Tensor) -> None:
        self.gradients[index] = gradient.detach()

    def __getstate__(self) -> dict[str, Any]:
        nothing: list[None] = [None] * len(self.layers)
        return {**super().__getstate__(), "previous": nothing, "current": list(nothing), "gradients": list(nothing)}


class DistanceRecorder(LayerHooks):
    """Sums, while armed and in training mode, ‖A_l − A_{l−1}‖² and ‖A_l‖² over all forward passes.

    Sums over samples: those of micro-batches and processes add up to those of the whole batch. A checkpointed layer
    that runs twice counts twice in both of its sums, and their ratio does not feel it.

    Args:
        layers: The layers of a path, in order.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__(layers)
        self.squares = torch.zeros(2, len(self.layers), dtype=torch.float64)

    def clear(self) -> None:
        """Set the sums to zero."""
        self.squares.zero_()

    @torch.no_grad()
    def _observe(self, index: int, previous: Tensor, current: Tensor) -> None:
        if not self.layers[index].training:
            return
        if self.squares.device != current.device:
            self.squares = self.squares.to(current.device, working_dtype(current.device))
        dtype, width = self.squares.dtype, current.shape[-1]
        self.squares[:, index] += distance_squares(
            previous.to(dtype).reshape(-1, width), current.to(dtype).reshape(-1, width)
        )


def _forget_compiled_code() -> None:
    """Let compiled modules see hooks registered after their first call, which they would silently pass by."""
    # Importing torch._dynamo takes seconds; where nobody has, nothing is compiled.
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
