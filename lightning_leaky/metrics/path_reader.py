"""Any choice of quantities of a path, accumulated over batches and processes and returned as one object."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightning_leaky.functional.step_sizes import check_segment_step_sizes
from lightning_leaky.metrics.bound import most_rows, room_for_rows
from lightning_leaky.metrics.layer_batch import check_layers
from lightning_leaky.metrics.layer_store import NUM_LEVELS, Form, LayerStore, check_form
from lightning_leaky.metrics.readings import Readings
from lightning_leaky.metrics.recipe import Recipe, Weights
from lightning_leaky.metrics.records import QUANTITIES
from lightning_leaky.utilities.processes import meeting_place, num_processes, summed

# Of all layers together. Above it a monitor would no longer be a guest; a fixed number, so that all processes agree.
MEMORY_LIMIT = 2**30


class PathReader:
    """Accumulates quantities of a path in segments, each of one width: the trainer-free core of `EnergyMonitor`.

    Second moments, of ``8 L (d² + 2dw)`` bytes for the energies, ``8 L w²`` for the spectrum and ``8 L dw`` for the
    momenta (d = w + 1), are exact over any data set. The samples themselves take ``2 N L w`` float32 (``3 N L w`` with
    momenta; float64 where the representations are) and N × N matrices. The form ``"auto"`` works on the smaller side: a
    segment keeps samples while those of all processes are at most w, and turns to moments when they become more. Where
    moments exceed 1 GiB in all it never turns to them, and `room` says how many samples fit: those of all processes may
    take 1 GiB.

    Args:
        widths: The width and the number of layers of each store.
        recipe: What to read, and how.
        form: ``"auto"``, or the form to take.
        halves: Whether to read the two halves of each batch by themselves too: as much work again, and memory.
        max_rows: How many rows are kept, of all processes together, fewer where they take more than 1 GiB; ``None``
            for all.

    Attributes:
        level: Which rows are kept where not all are: those whose level is as high, see `update`.
        moments_in_bytes: What second moments take, in all.
        is_empty: Whether no batch was added since the last reset.
        failures: Why quantities read NaN that could not be computed, by key, of the last `compute`.

    Raises:
        ValueError: If the form is not known, or fewer rows are to be kept than there are features.

    Example:
        >>> reader = PathReader([(2, 1)], Recipe(["cost_of_identity"], effective_depth=0.5, k_norm=KNorm(gamma=4.0)))
        >>> reader.update([torch.tensor([[1.0, 2.0]])], [torch.tensor([[1.0, 7.0]])], torch.ones(1))
        >>> reader.compute()["cost_of_identity"]
        tensor([0.5000], dtype=torch.float64)
    """

    def __init__(
        self,
        widths: Sequence[tuple[int, int]],
        recipe: Recipe,
        form: Form = "auto",
        halves: bool = False,
        max_rows: int | None = None,
    ) -> None:
        if not widths or min(map(min, widths)) < 1:
            raise ValueError(f"`widths` must hold widths and numbers of layers of at least 1, got {list(widths)}.")
        self.recipe = recipe
        self.moments_in_bytes = sum(recipe.state_bytes(length, width) for width, length in widths)
        is_too_much = self.moments_in_bytes > MEMORY_LIMIT or max_rows is not None
        self.form: Form = "samples" if check_form(form) == "auto" and is_too_much else form
        self.max_rows, self.level = most_rows(max_rows, widths, MEMORY_LIMIT), 0
        # Rows are thinned once in a while, where there is memory for it.
        self._overfull = (
            0
            if self.max_rows is None
            else max(self.max_rows, min(2 * self.max_rows, room_for_rows(widths, MEMORY_LIMIT)))
        )
        self.stores = [LayerStore(length, width, recipe, self.form) for width, length in widths]
        self.step_sizes = torch.zeros(0, dtype=torch.float64)
        self.is_empty = True
        self.failures: dict[str, Exception] = {}
        self._num_samples = torch.zeros(sum(length for _, length in widths), dtype=torch.int64)
        # Gradients are of the whole batch.
        alone = [record for record in recipe.records if not record.has_gradients] if halves else []
        self._odd = 0
        self._halves = [
            PathReader(widths, replace(recipe, quantities=alone), form, max_rows=max_rows) for _ in range(2) if alone
        ]

    def expect(self, step_sizes: Tensor, device: torch.device, dtype: torch.dtype) -> None:
        """Say what batches are like; a process that may have none is told.

        Args:
            step_sizes: ρ of the layers of all segments, shape (L,).
            device: Device of the representations.
            dtype: Their dtype.
        """
        num_layers = sum(store.num_layers for store in self.stores)
        self.step_sizes = check_segment_step_sizes(step_sizes, num_layers).cpu().clone()
        for store, part in self._parts():
            store.step_sizes = self.step_sizes[part]
            store.device = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
            store.dtype = torch.promote_types(dtype, torch.float32)
        for half in self._halves:
            half.expect(step_sizes, device, dtype)

    def room(self, dtype: torch.dtype) -> int | None:
        """How many rows another batch may have on this process, if all have as many; ``None`` for any number.

        The first batch may always have one. Momenta are sums over all positions: batches that have them are kept whole
        or not at all.

        Args:
            dtype: Dtype of the representations.
        """
        if self.form != "samples" or self.max_rows is not None:
            return None
        width = sum(store.width * store.num_layers * store.num_matrices for store in self.stores)
        kept = sum(store.samples_in_bytes for store in self.stores)  # all processes gather those of all
        left = MEMORY_LIMIT // num_processes() - kept
        rows = max(left // (torch.promote_types(dtype, torch.float32).itemsize * width), 1 if self.is_empty else 0)
        return None if self.recipe.has_gradients and rows > 0 else rows

    def update(
        self,
        previous: Sequence[Tensor] | Tensor,
        current: Sequence[Tensor] | Tensor,
        step_sizes: Tensor,
        momenta: Sequence[Tensor] | Tensor | None = None,
        is_last: bool = False,
        levels: Sequence[Tensor] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            previous: A_{l−1} of the layers of all segments, each of shape (N, w).
            current: A_l of them.
            step_sizes: Their ρ, shape (L,), the same for all batches between two resets.
            momenta: Their B_l, where a momentum quantity is read.
            is_last: Whether `compute` follows at once: then nothing can overwrite the tensors, and they are not copied.
            levels: Where not all rows are kept, how long each stays: whole numbers below `NUM_LEVELS`, shape (N,), on
                the CPU, of each layer.

        Raises:
            ValueError: If the tensors do not fit the layers, or the momenta are missing: then nothing is added. If a
                layer's sums fail (a quantity of your own, the memory): then all batches are forgotten.
        """
        groups = {"previous": previous, "current": current}
        if self.max_rows is not None and levels is None:
            raise ValueError("`levels` must be given where `max_rows` is, got None: rows are thinned by them.")
        if self.recipe.has_gradients:
            if momenta is None:
                wanted = [record.key for record in self.recipe.records if record.has_gradients]
                raise ValueError(f"`momenta` must be given to read {wanted}, got None.")
            groups["momenta"] = momenta
        check_layers([store.width for store in self.stores for _ in range(store.num_layers)], **groups)
        for _, part in self._parts():
            rows = [len(matrix) for matrix in previous[part]]
            is_exchanged = self.max_rows is None or num_processes() > 1
            if self.form == "samples" and len(set(rows)) > 1 and is_exchanged:
                hint = "" if self.max_rows is None else "; say exact=True"
                raise ValueError(f"`previous` must have one number of rows to be kept as samples, got {rows}{hint}.")
        self.expect(
            step_sizes, previous[0].device, functools.reduce(torch.promote_types, [matrix.dtype for matrix in previous])
        )
        try:
            for store, part in self._parts():
                of_store = None if levels is None else levels[part]
                store.update([group[part] for group in groups.values()], is_last, of_store, self.level)
        except Exception as error:
            self.reset()
            raise ValueError(
                f"{str(error) or repr(error)}; some layers have this batch and others do not, so all batches so far "
                "are forgotten."
            ) from error
        self.is_empty = False
        self._num_samples += torch.tensor(list(map(len, current)))
        if self.max_rows is not None:
            counts = self._counts().amax(0).tolist()
            if counts[self.level] > self._overfull:
                self._fit(counts, self.max_rows)
        for number, half in enumerate(self._halves):
            # The odd row goes to the first half, and the next odd one to the second.
            cut = functools.partial(_half, number=number, odd=self._odd)
            parts = None if levels is None else list(map(cut, levels))
            half.update(list(map(cut, previous)), list(map(cut, current)), step_sizes, None, is_last, parts)
        self._odd = (self._odd + len(current[0])) % 2

    def compute(
        self,
        names: Sequence[str] = (),
        weights: Weights = None,
        parameters: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> Readings:
        """Return the readings; under torch.distributed a collective that every process must join.

        Args:
            names: Names of the layers.
            weights: W_1, …, W_L, each of shape (w, d), the same on every process; without them there is no criticality
                residual. One layer at a time is asked for, as sharded weights need.
            parameters: `Sums.parameters` of the layers of all segments, shape (L, 3), likewise; without them there is
                no quantity that needs them.
            seen: Where not all rows are kept, how many samples there were of each level, shape (`NUM_LEVELS`,).
        """
        num_samples, samples_read = self._agreed(seen)
        self.failures = {}
        known = weights if self.recipe.needs_weights else None
        parts = [
            store.values(
                None if known is None else known[part],
                self.failures,
                None if parameters is None else parameters[part],
            )
            for store, part in self._parts()
        ]
        # One transfer from the device, of all of them.
        rows = torch.cat([torch.stack(list(part.values())) for part in parts], dim=1).to("cpu", torch.float64)
        lengths = tuple(store.num_layers for store in self.stores)
        return Readings(
            dict(zip(parts[0], rows, strict=True)),
            self.step_sizes,
            self.recipe.effective_depth,
            tuple(names),
            lengths if len(lengths) > 1 else (),
            tuple(record for record in self.recipe.records if QUANTITIES.get(record.key) is not record),
            num_samples,
            # With a sample a process one of the halves may be empty.
            tuple(half.compute().quantities for half in self._halves if min(num_samples) > num_processes()),
            tuple(store.width for store in self.stores for _ in range(store.num_layers)),
            samples_read,
        )

    def reset(self) -> None:
        """Forget every batch."""
        self.is_empty, self.level = True, 0
        self._num_samples.zero_()
        self._odd = 0
        for half in self._halves:
            half.reset()
        for store in self.stores:
            store.reset()

    def _parts(self) -> list[tuple[LayerStore, slice]]:
        """Each segment, and the place of its layers among all."""
        ends = list(itertools.accumulate(store.num_layers for store in self.stores))
        return [(store, slice(end - store.num_layers, end)) for store, end in zip(self.stores, ends, strict=True)]

    def _counts(self) -> Tensor:
        """Rows kept here of each layer from each level on; more than all may keep, at levels that are thinned out."""
        counts = torch.cat([store.counts for store in self.stores]).flip(1).cumsum(1).flip(1)
        counts[:, : self.level] = 0 if self.max_rows is None else self.max_rows + 1
        return counts

    def _fit(self, counts: Sequence[int], most: int) -> None:
        """Thin all layers to the lowest level at which the fullest keeps no more rows than it may."""
        level = next((level for level, count in enumerate(counts) if count <= most), NUM_LEVELS - 1)
        if level > self.level:
            for reader in (self, *self._halves):  # a half has no rows that the whole has not
                reader.level = level
                for store in reader.stores:
                    store.thin(level)

    def _agreed(self, seen: Tensor | None = None) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the number of rows of each layer, of all processes, and of samples read and seen; one collective.

        If a process has turned to sums, as one has where all samples together are too many, all do. Of rows that are
        thinned all processes keep the same.
        """
        flags, place = torch.tensor([int(store.is_summing) for store in self.stores]), self.stores[0].device
        parts = [flags, self._num_samples]
        if self.max_rows is not None:
            parts = [
                flags,
                self._counts().flatten(),
                torch.zeros(NUM_LEVELS, dtype=torch.int64) if seen is None else seen,
            ]
        total = summed(torch.cat(parts).to(meeting_place(place))).cpu()
        for store, is_summing in zip(self.stores, total[: len(flags)].tolist(), strict=True):
            if is_summing:
                store.turn_to_sums()
        if self.max_rows is None:
            return tuple(total[len(flags) :].tolist()), ()
        table = total[len(flags) :].reshape(-1, NUM_LEVELS)
        self._fit(table[:-1].amax(0).tolist(), self.max_rows)
        of_samples = int(table[-1, self.level :].sum()), int(table[-1].sum())
        return tuple(table[:-1, self.level].tolist()), of_samples if of_samples[1] else ()


def _half(rows: Tensor, number: int, odd: int) -> Tensor:
    return rows.tensor_split([(len(rows) + 1 - odd) // 2])[number]
