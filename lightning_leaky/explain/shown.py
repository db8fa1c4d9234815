"""Which of the readings of a fit are shown, and whether step-sizes say something."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from lightning_leaky.metrics.readings import Readings

TRAINING = "a training batch"


def shown_readings(readings: Mapping[str, Readings]) -> tuple[Readings, str]:
    """Return the reading of a fit to show, and of what it is: of validation data where there is one, without dropout.

    It adds momenta, which only training has. It shows the first of several validation loaders.
    """
    shown, train = readings.get("validate"), readings.get("train")
    if shown is None:
        return readings["train"], TRAINING
    data = f"validation data, {shown.rows_read()}" if shown.is_part else "validation data"
    if train is None or len(train.step_sizes) != len(shown.step_sizes):  # layers have come or gone in between
        return shown, data
    momenta = {name: train[name] for name, record in train.records.items() if record.has_gradients}
    source = f"{data}{f', momenta of {TRAINING}' if momenta else ''}"
    return replace(shown, quantities=shown.quantities | momenta, own=train.own), source


def has_equal_steps(step_sizes: Tensor) -> bool:
    """Whether all step-sizes are 1/L, so that a column of them says nothing."""
    return bool(step_sizes.max() - step_sizes.min() < 1e-6 * step_sizes.max())
