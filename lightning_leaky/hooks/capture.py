"""What passed through the layers of a path: representations, gradients and padding."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from lightning_leaky.hooks.compiled import keep_gradient
from lightning_leaky.hooks.gradients import StepGradients
from lightning_leaky.hooks.layer_hooks import LayerHooks, several_states, unreadable
from lightning_leaky.hooks.padding import GivenMask
from lightning_leaky.hooks.seen import Seen
from lightning_leaky.hooks.state import StateChoice
from lightning_leaky.hooks.structures import without_nesting


class Passage:
    """One pass through the layers of a path.

    Attributes:
        befores: The tensors that may be A_{l−1}, of each layer.
        afters: Those that may be A_l.
        masks: The padding masks in force.
        previous: A_{l−1}, of each layer that ran; known once it `settles`.
        current: A_l.
        gradients: ∂loss/∂A_l, summed over the backward passes of a step; known once it settles.
        real: Which positions are no padding, where the layer was told.
        is_used: Whether a backward pass of the step has come by.
        was_nested: Whether the layers took sequences without their padding: a mask of the batch has other sizes.
    """

    def __init__(self, num_layers: int) -> None:
        self.befores: list[list[Seen]] = [[] for _ in range(num_layers)]
        self.afters: list[list[Seen]] = [[] for _ in range(num_layers)]
        self.masks: list[GivenMask | None] = [None] * num_layers
        self.previous: list[Tensor | None] = [None] * num_layers
        self.current: list[Tensor | None] = [None] * num_layers
        self.gradients: list[Tensor | None] = [None] * num_layers
        self.real: list[Tensor | None] = [None] * num_layers
        self.arrived: list[dict[int, Tensor]] = [{} for _ in range(num_layers)]
        self.awaits = [False] * num_layers
        self.is_used, self.was_nested = False, False

    def add_gradient(self, index: int, number: int, gradient: Tensor) -> None:
        """Add the gradient of one of the tensors that may be A_l to those of the other backward passes."""
        self.is_used = True
        earlier = self.arrived[index].get(number)
        self.arrived[index][number] = gradient if earlier is None else earlier + gradient

    def forget_gradients(self) -> None:
        """Forget the gradients, which were zeroed before a step used them."""
        self.is_used, self.arrived = False, [{} for _ in self.arrived]

    def ran(self, index: int) -> bool:
        """Whether a layer ran in it."""
        return bool(self.afters[index])

    def complete(self) -> None:
        """Take what compiled code has left in one place a layer as what eager code sees."""
        for index, (previous, current) in enumerate(zip(self.previous, self.current, strict=True)):
            if previous is not None and current is not None and not self.ran(index):
                self.befores[index], self.afters[index] = [Seen(previous)], [Seen(current)]

    def of(self, indices: Sequence[int]) -> Passage:
        """Return this pass through some of the layers."""
        part = Passage(len(indices))
        part.is_used, part.was_nested = self.is_used, self.was_nested
        for name, values in vars(self).items():
            if isinstance(values, list):
                setattr(part, name, [values[index] for index in indices])
        return part


class PathCapture(LayerHooks):
    """Keeps, while armed, what passed through each layer: A_{l−1}, A_l and, on request, ∂loss/∂A_l.

    Tensors are detached and kept until `clear`. The first run of each layer belongs to the first pass, its second run
    to the second. In compiled code there is one pass, the last. Reentrant checkpointing runs a layer without gradients
    first and again inside the backward pass: the values are those of the first run, the gradients of the second.

    Args:
        layers: The layers of a path, in order.
        gradients: Whether to keep the gradients that a backward pass brings.
        counts_all: Whether every gradient counts, or those that a step uses.
        model: As of `LayerHooks`.
        state: As of `LayerHooks`.

    Attributes:
        is_search: Whether a path is looked for among the layers.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        gradients: bool = False,
        counts_all: bool = False,
        model: nn.Module | None = None,
        state: StateChoice = None,
    ) -> None:
        self.gradients_wanted, self.is_search = gradients, False
        self._runs: list[int] = []
        self.step_gradients = StepGradients(list(layers), counts_all)
        super().__init__(layers, model, state)

    def arm(self) -> None:
        """Take what passes from now on, and forget what has passed."""
        self.clear()
        self.step_gradients.attach()
        self.armed = True

    def detach(self) -> None:
        """Remove every hook."""
        super().detach()
        self.step_gradients.detach()

    def clear(self) -> None:
        """Forget every tensor."""
        super().clear()
        self.padding.clear()
        self.step_gradients.detach()

    @property
    def passages(self) -> list[Passage]:
        """The passes that a step uses, or all where it is not known to use any."""
        everything = [self._first, *self._later]
        self._first.complete()
        return [passage for passage in everything if passage.is_used] or everything

    @property
    def runs(self) -> list[int]:
        """How often each layer ran; in compiled code, whether it did."""
        return [count or int(self._first.ran(index)) for index, count in enumerate(self._runs)]

    def take(self, other: PathCapture, indices: Sequence[int]) -> None:
        """Take over what another capture has seen of some of its layers, which are this one's."""
        self._first, *self._later = [passage.of(indices) for passage in other.passages]
        self.padding.adopt(other.padding)
        for passage in self.passages:
            passage.masks = [self.padding.known(given, other.padding) for given in passage.masks]
        self._runs = [other._runs[index] for index in indices]
        self._unread = {own: other._unread[index] for own, index in enumerate(indices) if index in other._unread}

    def settle(self) -> None:
        """Decide which tensors are the states, as they were when they passed, and complain of what is not known."""
        for passage in self.passages:
            for index, numbers in enumerate(self._numbers_of_states(passage)):
                if numbers is not None and passage.afters[index]:
                    previous = self._unwritten(index, passage.befores[index][numbers[0]], "input")
                    current = self._unwritten(index, passage.afters[index][numbers[1]], "output")
                    passage.previous[index] = None if previous is None else self._dense(passage, index, previous)
                    passage.current[index] = None if current is None else self._dense(passage, index, current)
                passage.gradients[index] = passage.arrived[index].get(0 if numbers is None else numbers[1])
                if not passage.was_nested:
                    passage.real[index] = self.padding.real(index, passage.masks[index])

    def padding_notes(self) -> list[str]:
        """Say whose padding mask is taken for layers that are given none themselves, and which one is not."""
        watch, found = self.padding, dict[tuple[str, str], bool]()
        for index, given in enumerate(self.passages[0].masks):
            if given is not None and (receiver := watch.receivers[given.receiver]) is not self.layers[index]:
                found[type(receiver).__name__, given.argument] = watch.is_of_others(index, given)
        return [
            f"Padding is read: {receiver} handed its `{argument}` to other modules only. If it is the layers' too, say "
            "`padding_mask`."
            if is_of_others
            else f"Padding is left out, by the `{argument}` that {receiver} is given."
            for (receiver, argument), is_of_others in found.items()
        ]

    def _numbers_of_states(self, passage: Passage) -> list[tuple[int, int] | None]:
        """Which of the tensors that may be A_{l−1} and A_l are; what one layer hands on to the next is."""
        befores, afters = ([0 if len(one) < 2 else None for one in side] for side in (passage.befores, passage.afters))
        if None in befores or None in afters:
            for first, second in itertools.pairwise(range(len(self.layers))):
                places = itertools.product(enumerate(passage.afters[first]), enumerate(passage.befores[second]))
                same = [(after, before) for (after, one), (before, other) in places if one.identity == other.identity]
                # Of two that come in and go out, one may be matched by chance.
                if len(same) == 1 and (len(passage.afters[first]) == 1 or len(passage.befores[second]) == 1):
                    afters[first], befores[second] = same[0]
            if len(self.layers) > 1:  # the ends, as their neighbours
                befores[0] = befores[1] if befores[0] is None else befores[0]
                afters[-1] = afters[-2] if afters[-1] is None else afters[-1]
        return [self._checked(passage, *one) for one in zip(range(len(self.layers)), befores, afters, strict=True)]

    def _checked(self, passage: Passage, index: int, before: int | None, after: int | None) -> tuple[int, int] | None:
        """The numbers of a layer's state, or a complaint where they are not known."""
        taken, returned = len(passage.befores[index]), len(passage.afters[index])
        if before is None or after is None or before >= max(taken, 1) or after >= max(returned, 1):
            self._unread[index] = several_states(taken, returned)
            return None
        return before, after

    def _forget_passes(self) -> None:
        super()._forget_passes()
        self._runs = [0] * len(self.layers)
        self._first, self._later = Passage(len(self.layers)), list[Passage]()

    def _observe(self, index: int, befores: list[Seen], afters: list[Seen], outputs: list[Tensor]) -> None:
        run = self._runs[index]
        self._runs[index] += 1
        if run > len(self._later):
            self._later.append(Passage(len(self.layers)))
        passage = self._later[run - 1] if run else self._first
        passage.befores[index], passage.afters[index] = befores, afters
        passage.masks[index] = self.padding.given(index)
        if self.gradients_wanted or index == len(self.layers) - 1:  # one gradient is enough to know that it is used
            for number, output in enumerate(outputs):
                self._await(passage, index, number, output)

    def _observe_again(self, index: int, previous: Tensor, current: Tensor) -> None:
        waiting = [passage for passage in [self._first, *self._later] if not passage.awaits[index]]
        place = previous.data_ptr()
        same = [one for one in waiting if any(seen.tensor.data_ptr() == place for seen in one.befores[index])]
        if waiting and (self.gradients_wanted or index == len(self.layers) - 1):
            self._await((same or waiting)[0], index, 0, current)

    def _observe_compiled(self, index: int, previous: Tensor, current: Tensor) -> None:
        passage = self._first
        passage.masks[index] = self.padding.given(index)
        kept = [tensor.detach() for tensor in (previous, current)]
        # Code between the layers may write where they lie; of a search, the places tell which one follows which.
        passage.previous[index], passage.current[index] = kept if self.is_search else [one.clone() for one in kept]
        if self.gradients_wanted and current.requires_grad:
            current.register_hook(partial(self._pass_gradient_on, index))  # type: ignore[no-untyped-call]

    def _await(self, passage: Passage, index: int, number: int, output: Tensor) -> None:
        if output.requires_grad:
            passage.awaits[index] = True
            output.register_hook(partial(self._arrive, passage, index, number))  # type: ignore[no-untyped-call]

    def _arrive(self, passage: Passage, index: int, number: int, gradient: Tensor) -> None:
        try:
            self.step_gradients.arrive(passage, index, number, gradient.detach())
        except Exception as error:  # the backward pass that it belongs to goes on
            self._unread[index] = unreadable(error)

    def _pass_gradient_on(self, index: int, gradient: Tensor) -> Tensor:
        kept: Tensor = keep_gradient(gradient, self._number, index)
        return kept

    def keep_gradient(self, index: int, gradient: Tensor) -> None:
        """Take the gradient of a layer's output out of compiled code."""
        self._arrive(self._first, index, 0, gradient)

    def _dense(self, passage: Passage, index: int, tensor: Tensor) -> Tensor:
        """The tensor itself, or the padded copy of a nested one."""
        if not tensor.is_nested:
            return tensor
        passage.was_nested = True
        padded, padding = without_nesting(tensor)
        passage.real[index] = ~padding
        return padded

    def __getstate__(self) -> dict[str, Any]:
        step_gradients = StepGradients(self.layers, self.step_gradients.counts_all)
        emptied = {"_first": Passage(len(self.layers)), "_later": [], "_runs": [0] * len(self.layers)}
        return {**super().__getstate__(), **emptied, "step_gradients": step_gradients}
