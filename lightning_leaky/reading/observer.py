"""From forward hooks to `Readings`, without a trainer."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping

import torch
from torch import Tensor, nn

from lightning_leaky.functional.step_sizes import normalise_step_sizes
from lightning_leaky.hooks.branch_capture import BranchCapture
from lightning_leaky.hooks.capture import PathCapture
from lightning_leaky.hooks.skipped import SkippedBlocks
from lightning_leaky.metrics.path_reader import PathReader
from lightning_leaky.metrics.quantity import Quantity
from lightning_leaky.metrics.readings import Readings
from lightning_leaky.metrics.recipe import resolve_quantities
from lightning_leaky.paths.block_path import BlockPath
from lightning_leaky.paths.branches import path_or_finder
from lightning_leaky.paths.leaky_path import LayerWeights, LeakyPath, knows_weights, step_sizes_of
from lightning_leaky.reading.block_parameters import ParameterReader
from lightning_leaky.reading.checks import no_room, ranks_doubt
from lightning_leaky.reading.passed_batch import Batch, PassedBatch, Segmentation
from lightning_leaky.reading.sample import PathSample
from lightning_leaky.reading.sample_count import SampleCount
from lightning_leaky.reading.settings import ReadingSettings, check_quantities_of, momentum_weight_decay, reader_of
from lightning_leaky.reading.watched_layers import WatchedLayers
from lightning_leaky.utilities.data_parallel import DataParallelRank
from lightning_leaky.utilities.harmless import warn_once
from lightning_leaky.utilities.processes import first_of, meeting_place


class PathObserver:
    """Hooks on a path and the sums they feed: arm it, run batches, drain after each, compute.

    It leaves out a batch that it cannot read, with one warning, because it runs inside training loops. A strict
    observer raises ValueError instead.

    Args:
        path: ``None`` finds the longest run of shape-preserving blocks on the first batch.
        decay_of: Returns an optimizer's weight decay of layers; its λ, see `objective_weight_decay`, is added to that
            of the settings.
        strict: Also counts every gradient, whether a step uses it or not.
        held: Ids of the parameters that optimizers hold; only a path with such parameters is found. A mapping holds
            `Decays`.
        data_parallel: Which processes have the same samples; ``None`` if each has its own.

    Attributes:
        num_shown: Rows of each batch to keep in `samples`, for pictures.
        samples: Those of the last batch read, one per segment.
        notes: What to tell a user once.
        said: As of `warn_once`.
    """

    def __init__(
        self,
        model: nn.Module,
        path: LeakyPath | None,
        settings: ReadingSettings,
        decay_of: Callable[[nn.Module], float | None] | None = None,
        strict: bool = False,
        held: Container[int] | None = None,
        data_parallel: DataParallelRank | None = None,
    ) -> None:
        self.path, self.settings, self.strict = path, settings, strict
        self._model, self._decay_of = model, decay_of
        self._parameters = ParameterReader(held if isinstance(held, Mapping) else None, decay_of is not None, strict)
        self._optimizer_weight_decay = None if path is None or decay_of is None else decay_of(path.layers)
        self.quantities = resolve_quantities(settings.quantities or ())
        if path is not None or decay_of is None:
            check_quantities_of(path, settings, settings.weight_decay or self._optimizer_weight_decay)
            modules = model if path is None else path.layers
            why = self._parameters.why_not(self.quantities, modules, settings.weight_decay)
            if why is not None:
                raise ValueError(why)
        self.reads_gradients = any(record.has_gradients for record in self.quantities)
        self._has_weights = knows_weights(path)  # a found path has none
        self.notes: list[str] = []
        self.num_shown = 0
        self.samples: list[PathSample] = []
        self.path, self._finder = path_or_finder(model, path, settings.branches, settings.effective_depth, held)
        layers = [] if self.path is None else list(self.path.layers)
        self._watched = self._watch(layers if self._finder is None else self._finder.candidates)
        self.capture.is_search = self.path is None
        self._reader: PathReader | None = None
        self._batch = Batch()
        self._count = SampleCount(data_parallel)
        self.said: set[str] = set()
        self._step_sizes = torch.zeros(0) if self.path is None else step_sizes_of(self.path)

    @property
    def weight_decay_read(self) -> float | None:
        """λ of the momenta; ``None`` if none are read or the path is not known yet."""
        is_known = self._has_momenta and self._watched.segmentation.is_known
        return self._weight_decay(self.path) if is_known and self.path is not None else None

    def skipping(self) -> SkippedBlocks:
        """Return hooks that skip the layers read; needs a batch."""
        read, numbers = self._watched.segmentation.layers, self.capture.numbers
        state = None if self.path is None else self.settings.state_of(self.path)
        names = [self._watched.names[index] for index in read]
        return SkippedBlocks(self._layers_read(), names, state, [numbers[index] for index in read])

    @property
    def _has_momenta(self) -> bool:
        return any(record.has_momenta for record in self.quantities)

    @property
    def capture(self) -> PathCapture:
        """The hooks."""
        return self._watched.capture

    def attach(self) -> PathObserver:
        """Register the forward hooks and return this observer."""
        self.capture.attach()
        return self

    def detach(self) -> None:
        """Remove the hooks and drop every tensor."""
        self.capture.detach()
        self.capture.clear()
        self._batch = Batch()

    def arm(self, batch: Batch | None = None) -> bool:
        """Keep what passes from now on; return False if the batch has none of the samples read of a large data set."""
        self._batch = Batch() if batch is None else batch
        level = 0 if self._reader is None else self._reader.level
        is_chosen = self.settings.exact or self._count.add(self._batch, level)
        if is_chosen or self.path is None:  # any batch shows where the path is
            self.capture.arm()
            self._step_sizes = self._step_sizes if self.path is None else step_sizes_of(self.path)
        return self.capture.armed

    def drain(self, gradient_scale: float | None = 1.0, is_last: bool = False) -> None:
        """Add what has passed to the sums, and forget it.

        Args:
            gradient_scale: Factor of the cost in its backward pass (AMP, accumulation); ``None`` only finds the path.
            is_last: Whether `compute` follows at once.
        """
        was_armed, self.capture.armed = self.capture.armed, False
        try:
            if was_armed:
                self._find_path()
            if self.path is not None and gradient_scale is not None:
                self._read(self.path, gradient_scale, is_last)
        except Exception as error:  # training goes on
            self._complain(f"A batch is not read: {str(error) or repr(error)}", error)
        finally:
            self._batch = Batch()
            self.capture.clear()

    def reset(self) -> None:
        """Forget every batch."""
        self._count.reset()
        if self._reader is not None:
            self._reader.reset()

    def compute(self, parameter_scale: float | None = None) -> Readings | None:
        """Return the readings since the last reset, or ``None`` if no process has read a batch.

        Every process must call it, even without a batch. `parameter_scale` is the factor of the cost in the parameters'
        `.grad` before a step; without it no quantity of these is read.
        """
        found = None if self._finder is None else self._finder.agreed_path()
        if found is not None:  # the first process's; one that found another path gives up its sums
            self._take_path(found)
            self._reader = None
        if self.path is None:
            return None
        device, has_read = self.path.step_sizes.device, self._reader is not None and not self._reader.is_empty
        agreed = first_of(self._watched.segmentation.table.to(meeting_place(device)), has_read)
        if agreed is None:
            return None
        if Segmentation.of(agreed) != self._watched.segmentation:
            self._watched.segmentation, self._reader = Segmentation.of(agreed), None
        reader = self._reader_of(self.path)
        if self._count.data_parallel.has_peers:
            reader.take_share(self._count.standing(reader.num_rows, device))
        if reader.is_empty:
            self._step_sizes = step_sizes_of(self.path)
            reader.expect(self._step_sizes_read(), device, self._watched.segmentation.dtype)
        layers = self._watched.segmentation.layers
        weights = LayerWeights(self.path, layers) if self._has_weights else None
        known = self._parameters.sums(self._layers_read(), self.settings, self.path, reader.step_sizes, parameter_scale)
        names = [self._watched.names[index] for index in layers]
        readings = reader.compute(names, weights, known, self._count.of_levels)
        for key, error in reader.failures.items():
            self._complain(f"Quantity {key!r} reads NaN: {str(error) or repr(error)}", error)
        return readings

    def _find_path(self) -> None:
        finder, candidates = self._finder, self.capture
        if self.path is not None or finder is None or finder.is_done():
            return
        found = finder.find(candidates)
        if found is None:
            message = finder.complaint(candidates)
            if finder.is_done():
                candidates.detach()
            self._complain(message)
            return
        path, places = found
        self._take_path(path)
        self.capture.take(candidates, places)
        self.notes.append(finder.note())

    def _take_path(self, path: BlockPath) -> None:
        self.capture.detach()
        self.path = path
        self._watched = self._watch(list(path.layers))
        self.capture.attach()
        self._step_sizes = step_sizes_of(path)
        self._optimizer_weight_decay = None if self._decay_of is None else self._decay_of(path.layers)
        if self._has_momenta and not self._weight_decay(path):
            momenta = [record for record in self.quantities if record.has_momenta]
            why = "are not read: the layers that were found have no one weight decay. Give `weight_decay`."
            self._leave_out(momenta, f"{[record.key for record in momenta]} {why}")
        refused = self._parameters.why_not(self.quantities, path.layers, self.settings.weight_decay)
        if refused is not None:
            self._leave_out([record for record in self.quantities if record.needs == "parameters"], refused)

    def _leave_out(self, records: list[Quantity], why: str) -> None:
        self._warn(why)
        self.quantities = tuple(record for record in self.quantities if record not in records)
        self.settings = self.settings.reading(self.quantities)
        self.reads_gradients = any(record.has_gradients for record in self.quantities)

    def _read(self, path: LeakyPath, gradient_scale: float, is_last: bool) -> None:
        """Add what has passed, or raise ValueError and leave the sums as they were."""
        passed = self._watched.passed(self._batch, self._warn)
        self.notes, self._watched.notes = [*self.notes, *self._watched.notes], []
        self._add(path, passed, gradient_scale, is_last)
        self.samples = passed.samples(self.num_shown, self._warn) if self.num_shown else self.samples

    def _add(self, path: LeakyPath, passed: PassedBatch, gradient_scale: float, is_last: bool) -> None:
        reader, levels = self._reader_of(path), None
        if reader.max_rows is not None:
            levels = passed.levels(self._count.numbers_of(passed), reader.max_rows)
        previous, current = passed.matrices
        room = reader.room(current[0].dtype)
        if room is not None and room < max(map(len, current)):
            self._warn(no_room())
            if room == 0:
                return
            previous, current = passed.at_most(room)
        momenta = passed.momenta(self._weight_decay(path) * gradient_scale) if self.reads_gradients else None
        reader.update(previous, current, self._step_sizes_read(), momenta, is_last, levels)
        self._count.look_at(previous[0], current[-1])
        if levels is not None:
            self._count.add_read(passed)
        if passed.batch.gradients is not None:
            self._parameters.add(self._layers_read(), passed.batch.gradients, list(map(reader.recipe.share, current)))

    def _weight_decay(self, path: LeakyPath) -> float:
        """λ of the momenta, 1 if only gradients are read."""
        if not self._has_momenta:
            return 1.0
        num_layers = len(self._watched.segmentation.layers) or len(path.layers)
        return momentum_weight_decay(self.settings, path, num_layers, self._optimizer_weight_decay)

    def _layers_read(self) -> list[nn.Module]:
        return [self.capture.layers[index] for index in self._watched.segmentation.layers]

    def _step_sizes_read(self) -> Tensor:
        """ρ of the layers read; they share p ∈ [0, 1] among themselves."""
        return normalise_step_sizes(self._step_sizes[self._watched.segmentation.layers])

    def _reader_of(self, path: LeakyPath) -> PathReader:
        if self._reader is None:
            self._warn(ranks_doubt(self._model, self._count.given))
            recipe = self.settings.recipe(path, self._weight_decay(path))
            self._reader, note = reader_of(self.settings, recipe, self._watched.segmentation.widths)
            self.notes += filter(None, [note])
        return self._reader

    def _watch(self, layers: list[nn.Module]) -> WatchedLayers:
        is_known = self.path is not None or bool(self.settings.branches)  # candidates may lack the argument
        state = self.settings.state_of(self.path) if is_known else None
        kind = BranchCapture if self.path is None and self.settings.branches else PathCapture
        return WatchedLayers(self._model, layers, self.settings, self.reads_gradients, self.strict, state, kind)

    def _complain(self, message: str, cause: Exception | None = None) -> None:
        if self.strict:
            raise ValueError(message) from cause
        self._warn(message, is_own=True)

    def _warn(self, message: str | None, is_own: bool = False) -> None:
        if message is not None:
            warn_once(message, message, self.said, is_own)
