"""Reading a path, without a trainer: from forward hooks to `Readings`."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_leaky.functional.k_norm import KNorm
from lightning_leaky.functional.leak import objective_weight_decay
from lightning_leaky.functional.moments import momentum_of
from lightning_leaky.functional.step_sizes import normalise_step_sizes
from lightning_leaky.hooks.capture import PathCapture
from lightning_leaky.metrics.momenta import LossReduction
from lightning_leaky.metrics.path_reader import MOMENTA, Readings, check_quantities
from lightning_leaky.metrics.segments import Form, SegmentReaders, check_form
from lightning_leaky.paths.block_path import BlockPath, PathFinder
from lightning_leaky.paths.layers import named_layers, unwrapped
from lightning_leaky.paths.leaky_path import LayerWeights, LeakyPath, feature_settings, knows_weights, step_sizes_of
from lightning_leaky.reading.layout import ATTENTION_MASK, DECODER_ATTENTION_MASK, Layout, PaddingMask, real_positions
from lightning_leaky.reading.sample import PathSample, label_rows, labels_of, samples_of
from lightning_leaky.reading.segmentation import Segmentation
from lightning_leaky.utilities.processes import first_of, warn


class PathObserver:
    """Hooks on a path and the sums they feed: arm it, run batches, drain after each, compute.

    What a batch holds is never an error, for this object sits in somebody's training loop: what cannot be read is left
    out, with one warning that names it. A strict observer raises ValueError instead.

    Args:
        model: The model that contains the path.
        path: What to read; ``None`` finds the longest run of shape-preserving blocks on the first batch.
        quantities: Names from `lightning_leaky.metrics.path_reader.QUANTITIES`.
        gamma: The stabiliser of the K-norm, or ``None`` for a relative one; see `KNorm`.
        gamma_rel: γ0 of the relative stabiliser.
        weight_decay: λ > 0, where a momentum quantity is read.
        optimizer_weight_decay: An optimizer's weight decay; its λ, see
            `lightning_leaky.functional.objective_weight_decay`, is added.
        loss_reduction: ``"mean"`` where the cost is a mean over the samples of a batch, ``"sum"`` where it is a sum.
        effective_depth: L̃ of a path that is found.
        layout: How a representation becomes a matrix.
        form: Second moments, the samples themselves, or whichever fits; see `SegmentReaders`.
        padding_mask: Where a batch says which positions are real, see `real_positions`; ``None`` reads padding too.
        strict: Whether what cannot be read is an error.

    Attributes:
        num_shown: Rows of each batch to keep in `samples`, for pictures; 0 for none.
        samples: Those of the last batch that was read, one entry a segment.

    Raises:
        ValueError: If a quantity is not known or these layers do not have it, or a momentum quantity is wanted without
            a weight decay or of a part of the positions.
    """

    def __init__(
        self,
        model: nn.Module,
        path: LeakyPath | None,
        quantities: Collection[str],
        gamma: float | None = None,
        gamma_rel: float = 1e-3,
        weight_decay: float | None = None,
        optimizer_weight_decay: float | None = None,
        loss_reduction: LossReduction = "mean",
        effective_depth: float = 0.0,
        layout: Layout | None = None,
        form: Form = "auto",
        padding_mask: PaddingMask = ATTENTION_MASK,
        strict: bool = False,
    ) -> None:
        self.path = path
        self.quantities = check_quantities(quantities)
        check_residual(self.quantities, path)
        self.weight_decay, self.optimizer_weight_decay = weight_decay, optimizer_weight_decay
        self.loss_reduction: LossReduction = loss_reduction
        self.layout = Layout() if layout is None else layout
        self.form: Form = check_form(form)
        self.padding_mask = padding_mask
        self._batch: Any = None
        self._targets: Any = None
        self._fresh: Tensor | None = None
        self.strict = strict
        self.has_given_up = False
        self.notes: list[str] = []
        self.num_shown = 0
        self.samples: list[PathSample] = []
        self.reads_momenta = bool(set(MOMENTA) & set(self.quantities))
        if self.reads_momenta:
            check_momenta(self.quantities, weight_decay or optimizer_weight_decay, self.layout)
        self.k_norm = KNorm(gamma, gamma_rel, *feature_settings(path))
        self._has_two_sides = _is_encoder_decoder(model)
        self._names = {id(module): name for name, module in named_layers(model).items()}
        self._finder: PathFinder | None = None
        if path is None:
            self._finder = PathFinder(model, effective_depth)
            layers = self._finder.candidates
        else:
            layers = list(path.layers)
        self.capture = PathCapture(layers, gradients=self.reads_momenta)
        self._segmentation = Segmentation.unknown(len(layers))
        self._readers: SegmentReaders | None = None
        self._warned: set[str] = set()
        self._step_sizes = torch.zeros(0) if path is None else step_sizes_of(path)

    def attach(self) -> PathObserver:
        """Register the forward hooks and return this observer."""
        self.capture.attach()
        return self

    def detach(self) -> None:
        """Remove the hooks and forget every tensor."""
        self.capture.detach()
        self._clear()

    def arm(self, batch: Any = None, fresh: Tensor | None = None, targets: Any = None) -> None:
        """Keep what passes from now on.

        Args:
            batch: What passes, to know its padding.
            fresh: Which of its samples are no repeats, see `Layout.rows`; ``None`` for all.
            targets: What belongs to it, where the batch is inputs alone; for the labels of pictures.
        """
        self.capture.clear()
        self._batch, self._fresh, self._targets = batch, fresh, targets
        self.capture.armed = True
        if self.path is not None:
            self._step_sizes = step_sizes_of(self.path)

    def disarm(self) -> None:
        """Keep nothing that passes from now on; gradients still arrive for what has passed."""
        self.capture.in_backward = self.capture.in_backward or self.capture.armed
        self.capture.armed = False

    def forget(self) -> None:
        """Forget what has passed, but for where the path is."""
        self.disarm()
        self._find_path()
        self._clear()

    def drain(self, gradient_scale: float = 1.0) -> None:
        """Add what has passed to the sums, and forget it; a batch that cannot be read is left out.

        Args:
            gradient_scale: What the cost was multiplied by before its backward pass (AMP, accumulation).

        Raises:
            ValueError: If this observer is strict and the batch cannot be read.
        """
        self.disarm()
        if self._find_path():
            segmentation = self._segmentation
            try:
                self._read(gradient_scale)
                if self.num_shown:
                    self._keep_samples()
            except Exception as error:  # whatever a batch holds, the training that it belongs to goes on
                self._segmentation = segmentation
                self._complain("batch", f"A batch is not read: {str(error) or repr(error)}", error)
        self._clear()

    def reset(self) -> None:
        """Forget every batch."""
        if self._readers is not None:
            self._readers.reset()

    def compute(self) -> Readings | None:
        """Return the readings of all batches since the last reset, or ``None`` if no process has read one.

        Under torch.distributed every process must call it: one without a batch joins the others with an empty one.
        """
        self._agree_on_path()
        if self.path is None:
            return None
        device = self.path.step_sizes.device
        has_read = self._readers is not None and not self._readers.is_empty
        agreed = first_of(self._segmentation.table.to(device), has_read)
        if agreed is None:
            return None
        if not torch.equal(agreed.cpu(), self._segmentation.table):
            self._segmentation, self._readers = Segmentation(agreed.cpu()), None
        readers, weights = self._readers_on(device), self._weights()
        if readers.is_empty or weights is not None:
            like = torch.zeros(0, dtype=self._segmentation.dtype, device=device)
            readers.update_with_nothing(self._step_sizes_read(), weights, like)
        return readers.compute([self._name(index) for index in self._segmentation.layers])

    # The path: found on the first batch where nobody has named it.

    def _agree_on_path(self) -> None:
        """Take the path that the first of all processes has found; one that found another gives up its own sums."""
        if self._finder is not None:
            agreed = self._finder.agreed_path()
            if agreed is not None:
                self._take_path(agreed)
                self._readers = None

    def _find_path(self) -> bool:
        """Whether there is a path; the first batch is handed over to it."""
        if self.path is None and self._finder is not None and not self.has_given_up:
            candidates, found = self.capture, self._finder.find(self.capture)
            if found is None:
                self.has_given_up = True
                self.capture.detach()
                self._complain(
                    "run",
                    "No layers are read: `layers` is None, and no two shape-preserving blocks of one class follow one "
                    "another, each running once, in the first batch. Name the layers, as in "
                    'EnergyMonitor("encoder.layers.*").',
                )
            else:
                path, run = found
                self._take_path(path)
                self.capture.take(candidates, run)
                self.notes.append(
                    f"{len(run)} layers found: {self._name(0)} to {self._name(len(run) - 1)} "
                    f"({type(unwrapped(self.capture.layers[0])).__name__})."
                )
        return self.path is not None

    def _take_path(self, path: BlockPath) -> None:
        self.capture.detach()
        self.path = path
        self.capture = PathCapture(list(path.layers), gradients=self.reads_momenta).attach()
        self._segmentation = Segmentation.unknown(len(path.layers))
        self._step_sizes = step_sizes_of(path)

    # One batch.

    def _read(self, gradient_scale: float) -> None:
        """Add what has passed, or raise ValueError, with the sums as they were, where it cannot be read."""
        self._check_passes()
        is_first = not self._segmentation.is_known
        if is_first:
            self._segmentation = Segmentation.seen(self.capture.previous, self.capture.current, self.layout)
            if not self._segmentation.is_known:
                raise ValueError("no layer preserves the shape of its input; choose other `layers`.")
        keeps = self._real_positions()
        self._check_repeats()
        previous, current = self._path_rows(keeps, self.layout)
        self._check_shapes(previous, current)
        if not any(map(len, current)) and self._fresh is None:
            raise ValueError("no position in it is real.")
        if is_first:
            self._check_connections(previous, current)
            self._note_segments()
            self.capture.stop_checking()
        readers = self._readers_on(current[0].device)
        room = readers.room(current[0].dtype)
        if room is not None and room < max(map(len, current)):
            self._warn(
                "room",
                "Some samples are not read: those of all processes would take more than the memory that a monitor may "
                "take. Choose fewer with Layout(max_samples=...), or limit the batches.",
            )
            if room == 0:
                return
            previous, current = self._path_rows(keeps, self.layout.limited(room))
        momenta = self._momenta(current, gradient_scale, keeps) if self.reads_momenta else None
        readers.update(previous, current, self._step_sizes_read(), momenta)

    def _keep_samples(self) -> None:
        """Keep a few rows of the batch that was read; what goes wrong here must not spoil the reading."""
        self.samples = []
        try:
            self.samples = self._shown()
        except Exception as error:
            self._warn("samples", f"No samples of a batch are kept for pictures: {error}")

    def _shown(self) -> list[PathSample]:
        layout, keeps = self.layout.limited(self.num_shown), self._real_positions()
        batch = self._batch if self._targets is None else (self._batch, self._targets)
        known, labels = labels_of(batch), {}
        numbers = [segment for segment in self._segmentation.segments if segment]
        for index, number in zip(self._segmentation.layers, numbers, strict=True):
            taken = self.capture.previous[index]
            if number not in labels and taken is not None:  # of the rows that a segment begins with
                labels[number] = label_rows(known, taken, layout, keeps[index], self._fresh)
        return samples_of(*self._path_rows(keeps, layout), numbers, labels)

    def _real_positions(self) -> list[Tensor | None]:
        """Which positions of each layer are real, by the batch or, where that does not say, by what it was told."""
        masks = [self._mask_for(index) for index in range(len(self.capture.layers))]
        found = {mask: real_positions(self._batch, mask) for mask in masks}
        return [
            self.capture.real_positions(index)
            if self.capture.was_nested or (found[mask] is None and mask is not None)
            else found[mask]
            for index, mask in enumerate(masks)
        ]

    def _mask_for(self, index: int) -> PaddingMask:
        """Where the batch says what is padding for a layer: attention masks of encoders are not those of decoders."""
        is_decoder = self._has_two_sides and "decoder" in self._name(index).split(".")
        return DECODER_ATTENTION_MASK if is_decoder and self.padding_mask == ATTENTION_MASK else self.padding_mask

    def _clear(self) -> None:
        self._batch = self._fresh = self._targets = None
        self.capture.clear()

    def _check_passes(self) -> None:
        """Raise ValueError where a layer was silent or cannot be read."""
        for index, complaint in self.capture.complaints().items():
            raise ValueError(f"layer {self._name(index)!r} {complaint}; choose other `layers`.")
        silent = [self._name(index) for index, tensor in enumerate(self.capture.current) if tensor is None]
        if silent:
            raise ValueError(
                f"layers {silent} did not run in it, or ran in code that was compiled before they were watched; leave "
                "them out of `layers`."
            )

    def _note_segments(self) -> None:
        """Say, for a log, where the path is split."""
        if len(self._segmentation.layers) < len(self.capture.layers) or len(self._segmentation.widths) > 1:
            names = [self._name(index) for index in range(len(self.capture.layers))]
            left_out = [name for index, name in enumerate(names) if index not in self._segmentation.layers]
            self.notes.append(
                f"The shape changes along the path: {len(self._segmentation.layers)} layers are read, in "
                f"{len(self._segmentation.widths)} segments{f'; {left_out} are left out' if left_out else ''}."
            )

    def _check_shapes(self, previous: list[Tensor], current: list[Tensor]) -> None:
        for index, start, end in zip(self._segmentation.layers, previous, current, strict=True):
            width = int(self._segmentation.table[1, index])
            if start.shape != end.shape or start.shape[-1] != width:
                raise ValueError(
                    f"layer {self._name(index)!r} maps {tuple(start.shape)} to {tuple(end.shape)}, and in the first "
                    f"batch it preserved a width of {width}."
                )

    def _check_repeats(self) -> None:
        """Warn where samples that repeat others cannot be told in a representation."""
        if self._fresh is None:
            return
        read = [self.capture.current[index] for index in self._segmentation.layers]
        lengths = {self.layout.num_samples(tensor) for tensor in read if tensor is not None}
        if lengths != {len(self._fresh)}:
            self._warn(
                "repeats",
                f"A batch has {len(self._fresh)} samples, of which a distributed sampler repeats some, and layers have "
                f"{sorted(lengths)}: the repeats are read too. Say where the batch is, as in Layout('tnc').",
            )

    def _check_connections(self, previous: list[Tensor], current: list[Tensor]) -> None:
        """Warn where a layer does not take what the one before it in its segment has returned."""
        read, segments = self._segmentation.layers, self._segmentation.segments
        for place, (before, after) in enumerate(itertools.pairwise(read), start=1):
            if segments[before] == segments[after]:
                passed, taken = current[place - 1], previous[place]
                if passed.data_ptr() != taken.data_ptr() and not torch.equal(passed.to(taken), taken):
                    self._warn(
                        "path",
                        f"Layers {self._name(before)!r} and {self._name(after)!r} are not on one path: what the second "
                        "takes is not what the first returned. Each layer's readings stand, those along the path "
                        "(length, spread, rank) do not. Choose `layers` that follow one another.",
                    )
                    return

    def _path_rows(self, keeps: list[Tensor | None], layout: Layout) -> tuple[list[Tensor], list[Tensor]]:
        """A_{l−1} and A_l of the layers that are read."""
        previous, current = (self._rows(each, keeps, layout) for each in (self.capture.previous, self.capture.current))
        return previous, current

    def _rows(self, tensors: Sequence[Tensor | None], keeps: list[Tensor | None], layout: Layout) -> list[Tensor]:
        chosen = [(tensors[index], keeps[index]) for index in self._segmentation.layers]
        return [layout.rows(tensor, keep, self._fresh) for tensor, keep in chosen if tensor is not None]

    def _momenta(self, current: list[Tensor], gradient_scale: float, keeps: list[Tensor | None]) -> list[Tensor]:
        """B_l = −(1/λ) ∂C/∂A_l; NaN where no gradient came."""
        scaled_weight_decay = self._weight_decay() * gradient_scale
        seen = [(self.capture.gradients[index], keeps[index]) for index in self._segmentation.layers]
        return [
            torch.full_like(rows, torch.nan)
            if gradient is None
            else momentum_of(self.layout.rows(gradient, keep), scaled_weight_decay)
            for rows, (gradient, keep) in zip(current, seen, strict=True)
        ]

    def _weight_decay(self) -> float:
        """λ as it was given, and that of the optimizer."""
        if not self.optimizer_weight_decay or self.path is None:
            return check_weight_decay(self.weight_decay, self.quantities)
        given = check_weight_decay(self.optimizer_weight_decay, self.quantities)
        depth, acts_per_layer = self.path.effective_depth, not knows_weights(self.path)
        decayed = objective_weight_decay(given, len(self._segmentation.layers), depth, acts_per_layer)
        return (self.weight_decay or 0.0) + decayed

    @property
    def weight_decay_read(self) -> float | None:
        """λ that momenta are read with; ``None`` where none are, and before the path is known."""
        return self._weight_decay() if self.reads_momenta and self._segmentation.is_known else None

    def _weights(self) -> LayerWeights | None:
        """W_l where they are read: by `compute`, for sharded ones are gathered, and only there all processes meet."""
        if self.path is None or "criticality_residual" not in self.quantities or not knows_weights(self.path):
            return None
        return LayerWeights(self.path, self._segmentation.layers)

    def _step_sizes_read(self) -> Tensor:
        """ρ of the layers that are read; they share p ∈ [0, 1] among themselves."""
        return normalise_step_sizes(self._step_sizes[self._segmentation.layers])

    def _readers_on(self, device: torch.device) -> SegmentReaders:
        if self._readers is None:
            self._readers = SegmentReaders(
                self._segmentation.widths,
                0.0 if self.path is None else self.path.effective_depth,
                self.quantities,
                self.k_norm,
                self.loss_reduction,
                self.form,
            )
            if self._readers.form == "samples":
                self.notes.append(
                    "The samples themselves are kept, in the N × N form: second moments would take "
                    f"{self._readers.moments_in_bytes / 2**30:.2f} GiB."
                )
        # MPS has no float64: there the sums live on the CPU.
        return self._readers.to("cpu" if device.type == "mps" else device)

    def _name(self, index: int) -> str:
        return self._names.get(id(self.capture.layers[index]), f"layer {index + 1}")

    def _complain(self, subject: str, message: str, cause: Exception | None = None) -> None:
        if self.strict:
            raise ValueError(message) from cause
        self._warn(subject, message)

    def _warn(self, subject: str, message: str) -> None:
        """Warn, once of each subject: the shapes in a message may change from batch to batch."""
        if subject not in self._warned:
            self._warned.add(subject)
            warn(message, is_own=subject == "batch")  # each process has batches of its own


def _is_encoder_decoder(model: nn.Module) -> bool:
    """Whether a part of the model says of itself, as those of transformers do, that it has both sides."""
    configs = (getattr(module, "config", None) for module in model.modules())
    return any(getattr(config, "is_encoder_decoder", False) for config in configs)


def check_residual(quantities: Collection[str], path: LeakyPath | None) -> None:
    """Raise ValueError where a criticality residual is wanted of layers whose weights are no W_l."""
    if "criticality_residual" in quantities and not knows_weights(path):
        raise ValueError(
            '`quantities` cannot include "criticality_residual" for these layers: it needs the W_l of a leaky path '
            "that has a method `weights`, as `LeakyResNet` has. Leave it out."
        )


def check_momenta(quantities: Collection[str], weight_decay: float | None, layout: Layout) -> None:
    """Raise ValueError where momentum quantities lack a weight decay, or some of the positions that they sum over."""
    check_weight_decay(weight_decay, quantities)
    if not layout.reads_all_positions:
        wanted = sorted(set(MOMENTA) & set(quantities))
        raise ValueError(
            f"`layout` must read every position for {wanted}, sums over all of them, got {layout}; leave `max_samples` "
            "and `per_sample` out, or these quantities."
        )


def check_weight_decay(weight_decay: float | None, quantities: Collection[str]) -> float:
    """Return a weight decay λ > 0, or raise ValueError naming the quantities that need one."""
    if weight_decay is None or not 0 < weight_decay < float("inf"):
        wanted = sorted(set(MOMENTA) & set(quantities))
        raise ValueError(
            f"`weight_decay` must be a finite number > 0 to read {wanted}, got {weight_decay!r}; give the λ of the "
            "objective, or leave these quantities out. (`EnergyMonitor` takes it from an optimizer that has one weight "
            "decay > 0 on all matrices of these layers.)"
        )
    return weight_decay
