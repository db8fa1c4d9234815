"""Recording a rule's sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_leaky.functional._checks import working_dtype
from lightning_leaky.functional.step_size_rules import resolve_rule
from lightning_leaky.hooks.compiled import add_rows
from lightning_leaky.hooks.layer_hooks import LayerHooks, unreadable
from lightning_leaky.hooks.state import StateChoice
from lightning_leaky.hooks.structures import Seen
from lightning_leaky.optim.settings import AdaptationSettings
from lightning_leaky.reading.layout import Layout, axes_told, real_positions


class SumRecorder(LayerHooks):
    """Adds up a rule's sums of each layer over forward passes, while armed and in training mode.

    Attributes:
        sums: Shape (L, ...); ``None`` until a layer has run.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        settings: AdaptationSettings,
        device: torch.device,
        model: nn.Module | None = None,
        state: StateChoice = None,
    ) -> None:
        super().__init__(layers, model, state)
        self.rule, self.layout = resolve_rule(settings.rule), settings.layout or Layout()
        self.padding_mask = settings.padding_mask
        self._axes_unknown = self.layout.axes is None
        self.sums: Tensor | None = None
        self._real: Tensor | None = None
        self._refusal: str | None = None
        # Before a CUDA graph, whose replays overwrite its tensors.
        self._room = self._room_for_sums(device)

    def see(self, batch: Any) -> None:
        """Take the real positions of the next passes from a batch; all without one."""
        self._real, self._refusal = None, None
        try:
            self._real = None if batch is None else real_positions(batch, self.padding_mask)
        except Exception as error:  # training continues
            self._refusal = unreadable(error)

    def detach(self) -> None:
        """Remove all hooks, and forget the batch."""
        super().detach()
        self._real, self._refusal = None, None

    def clear(self) -> None:
        """Set the sums to zero."""
        super().clear()
        if self.sums is not None:
            self.sums.zero_()

    def add(
        self, index: int, previous: Tensor, current: Tensor, real: Tensor | None, sums: Tensor | None = None
    ) -> None:
        """Add the rule's sums of one layer to `sums`, by default its own."""
        dtype = torch.promote_types(current.dtype, torch.float32)
        try:
            if previous.shape != current.shape:
                return
            found = self.rule.sums(*(self.layout.rows(tensor.to(dtype), real) for tensor in (previous, current)))
            sums = self._sums_for(found) if sums is None else sums
            sums[index] += found.to(sums.device)
        except Exception as error:  # training continues
            self._unread[index] = unreadable(error)

    @torch.no_grad()
    def _observe(self, index: int, befores: list[Seen], afters: list[Seen], outputs: list[Tensor]) -> None:
        pair = self._pair(index, befores, afters) if self.layers[index].training else None
        if pair is not None and self._refusal is not None:
            self._unread[index] = self._refusal
        elif pair is not None:
            if self._axes_unknown:
                told = axes_told([(self.layers[index], pair[1].shape)]) if pair[1].ndim > 2 else None
                self.layout, self._axes_unknown = replace(self.layout, axes=told), False
            self.add(index, *pair, self._real_of(index))

    @torch.no_grad()
    def _observe_compiled(self, index: int, previous: Tensor, current: Tensor) -> None:
        real = self._real_of(index)
        if not self.layers[index].training:
            return
        if self._refusal is not None:
            self._unread[index] = self._refusal
        elif self._room is None or self._is_traceable(current, real):
            self.add(index, previous, current, real)
        else:
            self.sums = self._room if self.sums is None else self.sums
            add_rows(self.sums, previous.detach(), current.detach(), real, self._number, index)

    def _real_of(self, index: int) -> Tensor | None:
        """By the batch, else by arguments of the layer or its parents."""
        if self._real is not None or self.padding_mask is None:
            return self._real
        return self.padding.real(index, self.padding.given(index))

    def _is_traceable(self, current: Tensor, real: Tensor | None) -> bool:
        """Whether the layout fits, and rows depend on the shape alone."""
        try:
            self.layout.batch_axis(current)
        except ValueError:
            return False
        return real is None and self.layout.max_samples is None

    def _sums_for(self, found: Tensor) -> Tensor:
        room = self._room
        if self.sums is None and room is not None and room[0].shape == found.shape and room.device == found.device:
            self.sums = room
        elif self.sums is None:
            dtype = working_dtype(found.device)
            self.sums = torch.zeros(len(self.layers), *found.shape, dtype=dtype, device=found.device)
        else:
            self.sums = self.sums.to(found.device)
        return self.sums

    @torch.no_grad()
    def _room_for_sums(self, device: torch.device) -> Tensor | None:
        """Zeros for the sums, if their shape does not depend on the width."""
        narrow, wide = (torch.zeros(1, width, dtype=working_dtype(device), device=device) for width in (1, 2))
        try:
            sums, others = self.rule.sums(narrow, narrow), self.rule.sums(wide, wide)
            if sums.shape != others.shape:
                return None
            return torch.zeros_like(sums).repeat(len(self.layers), *[1] * sums.ndim)
        except Exception:  # of a user's rule
            return None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_real": None, "_refusal": None}
