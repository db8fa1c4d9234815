"""The mean of a number over samples."""

import math

import pytest
import torch
from torch import nn

from lightning_leaky.metrics import SampleMean


def test_batches_count_by_their_samples():
    metric = SampleMean()
    numbers = torch.randn(11, dtype=torch.float64)
    for batch in numbers.split(4):
        metric.update(batch.mean(), num_samples=len(batch))
    torch.testing.assert_close(metric.compute(), numbers.mean())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_of_the_module_does_not_reach_the_sums(dtype):
    module = nn.ModuleDict({"mean": SampleMean()}).to(dtype)
    for _ in range(10_000):
        module["mean"].update(torch.tensor(3.0, dtype=dtype), num_samples=8)
    assert module["mean"].compute() == 3


def test_what_has_diverged_shows():
    metric = SampleMean()
    for value in (1.0, math.nan, 1.0):
        metric.update(torch.tensor(value), num_samples=2)
    assert metric.compute().isnan()
    metric.reset()
    metric.update(torch.tensor(1.0), num_samples=2)
    assert metric.compute() == 1
