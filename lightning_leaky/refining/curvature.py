"""How much a path bends during training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_leaky.functional._checks import working_dtype
from lightning_leaky.functional.moments import inner_product
from lightning_leaky.hooks.layer_hooks import LayerHooks
from lightning_leaky.hooks.structures import Seen
from lightning_leaky.paths.leaky_path import LeakyPath
from lightning_leaky.refining.sharded import mesh_of


class CurvatureRecorder(LayerHooks):
    """Sums ‖V_l − V_{l−1}‖² and ‖A_l‖² over samples and forward passes, while armed and in training mode."""

    def __init__(self, path: LeakyPath) -> None:
        super().__init__(list(path.layers))
        self.copy_less()  # a step leaves its input as it is
        self.path = path
        self.squares = torch.zeros(2, len(self.layers), dtype=torch.float64)
        self.mesh_between: Any = None  # of shards after a forward pass
        self._last: tuple[int, Tensor] | None = None

    def clear(self) -> None:
        """Forget all passes."""
        super().clear()
        self.squares.zero_()
        self._last = None

    @torch.no_grad()
    def _observe(self, index: int, befores: list[Seen], afters: list[Seen], outputs: list[Tensor]) -> None:
        pair = self._pair(index, befores, afters) if self.layers[index].training else None
        if pair is None:
            return
        self.mesh_between = mesh_of(self.layers[index])
        device = pair[1].device
        if self.squares.device != device:
            self.squares = self.squares.to(device, working_dtype(device))
        before, after = (tensor.to(self.squares.dtype).reshape(-1, tensor.shape[-1]) for tensor in pair)
        velocity = (after - before) / self.path.step_sizes[index]
        self.squares[1, index] += inner_product(after, after)
        if self._last is not None and self._last[0] == index - 1:
            change = velocity - self._last[1]
            self.squares[0, index] += inner_product(change, change)
        self._last = (index, velocity) if index + 1 < len(self.layers) else None

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_last": None, "mesh_between": None}
