"""What a model costs, and what a smaller one saves."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn

from lightning_leaky.paths.layers import device_of
from lightning_leaky.reading.measure import evaluating, inputs_and_targets, run_model


class Expense(NamedTuple):
    """What a model costs."""

    parameters: int
    """How many numbers it has learned, or could; shared ones count once."""
    memory: float
    """MiB of its parameters and buffers."""
    seconds: float
    """Median time of a forward pass in evaluation mode."""


def expense_of(model: nn.Module, batch: Any, repeats: int = 10) -> Expense:
    """Measure what a model costs; it is left as it was.

    Args:
        model: Any network.
        batch: A pair (inputs, targets), or bare inputs, on the device of the model.
        repeats: How many forward passes to time, after one that is not.

    Raises:
        ValueError: If no pass is to be timed.

    Example:
        >>> expense = expense_of(nn.Linear(256, 1024, bias=False), torch.zeros(1, 256))
        >>> expense.parameters, expense.memory
        (262144, 1.0)
    """
    if repeats < 1:
        raise ValueError(f"`repeats` must be at least 1, got {repeats!r}.")
    inputs, _ = inputs_and_targets(batch)
    device, times = device_of(model), list[float]()
    with torch.no_grad(), evaluating(model):
        for _ in range(repeats + 1):
            start = time.perf_counter()
            run_model(model, inputs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
    parameters = list(model.parameters())
    size = sum(one.numel() * one.element_size() for one in [*parameters, *model.buffers()])
    return Expense(sum(one.numel() for one in parameters), size / 2**20, median(times[1:]))


def bought(
    before: Expense, after: Expense, metrics: Mapping[str, float] | None = None, new: Mapping[str, float] | None = None
) -> list[str]:
    r"""Say what a smaller model saves, a line each.

    Args:
        before: Expense of the model as it was.
        after: Expense of the smaller one.
        metrics: Metrics of the model as it was, by name.
        new: Those of the smaller one.

    Example:
        >>> lines = bought(Expense(2000, 8.0, 0.01), Expense(1500, 6.0, 0.008), {"val/cost": 0.5}, {"val/cost": 0.52})
        >>> print(*lines, sep="\n")
        parameters  2,000 → 1,500 (−25%)
        memory      8.00 MiB → 6.00 MiB (−25%)
        forward     10.00 ms → 8.00 ms (−20%)
        val/cost    0.5 → 0.52 (+4%)
    """
    rows = [
        ("parameters", before.parameters, after.parameters, "{:,}"),
        ("memory", before.memory, after.memory, "{:.2f} MiB"),
        ("forward", 1e3 * before.seconds, 1e3 * after.seconds, "{:.2f} ms"),
        *((name, old, (new or {})[name], "{:.4g}") for name, old in (metrics or {}).items() if name in (new or {})),
    ]
    width = max(len(name) for name, *_ in rows)
    return [
        f"{name.ljust(width)}  {form.format(old)} → {form.format(now)}{_change(old, now)}"
        for name, old, now, form in rows
    ]


def _change(old: float, new: float) -> str:
    return f" ({(new - old) / old:+.0%})".replace("-", "−") if old > 0 else ""
