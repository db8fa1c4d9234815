"""The segments of a path, each of one width: a reader for each, and their readings joined."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from lightning_leaky.functional.k_norm import KNorm
from lightning_leaky.metrics.momenta import LossReduction
from lightning_leaky.metrics.path_reader import MOMENTA, PathReader, Readings, moments_in_bytes
from lightning_leaky.utilities.processes import num_processes

Form: TypeAlias = Literal["auto", "moments", "samples"]
"""How readings are accumulated, as second moments, as the samples themselves, or as whichever fits."""

# Of all layers together. Above it a monitor would no longer be a guest; a fixed number, so that all processes agree.
MEMORY_LIMIT = 2**30


def check_form(form: Form) -> Form:
    """Return a form, or raise ValueError where it is none."""
    if form not in ("auto", "moments", "samples"):
        raise ValueError(f'`form` must be "auto", "moments" or "samples", got {form!r}.')
    return form


class SegmentReaders(nn.Module):
    """Accumulates quantities over the segments of a path.

    Second moments, of ``8 L (d² + 2dw)`` bytes for the energies, ``8 L w²`` for the stable rank and ``8 L dw`` for the
    momenta (d = w + 1), are exact over any data set. The samples themselves take ``2 N L w`` float32 (``3 N L w`` with
    momenta) and N × N matrices. The form ``"auto"`` works on the smaller side, see `PathReader`. Where moments exceed
    1 GiB in all it never turns to them, and `room` says how many samples fit: those of all processes may take 1 GiB.

    Args:
        widths: The width of each layer, by segment.
        effective_depth: L̃ ≥ 0.
        quantities: Names from `lightning_leaky.metrics.path_reader.QUANTITIES`.
        k_norm: Which K-norm.
        loss_reduction: ``"mean"`` or ``"sum"``.
        form: ``"auto"``, or the form to take.

    Example:
        >>> readers = SegmentReaders([(8, 2), (16, 1)], effective_depth=0.0, quantities=["cost_of_identity"])
        >>> readers.form
        'auto'
    """

    def __init__(
        self,
        widths: Sequence[tuple[int, int]],
        effective_depth: float,
        quantities: Collection[str],
        k_norm: KNorm | None = None,
        loss_reduction: LossReduction = "mean",
        form: Form = "auto",
    ) -> None:
        super().__init__()
        constant_column = k_norm is None or k_norm.constant_column
        needed = sum(moments_in_bytes(length, width, quantities, constant_column) for width, length in widths)
        self.moments_in_bytes = needed
        self.form: Form = "samples" if form == "auto" and needed > MEMORY_LIMIT else form
        self.lengths = [length for _, length in widths]
        self.total_width = sum(width * length for width, length in widths)
        self.has_momenta = bool(set(MOMENTA) & set(quantities))
        self.readers = nn.ModuleList(
            PathReader(length, width, effective_depth, quantities, k_norm, loss_reduction, self.form)
            for width, length in widths
        )
        self.is_empty = True

    def room(self, dtype: torch.dtype) -> int | None:
        """How many rows another batch may have on this process, if all have as many; ``None`` for any number.

        The first batch may always have one. Momenta are sums over all positions: batches that have them are kept whole
        or not at all.

        Args:
            dtype: Of the representations.
        """
        if self.form != "samples":
            return None
        matrices = 3 if self.has_momenta else 2
        row = matrices * torch.promote_types(dtype, torch.float32).itemsize * self.total_width
        left = (MEMORY_LIMIT // num_processes() - self._samples_in_bytes()) // row
        rows = max(left, 1 if self.is_empty else 0)
        return None if self.has_momenta and rows > 0 else rows

    def update(
        self,
        previous: Sequence[Tensor],
        current: Sequence[Tensor],
        step_sizes: Tensor,
        momenta: Sequence[Tensor] | None = None,
        weights: Sequence[Tensor] | Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            previous: A_{l−1} of the layers of all segments, each of shape (N, w).
            current: A_l of them.
            step_sizes: Their ρ, shape (L,).
            momenta: Their B_l, where a momentum quantity is read.
            weights: Their W_l, as in `PathMomenta`.
        """
        start = 0
        for reader, length in zip(self._each(), self.lengths, strict=True):
            part = slice(start, start + length)
            reader.update(
                previous[part],
                current[part],
                step_sizes[part],
                None if momenta is None else momenta[part],
                None if weights is None else weights[part],
            )
            start += length
        self.is_empty = False

    def update_with_nothing(self, step_sizes: Tensor, weights: Sequence[Tensor] | Tensor | None, like: Tensor) -> None:
        """Add an empty batch: of a process that has none to join the others in `compute`, or to hand over weights."""
        nothing = [like.new_zeros(0, reader.width) for reader in self._each() for _ in range(len(reader.step_sizes))]
        self.update(nothing, nothing, step_sizes, nothing if self.has_momenta else None, weights)

    def compute(self, names: Sequence[str] = ()) -> Readings:
        """Return the readings of all segments; under torch.distributed a collective that every process must join."""
        parts = [reader.compute() for reader in self._each()]
        return Readings(
            {name: torch.cat([part[name] for part in parts]) for name in parts[0].quantities},
            torch.cat([part.step_sizes for part in parts]),
            parts[0].effective_depth,
            tuple(names),
            tuple(self.lengths) if len(parts) > 1 else (),
        )

    def reset(self) -> None:
        """Forget every batch."""
        self.is_empty = True
        for reader in self._each():
            reader.reset()

    def _samples_in_bytes(self) -> int:
        """Bytes of the samples of this process; every process gathers those of all."""
        return sum(reader.samples_in_bytes() for reader in self._each())

    def _each(self) -> list[PathReader]:
        return [reader for reader in self.readers if isinstance(reader, PathReader)]
