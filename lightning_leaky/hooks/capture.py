"""Representations, gradients and padding that passed the layers of a path."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from lightning_leaky.hooks.compiled import keep_gradient
from lightning_leaky.hooks.gradients import Gradients, StepGradients
from lightning_leaky.hooks.layer_hooks import LayerHooks, several_states, unreadable
from lightning_leaky.hooks.padding import GivenMask
from lightning_leaky.hooks.state import StateChoice, block_of
from lightning_leaky.hooks.structures import Seen, without_nesting
from lightning_leaky.utilities.processes import unsharded


class Passage:
    """One pass through the layers of a path.

    Attributes:
        befores: Candidates for A_{l−1} of each layer.
        afters: Candidates for A_l.
        previous: A_{l−1} of each layer that ran, after `PathCapture.settle`.
        current: A_l.
        gradients: ∂loss/∂A_l, summed over the backward passes of a step.
        real: Which positions are no padding, if the layer was told.
        arrived: Gradients of the candidates for A_l; a step does not use a pass without any.
        was_nested: Whether the layers took nested sequences, which a mask of the batch does not fit.
    """

    def __init__(self, num_layers: int) -> None:
        self.befores: list[list[Seen]] = [[] for _ in range(num_layers)]
        self.afters: list[list[Seen]] = [[] for _ in range(num_layers)]
        self.masks: list[GivenMask | None] = [None] * num_layers
        self.previous: list[Tensor | None] = [None] * num_layers
        self.current: list[Tensor | None] = [None] * num_layers
        self.gradients: list[Tensor | None] = [None] * num_layers
        self.real: list[Tensor | None] = [None] * num_layers
        self.arrived: Gradients = {}
        self.awaits: set[int] = set()
        self.was_nested = False

    def ran(self, index: int) -> bool:
        """Whether a layer ran."""
        return bool(self.afters[index])

    def of(self, takers: Sequence[int], indices: Sequence[int]) -> Passage:
        """Return this pass through layers `indices`, with the A_{l−1} of layers `takers`."""
        part, places = Passage(len(indices)), {index: place for place, index in enumerate(indices)}
        for name, values in vars(self).items():
            if isinstance(values, list):
                chosen = takers if name in ("befores", "previous") else indices
                setattr(part, name, [values[index] for index in chosen])
        # Gradients of other layers still show that a step uses the pass.
        part.arrived = {(places.get(index, -1), number): one for (index, number), one in self.arrived.items()}
        return part


class PathCapture(LayerHooks):
    """Keeps, while armed, what passed through each layer: A_{l−1}, A_l and, on request, ∂loss/∂A_l.

    Tensors are detached and kept until `clear`. The n-th run of each layer belongs to the n-th pass; compiled code has
    one pass, the last. Reentrant checkpointing runs a layer again inside the backward pass: values are of the first
    run, gradients of the second.

    Args:
        counts_all: Whether every gradient counts, or only those that a step uses.

    Attributes:
        numbers: Which candidates are A_{l−1} and A_l of each layer, as `settle` decided.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        gradients: bool = False,
        counts_all: bool = False,
        model: nn.Module | None = None,
        state: StateChoice = None,
    ) -> None:
        super().__init__(layers, model, state)
        self.gradients_wanted, self.is_search = gradients, False
        self.numbers = dict[int, tuple[int, int]]()
        blocks = list(dict.fromkeys(map(block_of, self.layers)))
        self.step_gradients = StepGradients(blocks, counts_all)
        self.clear()

    def arm(self) -> None:
        """Take what passes from now on, and drop the rest."""
        self.clear()
        self.step_gradients.attach()
        self.armed = True

    def detach(self) -> None:
        """Remove every hook."""
        super().detach()
        self.step_gradients.detach()

    def clear(self) -> None:
        """Drop every tensor."""
        super().clear()
        self.padding.clear()
        self.step_gradients.detach()
        self._first = Passage(len(self.layers))
        self._passes = [self._first]

    def complaints(self) -> dict[int, str]:
        """Why layers cannot be read; all of them if adding up gradients failed."""
        failure = self.step_gradients.failure
        return super().complaints() if failure is None else dict.fromkeys(range(len(self.layers)), unreadable(failure))

    @property
    def passages(self) -> list[Passage]:
        """The passes that a step uses, or all if none is known to be used."""
        first = self._first
        for index, (previous, current) in enumerate(zip(first.previous, first.current, strict=True)):
            if previous is not None and current is not None and not first.ran(index):  # from compiled code
                first.befores[index], first.afters[index] = [Seen(previous)], [Seen(current)]
        return [passage for passage in self._passes if passage.arrived] or self._passes

    @property
    def runs(self) -> list[int]:
        """How often each layer ran; at most once in compiled code."""
        return [sum(passage.ran(index) for passage in self._passes) for index in range(len(self.layers))]

    def take(self, other: PathCapture, places: Sequence[int] | Sequence[tuple[int, int]]) -> None:
        """Take over what another capture saw: each layer's place there, or those of its A_{l−1} and A_l."""
        takers, indices = zip(*((one, one) if isinstance(one, int) else one for one in places), strict=True)
        self._passes = [passage.of(takers, indices) for passage in other._passes]
        self._first = self._passes[0]
        were_given = {one.module for one in other.padding.receivers if one.was_given}
        for receiver in self.padding.receivers:
            receiver.was_given = receiver.module in were_given
        self._unread = {own: other._unread[index] for own, index in enumerate(indices) if index in other._unread}

    def settle(self) -> None:
        """Decide which tensors are the states, as they were when they passed, or complain."""
        for passage in self.passages:
            for index, (before, after) in enumerate(self._numbers_of_states(passage)):
                taken, returned = passage.befores[index], passage.afters[index]
                if before is None or after is None or before >= max(len(taken), 1) or after >= max(len(returned), 1):
                    self._unread[index] = several_states(len(taken), len(returned))
                    continue
                self.numbers[index] = before, after
                if returned:
                    passage.previous[index] = self._dense(passage, index, taken[before], "input")
                    passage.current[index] = self._dense(passage, index, returned[after], "output")
                gradient = passage.arrived.get((index, after))
                passage.gradients[index] = None if gradient is None else unsharded(gradient)
                if not passage.was_nested:
                    passage.real[index] = self.padding.real(index, passage.masks[index])

    def padding_notes(self) -> list[str]:
        """Say whose padding mask the layers take."""
        watch, found = self.padding, dict[tuple[str, str], bool]()
        for index, given in enumerate(self.passages[0].masks):
            block = block_of(self.layers[index])
            if given is not None and (receiver := watch.ways[index][given.place].module) is not block:
                found[type(receiver).__name__, given.argument] = watch.is_of_others(index, given)
        return [
            f"Padding is read: {receiver} handed its `{argument}` to other modules only. If it is the layers' too, say "
            "`padding_mask`."
            if is_of_others
            else f"Padding is left out, by the `{argument}` that {receiver} is given."
            for (receiver, argument), is_of_others in found.items()
        ]

    def _numbers_of_states(self, passage: Passage) -> list[tuple[int | None, int | None]]:
        """Which candidates are A_{l−1} and A_l: those that one layer passes to the next."""
        befores, afters = ([0 if len(one) < 2 else None for one in side] for side in (passage.befores, passage.afters))
        if None in befores or None in afters:
            for first, second in itertools.pairwise(range(len(self.layers))):
                places = itertools.product(enumerate(passage.afters[first]), enumerate(passage.befores[second]))
                same = [(after, before) for (after, one), (before, other) in places if one.identity == other.identity]
                # If both sides have several, one match may be chance.
                if len(same) == 1 and 1 in (len(passage.afters[first]), len(passage.befores[second])):
                    afters[first], befores[second] = same[0]
            # The ends follow their neighbours; the last step of a block follows that of another block.
            befores[0] = befores[:2][-1] if befores[0] is None else befores[0]
            many = len(passage.afters[-1])
            alike = [after for after, one in zip(afters, passage.afters, strict=True) if len(one) == many]
            afters[-1] = alike[-2:][0] if afters[-1] is None else afters[-1]
        return list(zip(befores, afters, strict=True))

    def _observe(self, index: int, befores: list[Seen], afters: list[Seen], outputs: list[Tensor]) -> None:
        if all(passage.afters[index] for passage in self._passes):
            self._passes.append(Passage(len(self.layers)))
        passage = next(one for one in self._passes if not one.afters[index])
        passage.befores[index], passage.afters[index] = befores, afters
        passage.masks[index] = self.padding.given(index)
        self._await(passage, index, outputs)

    def _observe_again(self, index: int, previous: Tensor, current: Tensor) -> None:
        waiting = [passage for passage in self._passes if index not in passage.awaits]
        place = previous.data_ptr()
        same = [one for one in waiting if any(seen.tensor.data_ptr() == place for seen in one.befores[index])]
        for passage in [*same, *waiting][:1]:
            self._await(passage, index, [current])

    def _observe_compiled(self, index: int, previous: Tensor, current: Tensor) -> None:
        passage = self._first
        passage.masks[index] = self.padding.given(index)
        kept = [tensor.detach() for tensor in (previous, current)]
        # Code between layers may overwrite them. A search needs their addresses to tell which follows which.
        passage.previous[index], passage.current[index] = kept if self.is_search else [one.clone() for one in kept]
        if self.gradients_wanted and current.requires_grad:
            current.register_hook(partial(keep_gradient, number=self._number, index=index))  # type: ignore[no-untyped-call]

    def _await(self, passage: Passage, index: int, outputs: Sequence[Tensor]) -> None:
        if self.gradients_wanted or index == len(self.layers) - 1:  # one gradient shows that a step uses the pass
            for number, output in enumerate(outputs):
                if output.requires_grad:
                    passage.awaits.add(index)
                    output.register_hook(partial(self._arrive, passage, index, number))  # type: ignore[no-untyped-call]

    def _arrive(self, passage: Passage, index: int, number: int, gradient: Tensor) -> None:
        try:
            self.step_gradients.arrive(passage.arrived, (index, number), gradient.detach())
        except Exception as error:  # the backward pass goes on
            self._unread[index] = unreadable(error)

    def keep_gradient(self, index: int, gradient: Tensor) -> None:
        """Take a gradient from compiled code."""
        self._arrive(self._first, index, 0, gradient)

    def _dense(self, passage: Passage, index: int, seen: Seen, role: str) -> Tensor | None:
        tensor = self._unwritten(index, seen, role)
        tensor = None if tensor is None else unsharded(tensor)
        if tensor is not None and tensor.is_nested:
            passage.was_nested = True
            tensor, passage.real[index] = without_nesting(tensor)
        return tensor

    def __getstate__(self) -> dict[str, Any]:
        gradients = StepGradients(self.step_gradients.layers, self.step_gradients.counts_all)
        first = Passage(len(self.layers))
        return {**super().__getstate__(), "_first": first, "_passes": [first], "step_gradients": gradients}
