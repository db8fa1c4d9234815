"""Which readings and step-sizes are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

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
