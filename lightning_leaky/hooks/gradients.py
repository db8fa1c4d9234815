"""Gradients that an optimizer's step uses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from lightning_leaky.utilities.processes import is_flattened, is_sharded

Gradients: TypeAlias = dict[tuple[int, int], Tensor]
"""Of one pass, by layer and by number of the layer's candidate."""


class StepGradients:
    """Passes on the gradients of representations that an optimizer's step uses, and drops the others.

    A backward pass counts if it accumulates into a parameter of the layers; `torch.autograd.grad`, as for a chart or a
    penalty, does not. Passes add up until the parameters' gradients are zeroed. If the layers have no parameters to
    watch (all frozen or sharded), the backward passes that a trainer announces count.

    Attributes:
        in_backward: Whether an announced backward pass is running.
        failure: Why gradients could not be added up since `attach`.
    """

    def __init__(self, layers: Sequence[nn.Module], counts_all: bool = False) -> None:
        self.layers, self.counts_all = layers, counts_all
        self.in_backward = False
        self.failure: Exception | None = None
        self._parameters: list[nn.Parameter] = []
        self._handles: list[RemovableHandle] = []
        self._reset()

    def _reset(self) -> None:
        self._counts = False
        self._running: set[int] = set()
        self._waiting: list[tuple[Gradients, tuple[int, int], Tensor]] = []
        self._receivers: list[Gradients] = []

    def attach(self) -> None:
        """Register hooks on the parameters of the layers."""
        self.failure = None
        # Autograd's hooks do not see a shard's gradients.
        self._parameters = [
            one
            for layer in self.layers
            for one in layer.parameters()
            if one.requires_grad and not (is_lazy(one) or is_sharded(one) or is_flattened(one))
        ]
        for parameter in self._parameters if torch.is_grad_enabled() and not self.counts_all else ():
            handle = parameter.register_post_accumulate_grad_hook(self._accumulated)  # type: ignore[no-untyped-call]
            self._handles.append(handle)

    def detach(self) -> None:
        """Remove the hooks."""
        while self._handles:
            self._handles.pop().remove()
        self._reset()

    def forget(self) -> None:
        """Take back what was passed on."""
        for receiver in self._receivers:
            receiver.clear()
        self._reset()

    def arrive(self, receiver: Gradients, key: tuple[int, int], gradient: Tensor) -> None:
        """Take a gradient in a backward pass, and add it to the receiver if it counts."""
        if not self._running:
            gradients = [parameter.grad for parameter in self._parameters]
            if self._receivers and gradients and not any(one is not None and bool(one.any()) for one in gradients):
                self.forget()  # they were zeroed
            self._counts = self.counts_all or (self.in_backward and not self._parameters)
        task = torch._C._current_graph_task_id()
        if task not in self._running and task != -1:  # checkpointing nests backward passes
            self._running.add(task)
            torch.autograd.Variable._execution_engine.queue_callback(partial(self._end, task))
        if self._counts:
            self._hand_on((receiver, key, gradient))
        else:
            self._waiting.append((receiver, key, gradient))

    def _accumulated(self, parameter: Tensor) -> None:
        """All gradients of this backward pass count, because it reached a parameter."""
        if self._running:
            self._counts, waiting, self._waiting = True, self._waiting, []
            try:
                self._hand_on(*waiting)
            except Exception as error:  # the backward pass goes on
                self.failure = error

    def _hand_on(self, *arrived: tuple[Gradients, tuple[int, int], Tensor]) -> None:
        for receiver, key, gradient in arrived:
            receiver[key] = receiver[key] + gradient if key in receiver else gradient
            self._receivers.append(receiver)

    def _end(self, task: int) -> None:
        self._running.discard(task)
        if not self._running:
            self._waiting = []
