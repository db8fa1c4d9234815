"""A compact table of the layers for a terminal."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from lightning_leaky.explain.diagnosis import diagnose, paragraphs
from lightning_leaky.metrics.path_reader import Readings

if TYPE_CHECKING:
    from rich.console import Console

# Headings shorter than the titles of the cards: eighty columns are few.
_SHOWN = {
    "cost_of_identity": "identity",
    "kinetic_energy": "kinetic",
    "hamiltonian": "H",
    "criticality_residual": "residual",
}
_BAR = 12


def check_rich() -> None:
    """Raise ModuleNotFoundError that names the extra where rich is missing."""
    if find_spec("rich") is None:
        raise ModuleNotFoundError("The table of layers needs rich: pip install 'lightning-leaky[rich]'.")


def print_layers(readings: Readings, console: Console | None = None) -> None:
    """Print a table with one line a layer, and below it what the readings mean.

    Args:
        readings: As of `measure_path` or of an `EnergyMonitor`.
        console: Where to; the terminal by default.

    Raises:
        ModuleNotFoundError: If rich is missing.

    Example:
        >>> import torch
        >>> print_layers(Readings({"kinetic_energy": torch.tensor([3.0, 1.0])}, torch.tensor([0.5, 0.5]), 2.0))
        layer    ρ  work               kinetic
            1  0.5  █████████     75%        3
            2  0.5  ███           25%        1
        Bottleneck: not known, for the cost of identity was not read.
        Rank: no estimate; it takes a leak (L̃ > 0), a Hamiltonian and the cost of identity.
        Layers: 80% of the work is done in layers 1–2; none is idle.
        Trust: the energies are exact; whether training is at an optimum was not read, so H says little.
    """
    check_rich()
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False) if console is None else console
    names = [name for name in _SHOWN if name in readings.quantities]
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for heading in ("layer", "ρ"):
        table.add_column(heading, justify="right")
    table.add_column("work", justify="left", no_wrap=True)
    for name in names:
        table.add_column(_SHOWN[name], justify="right")
    if readings.names:
        table.add_column("name", overflow="ellipsis", no_wrap=True)
    for row, is_idle in _rows(readings, names):
        table.add_row(*row, style="dim" if is_idle else None)
    console.print(table)
    console.print(*paragraphs(readings), sep="\n", soft_wrap=True)


def _rows(readings: Readings, names: list[str]) -> list[tuple[list[str], bool]]:
    """Cells of each layer, and whether it is idle."""
    rows: list[tuple[list[str], bool]] = []
    for part, diagnosis in zip(readings.split(), diagnose(readings), strict=True):
        for index, rho in enumerate(part.step_sizes.tolist()):
            work = float(diagnosis.work[index]) if len(diagnosis.work) else None
            cells = [f"{len(rows) + 1}", f"{rho:.3g}", _bar(work)]
            is_idle = len(rows) + 1 in diagnosis.idle
            name = readings.names[len(rows) : len(rows) + 1]
            rows.append(([*cells, *(f"{part[key][index]:.3g}" for key in names), *name], is_idle))
    return rows


def _bar(share: float | None) -> str:
    if share is None or share != share:
        return ""
    return f"{'█' * round(_BAR * share):{_BAR}} {share:4.0%}"
