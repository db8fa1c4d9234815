"""Readings of a path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from lightning_leaky.metrics.quantity import Quantity
from lightning_leaky.metrics.records import QUANTITIES


@dataclass(frozen=True, eq=False)  # tensors have no truth value
class Readings:
    """Quantities of every layer of a path, on the CPU in float64.

    Attributes:
        quantities: Tensors of shape (L,) by name. Layer l is read at A_{l−1}, with V_l and B_l.
        step_sizes: ρ as they were when the representations were taken, shape (L,).
        effective_depth: L̃.
        names: Names of the layers; empty if unknown.
        segments: Number of layers of each segment; empty for a path in one piece. Layers that change the shape of their
            representation are not read and split the path. Step-sizes and positions run through all segments, summaries
            are per segment.
        own: Records of quantities that are not in `QUANTITIES`.
        num_samples: Number of samples of each layer, L numbers; empty if unknown.
        halves: Quantities of two halves of the samples by name, if read; their difference shows how far the reading
            depends on the samples.
        widths: Width of each layer, L numbers; empty if unknown.
        samples_read: Numbers of samples read and in the data set, if rows were left out.

    Example:
        >>> readings = Readings({"hamiltonian": torch.tensor([-3.0, -2.0])}, torch.tensor([0.25, 0.75]), 2.0)
        >>> readings.positions
        tensor([0.0000, 0.2500])
        >>> readings.summaries()["hamiltonian/bottleneck_rank"]
        tensor(2., dtype=torch.float64)
    """

    quantities: dict[str, Tensor]
    step_sizes: Tensor
    effective_depth: float
    names: tuple[str, ...] = ()
    segments: tuple[int, ...] = ()
    own: tuple[Quantity, ...] = ()
    num_samples: tuple[int, ...] = ()
    halves: tuple[Mapping[str, Tensor], ...] = ()
    widths: tuple[int, ...] = ()
    samples_read: tuple[int, ...] = ()

    @property
    def positions(self) -> Tensor:
        """Position p_{l−1} = ρ_1 + … + ρ_{l−1} of each layer l, shape (L,)."""
        return self.step_sizes.cumsum(0) - self.step_sizes

    def boundaries(self) -> list[Tensor]:
        """Positions p of A_0, …, A_L of each segment on the whole path, shape (L + 1,).

        Example:
            >>> Readings({}, torch.tensor([0.5, 0.25, 0.25]), 0.0, segments=(1, 2)).boundaries()
            [tensor([0.0000, 0.5000]), tensor([0.5000, 0.7500, 1.0000])]
        """
        ends = torch.cat([self.positions, self.step_sizes.sum()[None]])
        places = places_of(self.segments or (len(self.step_sizes),))
        return [ends[place.start : place.stop + 1] for place in places]

    def __getitem__(self, name: str) -> Tensor:
        return self.quantities[name]

    @property
    def is_part(self) -> bool:
        """Whether rows of the data set were left out."""
        return bool(self.samples_read)

    def rows_read(self) -> str:
        """Rows of the layer with the fewest, in words; empty if unknown.

        Example:
            >>> Readings({}, torch.ones(1), 0.0, num_samples=(2048,), samples_read=(64, 10000)).rows_read()
            '2048 rows of 64 of 10000 samples'
        """
        if not self.num_samples:
            return ""
        rows = min(self.num_samples)
        of_samples = " of ".join(map(str, self.samples_read))
        return f"{rows} rows of {of_samples} samples" if self.is_part else f"{rows} samples"

    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return all(bool(torch.isfinite(values).all()) for values in self.quantities.values())

    def summaries(self, prefix: str = "") -> dict[str, Tensor]:
        """Numbers for the whole path by log key, see `EnergyMonitor`; or per segment: ``speed/segment_2/path_length``.

        Args:
            prefix: Put before each key, as ``"val_"``.
        """
        parts = self.split()
        place = "/segment_{}/" if len(parts) > 1 else "/"
        return {
            f"{prefix}{key.replace('/', place.format(number))}": value
            for number, part in enumerate(parts, start=1)
            for key, value in part._summaries.items()
        }

    def layers(self, prefix: str = "") -> dict[str, Tensor]:
        """Values of each layer by log key: ``speed/layer_03``.

        Args:
            prefix: Put before each key, as ``"val_"``.
        """
        layers = [layer_key(index, len(self.step_sizes)) for index in range(len(self.step_sizes))]
        return {
            f"{prefix}{name}/{layer}": value
            for name, values in self.quantities.items()
            for layer, value in zip(layers, values, strict=True)
        }

    def split(self) -> list[Readings]:
        """Return the readings of each segment."""
        if not self.segments:
            return [self]
        parts = torch.split(self.step_sizes, list(self.segments))
        return [
            Readings(
                _at(place, self.quantities),
                rho,
                self.effective_depth,
                own=self.own,
                num_samples=self.num_samples[place],
                halves=tuple(_at(place, half) for half in self.halves),
                widths=self.widths[place],
                samples_read=self.samples_read,
            )
            for rho, place in zip(parts, places_of(self.segments), strict=True)
        ]

    @property
    def records(self) -> dict[str, Quantity]:
        """Known records of the quantities, by key."""
        known = {**QUANTITIES, **{record.key: record for record in self.own}}
        return {name: known[name] for name in self.quantities if name in known}

    @cached_property
    def _summaries(self) -> dict[str, Tensor]:
        return {
            f"{name}/{summary.end}": summary.compute(self.quantities[name], self.step_sizes, self.effective_depth)
            for name, record in self.records.items()
            for summary in record.summaries
            if self.effective_depth > 0 or not summary.needs_leak
        }

    def scalars(self, prefix: str = "") -> dict[str, Tensor]:
        """Numbers of `layers` and `summaries` by log key.

        Args:
            prefix: Put before each key, as ``"val_"``.
        """
        return self.layers(prefix) | self.summaries(prefix)

    def table(self, names: Sequence[str] | None = None) -> str:
        """Text table with one line per layer: number, name, step-size, position p_{l−1} and quantities.

        Args:
            names: Keys of the quantities to show, in order; all by default.
        """
        shown = list(self.quantities if names is None else names)
        rows = [["layer", *(["name"] if self.names else []), "step_size", "position", *shown]]
        rows += [
            [f"{index + 1}", *self.names[index : index + 1], f"{rho:.4f}", f"{position:.4f}"]
            + [f"{self[name][index]:.4g}" for name in shown]
            for index, (rho, position) in enumerate(zip(self.step_sizes, self.positions, strict=True))
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def places_of(lengths: Sequence[int]) -> list[slice]:
    """Where the layers of each segment are among all."""
    return [slice(end - length, end) for end, length in zip(accumulate(lengths), lengths, strict=True)]


def _at(place: slice, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: values[place] for name, values in columns.items()}


def layer_key(index: int, num_layers: int) -> str:
    """Log key of a layer, counted from 1 and padded so that keys sort: ``layer_03``."""
    return f"layer_{index + 1:0{max(2, len(str(num_layers)))}d}"
