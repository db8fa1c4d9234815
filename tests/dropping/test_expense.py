"""What a smaller model saves."""

import pytest
import torch
from torch import nn

from lightning_leaky.dropping import Expense, bought, drop_layers, expense_of
from tests.blocks import Block


class Slow(nn.Module):
    """Counts its passes, and sees its mode."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.same = self.weight
        self.register_buffer("mean", torch.zeros(2))
        self.modes = []

    def forward(self, inputs):
        self.modes.append((self.training, torch.is_grad_enabled()))
        return inputs


def test_sizes_are_exact_and_passes_counted():
    model = Slow()
    expense = expense_of(model, (torch.zeros(1), torch.zeros(1)), repeats=3)
    assert expense.parameters == 3
    assert expense.memory == (3 * 8 + 2 * 4) / 2**20
    assert expense.seconds > 0
    assert model.modes == [(False, False)] * 4
    assert model.training


def test_the_time_is_the_median_of_those_after_the_first(monkeypatch):
    moments = iter([0, 100, 100, 101, 101, 103, 103, 112])  # 100, 1, 2 and 9
    monkeypatch.setattr("lightning_leaky.dropping.drop.time.perf_counter", lambda: next(moments))
    assert expense_of(Slow(), torch.zeros(1), repeats=3).seconds == 2


def test_a_dropped_block_is_saved():
    model, inputs = nn.Sequential(*(Block() for _ in range(4))), torch.zeros(2, 6)
    before = expense_of(model, inputs)
    after = expense_of(drop_layers(model, "1", inputs), inputs)
    assert (before.parameters, after.parameters) == (4 * 42, 3 * 42)
    assert after.memory / before.memory == 0.75
    lines = bought(before, after, {"val/mse": 2.0, "other": 1.0}, {"val/mse": 1.0, "new": 2.0})
    assert lines[0] == "parameters  168 → 126 (−25%)"
    assert lines[-1] == "val/mse     2 → 1 (−50%)"
    assert len(lines) == 4


def test_nothing_is_divided_by_zero():
    none = Expense(0, 0.0, 0.0)
    assert bought(none, none) == [
        "parameters  0 → 0",
        "memory      0.00 MiB → 0.00 MiB",
        "forward     0.00 ms → 0.00 ms",
    ]


def test_no_pass_to_time():
    with pytest.raises(ValueError, match="`repeats` must be at least 1, got 0"):
        expense_of(Slow(), torch.zeros(1), repeats=0)
