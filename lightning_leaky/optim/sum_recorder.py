"""What a rule of adapting step-sizes knows of each layer, summed while it trains."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_leaky.functional._checks import working_dtype
from lightning_leaky.functional.step_size_rules import StepSizeRule
from lightning_leaky.hooks.layer_hooks import LayerHooks


class SumRecorder(LayerHooks):
    """Adds up, while armed and in training mode, what a rule wants to know of each layer, over all forward passes.

    Sums over samples: those of micro-batches and processes add up to those of the whole batch. A checkpointed layer
    that runs twice counts twice in all of its sums, and their ratios do not feel it.

    Args:
        layers: The layers of a path, in order.
        rule: What to sum.
        device: Where the representations are expected.

    Attributes:
        sums: Shape (L, ...); ``None`` until a layer has been seen.
    """

    def __init__(self, layers: Sequence[nn.Module], rule: StepSizeRule, device: torch.device) -> None:
        super().__init__(layers)
        self.rule = rule
        self.sums: Tensor | None = None
        # A CUDA graph overwrites tensors that it has made at its next replay: the sums are made before.
        self._room = self._room_for_sums(device)

    def clear(self) -> None:
        """Set the sums to zero."""
        super().clear()
        if self.sums is not None:
            self.sums.zero_()

    @torch.no_grad()
    def _observe(self, index: int, previous: Tensor, current: Tensor) -> None:
        if not self.layers[index].training or previous.shape != current.shape:
            return
        dtype, width = working_dtype(current.device), current.shape[-1]
        found = self.rule.sums(previous.to(dtype).reshape(-1, width), current.to(dtype).reshape(-1, width))
        if self.sums is None:
            self.sums = self._zeros_for(found)
        elif self.sums.device != found.device:
            self.sums = self.sums.to(found)
        self.sums[index] += found

    def _zeros_for(self, found: Tensor) -> Tensor:
        room = self._room
        if room is not None and room[0].shape == found.shape and room.device == found.device:
            return room
        return found.new_zeros(len(self.layers), *found.shape)

    @torch.no_grad()
    def _room_for_sums(self, device: torch.device) -> Tensor | None:
        """Zeros of the shape of the sums, where that does not depend on the width."""
        one = torch.zeros(1, 1, dtype=working_dtype(device), device=device)
        try:
            sums = self.rule.sums(one, one)
            return torch.zeros_like(sums).repeat(len(self.layers), *[1] * sums.ndim)
        except Exception:  # a user's rule may refuse a single column: its sums are made when it sees a layer
            return None
