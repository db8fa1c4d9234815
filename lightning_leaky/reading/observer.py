"""Reading a path, without a trainer: from forward hooks to `Readings`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_leaky.functional.step_sizes import normalise_step_sizes
from lightning_leaky.hooks.capture import PathCapture
from lightning_leaky.metrics.path_reader import PathReader
from lightning_leaky.metrics.readings import Readings
from lightning_leaky.metrics.records import resolve_quantities
from lightning_leaky.paths.block_path import BlockPath, PathFinder
from lightning_leaky.paths.layers import named_layers, unwrapped
from lightning_leaky.paths.leaky_path import LayerWeights, LeakyPath, knows_weights, step_sizes_of
from lightning_leaky.reading.checks import broken_path, check_passes, check_widths, segments_note, unknown_repeats
from lightning_leaky.reading.layout import is_encoder_decoder, mask_of_layer
from lightning_leaky.reading.passed_batch import Batch, Matrices, PassedBatch
from lightning_leaky.reading.sample import PathSample
from lightning_leaky.reading.segmentation import Segmentation
from lightning_leaky.reading.settings import ReadingSettings, check_quantities_of, momentum_weight_decay
from lightning_leaky.utilities.processes import first_of, warn


class PathObserver:
    """Hooks on a path and the sums they feed: arm it, run batches, drain after each, compute.

    What a batch holds is never an error, for this object sits in somebody's training loop: what cannot be read is left
    out, with one warning that names it. A strict observer raises ValueError instead.

    Args:
        model: The model that contains the path.
        path: What to read; ``None`` finds the longest run of shape-preserving blocks on the first batch.
        settings: Which quantities, and how.
        optimizer_weight_decay: An optimizer's weight decay; its λ, see
            `lightning_leaky.functional.objective_weight_decay`, is added to that of the settings.
        strict: Whether what cannot be read is an error.

    Attributes:
        quantities: Records of what is read.
        num_shown: Rows of each batch to keep in `samples`, for pictures; 0 for none.
        samples: Those of the last batch that was read, one entry a segment.
        notes: What to tell a user once.

    Raises:
        ValueError: If these layers do not have a quantity, or a momentum quantity is wanted without a weight decay or
            of a part of the positions.
    """

    def __init__(
        self,
        model: nn.Module,
        path: LeakyPath | None,
        settings: ReadingSettings,
        optimizer_weight_decay: float | None = None,
        strict: bool = False,
    ) -> None:
        self.path, self.settings, self.strict = path, settings, strict
        self.optimizer_weight_decay = optimizer_weight_decay
        self.quantities = resolve_quantities(settings.quantities or ())
        check_quantities_of(path, settings, settings.weight_decay or optimizer_weight_decay)
        self.reads_momenta = any(record.has_momenta for record in self.quantities)
        self._has_weights = knows_weights(path)  # a path that is found has none
        self.notes: list[str] = []
        self.num_shown = 0
        self.samples: list[PathSample] = []
        self._has_two_sides = is_encoder_decoder(model)
        self._name_of = {id(module): name for name, module in named_layers(model).items()}
        self._finder: PathFinder | None = None
        if path is None:
            self._finder = PathFinder(model, settings.effective_depth)
            layers = self._finder.candidates
        else:
            layers = list(path.layers)
        self.capture = self._capture_of(layers)
        self._segmentation = Segmentation.unknown(len(layers))
        self._reader: PathReader | None = None
        self._batch = Batch()
        self._warned: set[str] = set()
        self._step_sizes = torch.zeros(0) if path is None else step_sizes_of(path)

    @property
    def weight_decay_read(self) -> float | None:
        """λ that momenta are read with; ``None`` where none are, and before the path is known."""
        is_known = self.reads_momenta and self._segmentation.is_known
        return self._weight_decay(self.path) if is_known and self.path is not None else None

    def attach(self) -> PathObserver:
        """Register the forward hooks and return this observer."""
        self.capture.attach()
        return self

    def detach(self) -> None:
        """Remove the hooks and forget every tensor."""
        self.capture.detach()
        self._clear()

    def arm(self, batch: Batch | None = None) -> None:
        """Keep what passes from now on.

        Args:
            batch: What passes, where something is known of it.
        """
        self.capture.clear()
        self._batch = Batch() if batch is None else batch
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
        self._find_path()
        if self.path is not None:
            segmentation = self._segmentation
            try:
                self._read(self.path, gradient_scale)
            except Exception as error:  # whatever a batch holds, the training that it belongs to goes on
                self._segmentation = segmentation
                self._complain("batch", f"A batch is not read: {str(error) or repr(error)}", error)
        self._clear()

    def reset(self) -> None:
        """Forget every batch."""
        if self._reader is not None:
            self._reader.reset()

    def compute(self) -> Readings | None:
        """Return the readings of all batches since the last reset, or ``None`` if no process has read one.

        Under torch.distributed every process must call it: one without a batch joins the others.
        """
        self._agree_on_path()
        if self.path is None:
            return None
        device = self.path.step_sizes.device
        has_read = self._reader is not None and not self._reader.is_empty
        agreed = first_of(self._segmentation.table.to(device), has_read)
        if agreed is None:
            return None
        if Segmentation.of(agreed) != self._segmentation:
            self._segmentation, self._reader = Segmentation.of(agreed), None
        reader = self._reader_of(self.path)
        if reader.is_empty:
            reader.expect(self._step_sizes_read(), device, self._segmentation.dtype)
        layers = self._segmentation.layers
        weights = LayerWeights(self.path, layers) if self._has_weights else None
        readings = reader.compute([self._names[index] for index in layers], weights)
        for key, error in reader.failures.items():
            self._complain(f"quantity {key}", f"Quantity {key!r} reads NaN: {str(error) or repr(error)}", error)
        return readings

    # The path: found on the first batch where nobody has named it.

    def _agree_on_path(self) -> None:
        """Take the path that the first of all processes has found; one that found another gives up its own sums."""
        agreed = None if self._finder is None else self._finder.agreed_path()
        if agreed is not None:
            self._take_path(agreed)
            self._reader = None

    def _find_path(self) -> None:
        """Look for the path in the first batch, and hand the batch over to it."""
        if self.path is not None or self._finder is None or self._finder.has_found_none:
            return
        candidates, found = self.capture, self._finder.find(self.capture)
        if found is None:
            self.capture.detach()
            self._complain(
                "run",
                "No layers are read: `layers` is None, and no two shape-preserving blocks of one class follow one "
                "another, each running once, in the first batch. Name the layers, as in "
                'EnergyMonitor("encoder.layers.*").',
            )
            return
        path, run = found
        self._take_path(path)
        self.capture.take(candidates, run)
        kind = type(unwrapped(self.capture.layers[0])).__name__
        self.notes.append(f"{len(run)} layers found: {self._names[0]} to {self._names[-1]} ({kind}).")

    def _take_path(self, path: BlockPath) -> None:
        self.capture.detach()
        self.path = path
        self.capture = self._capture_of(list(path.layers)).attach()
        self._segmentation = Segmentation.unknown(len(path.layers))
        self._step_sizes = step_sizes_of(path)

    # One batch.

    def _read(self, path: LeakyPath, gradient_scale: float) -> None:
        """Add what has passed, or raise ValueError, with the sums as they were, where it cannot be read."""
        names = self._names
        check_passes(self.capture, names)
        is_first, layout = not self._segmentation.is_known, self.settings.sample_layout
        if is_first:
            self._segmentation = Segmentation.seen(self.capture.previous, self.capture.current, layout)
            if not self._segmentation.is_known:
                raise ValueError("no layer preserves the shape of its input; choose other `layers`.")
        passed = PassedBatch(self._batch, self.capture, self._segmentation, layout, self._masks)
        self._warn("repeats", unknown_repeats(self._batch.fresh, passed.numbers_of_samples()))
        previous, current = passed.matrices()
        check_widths(self._segmentation, previous, current, names)
        if not any(map(len, current)) and self._batch.fresh is None:
            raise ValueError("no position in it is real.")
        if is_first:
            self._warn("path", broken_path(self._segmentation, previous, current, names))
            note = segments_note(self._segmentation, names)
            self.notes += [] if note is None else [note]
            self.capture.stop_checking()
        self._add(path, passed, (previous, current), gradient_scale)
        if self.num_shown:
            self._keep_samples(passed)

    def _add(self, path: LeakyPath, passed: PassedBatch, matrices: Matrices, gradient_scale: float) -> None:
        """Add as much of a batch as there is room for."""
        reader, (previous, current) = self._reader_of(path), matrices
        room = reader.room(current[0].dtype)
        if room is not None and room < max(map(len, current)):
            self._warn(
                "room",
                "Some samples are not read: those of all processes would take more than the memory that a monitor may "
                "take. Choose fewer with Layout(max_samples=...), or limit the batches.",
            )
            if room == 0:
                return
            previous, current = passed.matrices(passed.layout.limited(room))
        momenta = passed.momenta(self._weight_decay(path) * gradient_scale, current) if self.reads_momenta else None
        reader.update(previous, current, self._step_sizes_read(), momenta)

    def _keep_samples(self, passed: PassedBatch) -> None:
        """Keep a few rows of the batch that was read; what goes wrong here must not spoil the reading."""
        self.samples = []
        try:
            self.samples = passed.samples(self.num_shown)
        except Exception as error:
            self._warn("samples", f"No samples of a batch are kept for pictures: {error}")

    def _clear(self) -> None:
        self._batch = Batch()
        self.capture.clear()

    def _weight_decay(self, path: LeakyPath) -> float:
        """λ that momenta are read with."""
        return momentum_weight_decay(self.settings, path, len(self._segmentation.layers), self.optimizer_weight_decay)

    def _step_sizes_read(self) -> Tensor:
        """ρ of the layers that are read; they share p ∈ [0, 1] among themselves."""
        return normalise_step_sizes(self._step_sizes[self._segmentation.layers])

    def _reader_of(self, path: LeakyPath) -> PathReader:
        if self._reader is None:
            recipe = self.settings.recipe(path)
            self._reader = PathReader(self._segmentation.widths, recipe, self.settings.form)
            if self._reader.form == "samples":
                self.notes.append(
                    "The samples themselves are kept, in the N × N form: second moments would take "
                    f"{self._reader.moments_in_bytes / 2**30:.2f} GiB."
                )
        return self._reader

    def _capture_of(self, layers: list[nn.Module]) -> PathCapture:
        """Hooks on layers, whose names are known from now on."""
        self._names = [self._name_of.get(id(layer), f"layer {index}") for index, layer in enumerate(layers, start=1)]
        mask = self.settings.padding_mask
        self._masks = [mask_of_layer(name, mask, self._has_two_sides) for name in self._names]
        return PathCapture(layers, gradients=self.reads_momenta)

    def _complain(self, subject: str, message: str, cause: Exception | None = None) -> None:
        if self.strict:
            raise ValueError(message) from cause
        self._warn(subject, message)

    def _warn(self, subject: str, message: str | None) -> None:
        """Warn, once of each subject: the shapes in a message may change from batch to batch."""
        if message is not None and subject not in self._warned:
            self._warned.add(subject)
            warn(message, is_own=subject == "batch")  # each process has batches of its own
