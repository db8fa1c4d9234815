"""Which gradients belong to an optimizer's step: those of backward passes that reach the parameters of the layers."""

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
"""Those of the representations of one pass, by layer and by number among what the layer returned."""


class StepGradients:
    """Hands on the gradients of representations that an optimizer's step uses, and drops the others.

    A backward pass counts if it accumulates into a parameter of the layers; gradients that `torch.autograd.grad` takes
    for a chart or a penalty do not. Passes add up until the parameters' gradients are zeroed. Where the layers have no
    parameters to look at (frozen ones, shards), the backward passes that a trainer has announced count.

    Args:
        layers: The layers of a path.
        counts_all: Whether every gradient counts.

    Attributes:
        in_backward: Whether a backward pass that was announced is running.
        failure: What has kept gradients from being added up since they are awaited; then none can be told.
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
        """Register hooks on the parameters of the layers, where gradients may come that not all count."""
        self.failure = None
        # A shard gets no gradients by autograd's own hooks.
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
        """Remove the hooks, and hand on no more."""
        while self._handles:
            self._handles.pop().remove()
        self._reset()

    def forget(self) -> None:
        """Take back the gradients that were handed on."""
        for receiver in self._receivers:
            receiver.clear()
        self._reset()

    def arrive(self, receiver: Gradients, key: tuple[int, int], gradient: Tensor) -> None:
        """Take the gradient of one of a layer's outputs, in a backward pass; if it counts, add it to the receiver."""
        if not self._running:
            gradients = [parameter.grad for parameter in self._parameters]
            if self._receivers and gradients and not any(one is not None and bool(one.any()) for one in gradients):
                self.forget()  # they were zeroed
            self._counts = self.counts_all or (self.in_backward and not self._parameters)
        task = torch._C._current_graph_task_id()
        if task not in self._running and task != -1:  # checkpointing runs backward passes inside of one
            self._running.add(task)
            torch.autograd.Variable._execution_engine.queue_callback(partial(self._end, task))
        if self._counts:
            self._hand_on((receiver, key, gradient))
        else:
            self._waiting.append((receiver, key, gradient))

    def _accumulated(self, parameter: Tensor) -> None:
        """The backward pass that runs has reached a parameter: what has come by it counts, and what will."""
        if self._running:
            self._counts, waiting, self._waiting = True, self._waiting, []
            try:
                self._hand_on(*waiting)
            except Exception as error:  # the backward pass that runs goes on
                self.failure = error

    def _hand_on(self, *arrived: tuple[Gradients, tuple[int, int], Tensor]) -> None:
        for receiver, key, gradient in arrived:
            receiver[key] = receiver[key] + gradient if key in receiver else gradient
            self._receivers.append(receiver)

    def _end(self, task: int) -> None:
        self._running.discard(task)
        if not self._running:
            self._waiting = []
