"""Which readings and step-sizes are shown, and layers in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from torch import Tensor

from lightning_leaky.metrics.readings import Readings

TRAINING = "a training batch"


def shown_readings(readings: Mapping[str, Readings]) -> tuple[Readings, str]:
    """The reading to show, of validation data (without dropout) with momenta of training if any, and its source."""
    shown, train = readings.get("validate"), readings.get("train")
    if shown is None:
        return readings["train"], TRAINING
    data = f"validation data, {shown.rows_read()}" if shown.is_part else "validation data"
    if train is None or len(train.step_sizes) != len(shown.step_sizes):  # layers have changed
        return shown, data
    momenta = {name: train[name] for name, record in train.records.items() if record.has_gradients}
    source = f"{data}{f', momenta of {TRAINING}' if momenta else ''}"
    return replace(shown, quantities=shown.quantities | momenta, own=train.own), source


def has_equal_steps(step_sizes: Tensor) -> bool:
    """Whether all step-sizes are 1/L."""
    return bool(step_sizes.max() - step_sizes.min() < 1e-6 * step_sizes.max())


def ranges(numbers: Sequence[int]) -> str:
    """Sorted layers as ``layers 1–3, 7, 9–10``."""
    places = groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])  # constant along a run
    runs = [[number for _, number in run] for _, run in places]
    written = ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return f"layer{'s' if len(numbers) > 1 else ''} {written}"


def who(layers: Sequence[int], verb: str) -> str:
    """Layers and a verb: ``layer 3 moves``."""
    return f"{ranges(layers)} {verb}{'s' if len(layers) == 1 else ''}"
