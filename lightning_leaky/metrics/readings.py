"""What was read of a path: every quantity of every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_leaky.metrics.quantity import Quantity
from lightning_leaky.metrics.records import QUANTITIES


@dataclass(frozen=True, eq=False)  # tensors have no truth value to compare by
class Readings:
    """Quantities of every layer of a path, on the CPU in float64.

    Attributes:
        quantities: Tensors of shape (L,) by name. Layer l is read at A_{l−1}, with V_l and B_l.
        step_sizes: ρ as they were when the representations were taken, shape (L,).
        effective_depth: L̃.
        names: Names of the layers in their model, where they are known.
        segments: Numbers of layers of the segments. Layers that change the shape of their representation, as the first
            block of a stage of a convolutional network does, are not read and split the path: step-sizes and positions
            run through all segments, summaries are per segment. Empty for a path in one piece.
        own: Records of the quantities that are not of this package.
        num_samples: How many samples each layer was read from, L numbers, or none where that is not known.
        halves: Quantities of two halves of the samples by name, where they were read: how far they disagree is how far
            the reading can be trusted as one of other samples.
        widths: Width of each layer, L numbers, or none where that is not known.
        samples_read: How many samples of the data set rows come from, and how many it has; empty where all were read.

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
        """Position p_{l−1} = ρ_1 + … + ρ_{l−1} where layer l is read, shape (L,)."""
        return self.step_sizes.cumsum(0) - self.step_sizes

    def boundaries(self) -> list[Tensor]:
        """Positions p of A_0, …, A_L along the whole path, shape (L + 1,), of each segment.

        Example:
            >>> Readings({}, torch.tensor([0.5, 0.25, 0.25]), 0.0, segments=(1, 2)).boundaries()
            [tensor([0.0000, 0.5000]), tensor([0.5000, 0.7500, 1.0000])]
        """
        ends = torch.cat([self.positions, self.step_sizes.sum()[None]])
        lengths = list(self.segments) or [len(self.step_sizes)]
        starts = [sum(lengths[:number]) for number in range(len(lengths))]
        return [ends[start : start + length + 1] for start, length in zip(starts, lengths, strict=True)]

    def __getitem__(self, name: str) -> Tensor:
        """Return one quantity, shape (L,)."""
        return self.quantities[name]

    @property
    def is_part(self) -> bool:
        """Whether some samples of the data set were left out."""
        return bool(self.samples_read) and self.samples_read[0] < self.samples_read[1]

    def rows_read(self) -> str:
        """How many rows the layer with the fewest was read from, in words; empty where that is not known.

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
        """Whether no quantity of any layer is NaN or infinite."""
        return all(bool(torch.isfinite(values).all()) for values in self.quantities.values())

    def summaries(self, prefix: str = "") -> dict[str, Tensor]:
        """One number for the whole path, by log key; `EnergyMonitor` explains each.

        In a path of several segments one for each of them: ``cost_of_identity/segment_2/min``.

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
        """Every quantity of every layer by log key: ``cost_of_identity/layer_03``.

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
        lengths = list(self.segments)
        if not lengths:
            return [self]
        parts = [_split(columns, lengths) for columns in (self.quantities, *self.halves)]
        ends = [sum(lengths[: number + 1]) for number in range(len(lengths))]
        return [
            Readings(
                parts[0][index],
                rho,
                self.effective_depth,
                own=self.own,
                num_samples=self.num_samples[end - len(rho) : end],
                halves=tuple(half[index] for half in parts[1:]),
                widths=self.widths[end - len(rho) : end],
                samples_read=self.samples_read,
            )
            for index, (rho, end) in enumerate(zip(torch.split(self.step_sizes, lengths), ends, strict=True))
        ]

    @property
    def records(self) -> dict[str, Quantity]:
        """Records of the quantities by key, those that are known."""
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
        """Every number by log key, those of `layers` and of `summaries`.

        Args:
            prefix: Put before each key, as ``"val_"``.
        """
        return self.layers(prefix) | self.summaries(prefix)

    def table(self, names: Sequence[str] | None = None) -> str:
        """Text table with one line per layer: its number, name, step-size, position p_{l−1} and quantities.

        Args:
            names: Which quantities, in which order; all by default.
        """
        shown = list(self.quantities if names is None else names)
        named = bool(self.names)
        header = ["layer", *(["name"] if named else []), "step_size", "position", *shown]
        rows = [
            [f"{index + 1}", *self.names[index : index + 1], f"{rho:.4f}", f"{position:.4f}"]
            + [f"{self[name][index]:.4g}" for name in shown]
            for index, (rho, position) in enumerate(zip(self.step_sizes, self.positions, strict=True))
        ]
        widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]
        ]
        return "\n".join(lines)


def _split(columns: Mapping[str, Tensor], lengths: list[int]) -> list[dict[str, Tensor]]:
    """Columns of each segment."""
    parts = {name: torch.split(values, lengths) for name, values in columns.items()}
    return [{name: part[index] for name, part in parts.items()} for index in range(len(lengths))]


def layer_key(index: int, num_layers: int) -> str:
    """Log key of a layer, counted from 1 and padded so that keys sort: ``layer_03``.

    Example:
        >>> layer_key(2, num_layers=20)
        'layer_03'
    """
    return f"layer_{index + 1:0{max(2, len(str(num_layers)))}d}"
