"""What leaving blocks out costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from lightning_leaky.functional.path_median import rank_correlation
from lightning_leaky.metrics.readings import Readings
from lightning_leaky.metrics.records import QUANTITIES
from lightning_leaky.plotting.style import COLOURS, new_figure
from lightning_leaky.reading.removal import Cost, Removal

SCORES = ("block_influence", "relative_distance", "relative_speed", "first_order")
"""Quantities that predict the cost of removal."""

_MEASURED, _RANDOM = "measured", "at random"


@dataclass(frozen=True, eq=False)
class BlockRemoval:
    """What leaving blocks out costs, one by one and together.

    Attributes:
        names: Names of the blocks.
        baseline: Cost of the whole network.
        increases: What leaving out each block alone adds, shape (L,).
        correlations: Rank correlation of each score with `increases`, by title.
        curves: Cost without the first k blocks of an order, k = 0, …, K, by its source.
    """

    names: tuple[str, ...]
    baseline: float
    increases: Tensor
    correlations: Mapping[str, float]
    curves: Mapping[str, Sequence[float]]

    def content(self, readings: Readings) -> dict[str, Any]:
        """Return the report's numbers."""
        return {
            "baseline": self.baseline,
            "increase": self.increases.tolist(),
            "scores": {title: values.tolist() for title, values in _scores(readings).items()},
            "correlations": self.correlations,
            "curves": self.curves,
        }

    @property
    def sentence(self) -> str:
        """Say what can go, and which score predicts it."""
        least = int(self.increases.argmin())
        told = ", ".join(f"{title} {value:.2f}" for title, value in self.correlations.items())
        return (
            f"Removal: leaving out {self.names[least]} adds {float(self.increases[least]):.3g} to a cost of "
            f"{self.baseline:.4g}, the least of all. Rank correlation with what removal costs: {told}."
        )


def measure_removal(
    model: nn.Module, batches: Sequence[Any], cost: Cost, readings: Readings, layers: Any = None, **settings: Any
) -> BlockRemoval:
    """Leave blocks out one by one, and together in the order of each score, of single costs, and of chance."""
    scores = _scores(readings)
    with Removal(model, batches, cost, layers, settings) as removal:
        alone = removal.sign * torch.tensor([removal.cost_without([index]) for index in range(len(removal.names))])
        count = len(removal.names) // 2
        known = {**scores, _MEASURED: alone}
        curves = {title: removal.curve(values.argsort(stable=True)[:count].tolist()) for title, values in known.items()}
        generator = Generator().manual_seed(0)
        draws = [torch.randperm(len(removal.names), generator=generator)[:count].tolist() for _ in range(3)]
        curves[_RANDOM] = torch.tensor([removal.curve(order) for order in draws], dtype=torch.float64).mean(0).tolist()
        baseline = removal.cost_without([])
    increases = alone.double() - removal.sign * baseline
    correlations = {title: rank_correlation(values, increases) for title, values in scores.items()}
    return BlockRemoval(removal.names, baseline, increases, correlations, curves)


def _scores(readings: Readings) -> dict[str, Tensor]:
    return {QUANTITIES[key].title: readings[key] for key in SCORES if key in readings.quantities}


def plot_removal(removal: BlockRemoval) -> Any:
    """Draw cost against removed blocks, a line per order."""
    axes = new_figure().add_subplot()
    for colour, (title, curve) in zip(COLOURS * len(removal.curves), removal.curves.items(), strict=False):
        style = {_MEASURED: "-", _RANDOM: ":"}.get(title, "--")
        axes.plot(range(len(curve)), curve, style, marker="o", markersize=3, color=colour, label=title)
    axes.set(xlabel="blocks removed", ylabel="cost", xticks=range(1 + max(map(len, removal.curves.values()))))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return axes.figure
