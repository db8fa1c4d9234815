"""A compact table of the layers for a terminal."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from lightning_leaky.explain.diagnosis import diagnose, paragraphs
from lightning_leaky.explain.shown import has_equal_steps
from lightning_leaky.metrics.readings import Readings
from lightning_leaky.metrics.records import records_at

if TYPE_CHECKING:
    from rich.console import Console


def check_rich() -> None:
    """Raise ModuleNotFoundError if rich is missing."""
    if find_spec("rich") is None:
        raise ModuleNotFoundError("The table of layers needs rich: pip install 'lightning-leaky[rich]'.")


def work_of_layers(readings: Readings) -> tuple[list[float], list[bool]]:
    """Each layer's share of its segment's work, and whether it moves little."""
    parts, count = diagnose(readings), len(readings.step_sizes)
    shares = [share for part in parts for share in part.work.tolist()] or [float("nan")] * count
    return shares, [any(number in part.moves_little for part in parts) for number in range(1, count + 1)]


def print_layers(readings: Readings, console: Console | None = None, source: str = "") -> None:
    """Print a line per layer, with step-sizes if they differ, and what the readings mean.

    Args:
        readings: From `measure_path` or an `EnergyMonitor`.
        console: Where to print; the terminal by default.
        source: What was read, as ``"validation data"``, to print too.

    Raises:
        ModuleNotFoundError: If rich is missing.

    Example:
        >>> import torch
        >>> print_layers(Readings({"kinetic_energy": torch.tensor([3.0, 1.0])}, torch.tensor([0.4, 0.6]), 2.0))
        layer    ρ  work               kinetic
            1  0.4  ████████      67%        3
            2  0.6  ████          33%        1
        Bottleneck: not known, for the cost of identity was not read.
        Rank: no estimate; it takes a Hamiltonian and the cost of identity.
        Layers: 80% of the work is done in layers 1–2.
        Trust: the energies are exact; whether training is at an optimum was not read.
    """
    check_rich()
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False) if console is None else console
    records = records_at(readings.records.values(), readings.effective_depth)
    headings = {name: record.heading for name, record in records.items() if record.heading}
    steps = [] if has_equal_steps(readings.step_sizes) else readings.step_sizes.tolist()
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for heading in ["layer", "ρ"] if steps else ["layer"]:
        table.add_column(heading, justify="right")
    table.add_column("work", no_wrap=True)
    for heading in headings.values():
        table.add_column(heading, justify="right")
    if readings.names:
        table.add_column("name", overflow="ellipsis", no_wrap=True)
    for layer, (work, little) in enumerate(zip(*work_of_layers(readings), strict=True)):
        bar = "" if work != work else f"{'█' * round(12 * work):12} {work:4.0%}"
        values = [f"{readings[name][layer]:.3g}" for name in headings]
        step = [f"{rho:.3g}" for rho in steps[layer : layer + 1]]
        cells = [f"{layer + 1}", *step, bar, *values, *readings.names[layer : layer + 1]]
        table.add_row(*cells, style="dim" if little else None)
    console.print(table)
    console.print(*paragraphs(readings, source), sep="\n", soft_wrap=True)
