"""Any choice of quantities of a path, accumulated over batches and processes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightning_leaky.functional.step_sizes import check_segment_step_sizes
from lightning_leaky.metrics.layer_batch import check_layers, most_rows, room_for_rows
from lightning_leaky.metrics.layer_store import NUM_LEVELS, Form, LayerStore, check_form
from lightning_leaky.metrics.readings import Readings, places_of
from lightning_leaky.metrics.recipe import Recipe, Weights
from lightning_leaky.metrics.records import QUANTITIES
from lightning_leaky.utilities.data_parallel import Standing
from lightning_leaky.utilities.processes import meeting_place, num_processes, summed

# Bytes for all layers. It is fixed, so that all processes agree.
MEMORY_LIMIT = 2**30


class PathReader:
    """Accumulates quantities of a path in segments of one width each: the core of `EnergyMonitor`, without a trainer.

    Second moments are exact over any data set. They take ``8 L (d² + 2dw)`` bytes for the energies, ``8 L w²`` for the
    spectrum and ``8 L dw`` for the momenta (d = w + 1). Samples take ``2 N L w`` float32 (``3 N L w`` with momenta;
    float64 if the representations are) and N × N matrices. With ``"auto"`` a segment keeps samples while those of all
    processes are at most w, then turns to moments. If moments exceed 1 GiB, it keeps at most 1 GiB of samples over all
    processes; `room` says how many fit.

    Args:
        widths: Width and number of layers of each segment.
        recipe: What to read, and how.
        form: ``"auto"``, ``"moments"`` or ``"samples"``.
        halves: Whether to read both halves of each batch too, which doubles work and memory.
        max_rows: How many rows all processes keep together, at most 1 GiB; ``None`` for all.

    Attributes:
        level: Lowest level of the rows kept, see `update`.
        moments_in_bytes: Bytes of all second moments.
        is_empty: Whether no batch was added since the last reset.
        failures: Errors of quantities that read NaN in the last `compute`, by key.

    Raises:
        ValueError: If the form is not known, or `max_rows` is at most the width.

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
        # Thinning waits for twice as many rows, if they fit.
        self._overfull = min(2 * (self.max_rows or 0), room_for_rows(widths, MEMORY_LIMIT))
        self.stores = [LayerStore(length, width, recipe, self.form) for width, length in widths]
        self.step_sizes = torch.zeros(0, dtype=torch.float64)
        self.is_empty = True
        self.failures: dict[str, Exception] = {}
        self._widths = tuple(width for width, length in widths for _ in range(length))
        self._num_samples = torch.zeros(len(self._widths), dtype=torch.int64)
        # Gradients belong to the whole batch.
        alone = [record for record in recipe.records if not record.has_gradients] if halves else []
        self._odd = 0
        self._halves = [
            PathReader(widths, replace(recipe, quantities=alone), form, max_rows=max_rows) for _ in range(2) if alone
        ]

    def expect(self, step_sizes: Tensor, device: torch.device, dtype: torch.dtype) -> None:
        """Set what batches have in common; only a process that may get none needs this call.

        Args:
            step_sizes: ρ of all layers, shape (L,).
            device: Device of the representations.
            dtype: Dtype of the representations.
        """
        self.step_sizes = check_segment_step_sizes(step_sizes, len(self._widths)).cpu().clone()
        for store, part in self._parts():
            store.step_sizes = self.step_sizes[part]
            store.device = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
            store.dtype = torch.promote_types(dtype, torch.float32)
        for half in self._halves:
            half.expect(step_sizes, device, dtype)

    def room(self, dtype: torch.dtype) -> int | None:
        """How many rows the next batch may have on each process; ``None`` for any number.

        The first batch may always have one. A batch with momenta is kept whole or not at all.

        Args:
            dtype: Dtype of the representations.
        """
        if self.form != "samples" or self.max_rows is not None:
            return None
        width = sum(store.width * store.num_layers * store.num_matrices for store in self.stores)
        kept = sum(store.samples_in_bytes for store in self.stores)  # each process gathers all
        left = MEMORY_LIMIT // num_processes() - kept
        rows = max(left // (torch.promote_types(dtype, torch.float32).itemsize * width), int(self.is_empty))
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
            previous: A_{l−1} of all layers, each of shape (N, w).
            current: A_l, likewise.
            step_sizes: ρ, shape (L,), the same for all batches until `reset`.
            momenta: B_l, likewise, if a quantity needs gradients.
            is_last: Whether `compute` follows at once, so that tensors need no copy.
            levels: With `max_rows`, how long each row stays: per layer whole numbers below `NUM_LEVELS`, shape (N,), on
                the CPU.

        Raises:
            ValueError: If the tensors do not fit the layers or momenta are missing (nothing is added), or if a
                quantity's sums fail (all batches are forgotten).
        """
        groups = {"previous": previous, "current": current}
        if self.max_rows is not None and levels is None:
            raise ValueError("`levels` must be given where `max_rows` is, got None: rows are thinned by them.")
        if self.recipe.has_gradients:
            if momenta is None:
                wanted = [record.key for record in self.recipe.records if record.has_gradients]
                raise ValueError(f"`momenta` must be given to read {wanted}, got None.")
            groups["momenta"] = momenta
        check_layers(self._widths, **groups)
        for _, part in self._parts():
            rows = list(map(len, previous[part]))
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
            # The halves get odd rows in turn.
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
        """Return the readings; a collective that every process must join.

        Args:
            names: Names of the layers.
            weights: W_1, …, W_L, each of shape (w, d), the same on every process, read one at a time because they may
                be sharded. Without them no quantity that needs them is read.
            parameters: `Sums.parameters` of all layers, shape (L, 3), likewise.
            seen: With `max_rows`, how many samples of each level there were, and had rows, shape (2, `NUM_LEVELS`).
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
        # One transfer from the device.
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
            # Halves may be empty with one sample per process.
            tuple(half.compute().quantities for half in self._halves if min(num_samples) > num_processes()),
            self._widths,
            samples_read,
        )

    @property
    def num_rows(self) -> int:
        """Rows added on this process, the most of any layer."""
        return int(self._num_samples.max())

    def take_share(self, standing: Standing) -> None:
        """Leave out rows that another process has, and scale momenta to the mean over rows of all pieces."""
        if standing.is_copy:
            self.reset()
        elif self.recipe.has_gradients and self.recipe.loss_reduction == "mean" and self.num_rows:
            for store in self.stores:
                store.scale_momenta(standing.rows / self.num_rows)

    def reset(self) -> None:
        """Forget every batch."""
        self.is_empty, self.level, self._odd = True, 0, 0
        self._num_samples.zero_()
        for half in self._halves:
            half.reset()
        for store in self.stores:
            store.reset()

    def _parts(self) -> list[tuple[LayerStore, slice]]:
        return list(zip(self.stores, places_of([store.num_layers for store in self.stores]), strict=True))

    def _counts(self) -> Tensor:
        """Rows of each layer from each level on; more than `max_rows` below `level`."""
        counts = torch.cat([store.counts for store in self.stores]).flip(1).cumsum(1).flip(1)
        counts[:, : self.level] = 0 if self.max_rows is None else self.max_rows + 1
        return counts

    def _fit(self, counts: Sequence[int], most: int) -> None:
        """Thin to the lowest level that has at most so many rows."""
        level = next((level for level, count in enumerate(counts) if count <= most), NUM_LEVELS - 1)
        if level > self.level:
            for reader in (self, *self._halves):  # halves share the rows
                reader.level = level
                for store in reader.stores:
                    store.thin(level)

    def _agreed(self, seen: Tensor | None = None) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Rows of each layer over all processes, and samples read and seen; one collective.

        If one process has turned to sums, all do. All thin to one level.
        """
        flags, parts = torch.tensor([int(store.is_summing) for store in self.stores]), [self._num_samples]
        if self.max_rows is not None:
            seen = torch.zeros(2, NUM_LEVELS, dtype=torch.int64) if seen is None else seen
            parts = [self._counts().flatten(), seen.flatten()]
        total = summed(torch.cat([flags, *parts]).to(meeting_place(self.stores[0].device))).cpu()
        for store, is_summing in zip(self.stores, total[: len(flags)].tolist(), strict=True):
            if is_summing:
                store.turn_to_sums()
        if self.max_rows is None:
            return tuple(total[len(flags) :].tolist()), ()
        table = total[len(flags) :].reshape(-1, NUM_LEVELS)
        self._fit(table[:-2].amax(0).tolist(), self.max_rows)
        of_samples = int(table[-1, self.level :].sum()), int(table[-2].sum())
        return tuple(table[:-2, self.level].tolist()), of_samples if self.level and of_samples[1] else ()


def _half(rows: Tensor, number: int, odd: int) -> Tensor:
    return rows.tensor_split([(len(rows) + 1 - odd) // 2])[number]
