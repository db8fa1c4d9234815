"""Layers with hooks, and the matrices that pass them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from lightning_leaky.hooks.capture import PathCapture
from lightning_leaky.hooks.state import StateChoice, named_after
from lightning_leaky.paths.layers import named_layers
from lightning_leaky.reading.checks import (
    broken_path,
    check_passes,
    check_widths,
    layout_told,
    noisy_layers,
    segments_note,
    unknown_repeats,
    unused_mask,
)
from lightning_leaky.reading.layout import GIVEN
from lightning_leaky.reading.passed_batch import Batch, PassedBatch, Segmentation
from lightning_leaky.reading.settings import ReadingSettings


class WatchedLayers:
    """Layers of a model with hooks, and what their first batch has told; arguments as of `PathCapture`.

    Attributes:
        names: Their names in the model.
        notes: What to tell a user once.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[nn.Module],
        settings: ReadingSettings,
        gradients: bool = False,
        counts_all: bool = False,
        state: StateChoice = None,
        kind: type[PathCapture] = PathCapture,
    ) -> None:
        name_of = {id(module): name for name, module in named_layers(model).items()}
        firsts = map(named_after, layers)
        self.names = [name_of.get(id(layer), f"layer {index}") for index, layer in enumerate(firsts, start=1)]
        self.settings, self.layout = settings, settings.sample_layout
        self.segmentation = Segmentation.unknown(len(layers))
        self.capture = kind(layers, gradients, counts_all, model, state)
        self.notes: list[str] = []

    def passed(self, batch: Batch, say: Callable[[str | None], None]) -> PassedBatch:
        """Return the batch that has passed and `say` warnings, or raise ValueError and change nothing."""
        self.capture.settle()
        check_passes(self.capture, self.names)
        first, *_ = passages = self.capture.passages
        is_first, layout, segmentation = not self.segmentation.is_known, self.layout, self.segmentation
        if is_first:
            layout, doubt = layout_told(layout, self.capture.layers, first, self.names)
            say(doubt)
            segmentation = Segmentation.seen(first.previous, first.current, layout)
            if not segmentation.is_known:
                raise ValueError("no layer preserves the shape of its input; choose other `layers`.")
        check_widths(segmentation, passages, layout, self.names)
        passed = PassedBatch(batch, passages, segmentation, layout, self.settings.padding_mask)
        say(unknown_repeats(batch.fresh, passed.numbers_of_samples()))
        if not any(map(len, passed.matrices[1])) and batch.fresh is None:
            raise ValueError("no position in it is real.")
        if is_first:
            say(broken_path(segmentation, *passed.first(), self.names))
            if self.settings.padding_mask == GIVEN and not any(any(passage.masks) for passage in passages):
                say(unused_mask(batch.data))
            self.layout, self.segmentation = layout, segmentation
            found = (segments_note(segmentation, self.names), noisy_layers(self.capture.layers, self.names))
            self.notes += [*filter(None, found), *self.capture.padding_notes()]
            self.capture.copy_less()
        return passed
