"""What a reading of a training step costs beside its products: few looks at numbers, and nothing large in float64."""

from collections import Counter

import lightning
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from lightning_leaky import EnergyMonitor, LeakyResNetModule
from lightning_leaky.callbacks import _readers

WIDTH, FEW, MANY = 100, 6, 24


class Operations(TorchDispatchMode):
    """Counts operations by name, and keeps the size of the largest float64 tensor that one takes or returns."""

    def __init__(self):
        super().__init__()
        self.counts, self.widest = Counter(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.counts[func.overloadpacket.__name__] += 1
        tensors = [one for one in tree_leaves((args, kwargs, result)) if isinstance(one, torch.Tensor)]
        self.widest = max([self.widest, *(one.numel() for one in tensors if one.dtype == torch.float64)])
        return result


def operations_of_a_reading(monkeypatch, num_layers, num_samples, weight_decay, **settings):
    """Those of one training reading through the callback."""
    seen, read = [], _readers.StepReader._read

    def counted(self, *args):
        with Operations() as operations:
            read(self, *args)
        seen.append(operations)

    torch.manual_seed(0)
    module = LeakyResNetModule(8, 3, width=WIDTH, num_layers=num_layers, effective_depth=2.0, weight_decay=weight_decay)
    data = DataLoader([(torch.randn(num_samples, 8), torch.randn(num_samples, 3))], batch_size=None)
    monitor = EnergyMonitor(every_n_steps=1, **settings)
    silent = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    with monkeypatch.context() as patch:
        patch.setattr(_readers.StepReader, "_read", counted)
        lightning.Trainer(max_epochs=1, accelerator="cpu", callbacks=[monitor], **silent).fit(module, data)
    assert monitor.readings["train"].is_finite()
    (operations,) = seen
    return operations


every_case = pytest.mark.parametrize(
    ("num_samples", "weight_decay"),
    [(64, 0.0), (64, 0.1), (300, 0.0), (300, 0.1)],
    ids=["N<w", "N<w with momenta", "N>w", "N>w with momenta"],
)


@every_case
def test_numbers_are_looked_at_as_often_in_deep_networks(monkeypatch, num_samples, weight_decay):
    few, many = (
        operations_of_a_reading(monkeypatch, number, num_samples, weight_decay).counts["_local_scalar_dense"]
        for number in (FEW, MANY)
    )
    assert 0 < few == many < FEW


@every_case
def test_factorisations_are_of_all_layers_together(monkeypatch, num_samples, weight_decay):
    for number in (FEW, MANY):
        counts = operations_of_a_reading(monkeypatch, number, num_samples, weight_decay).counts
        assert counts["linalg_cholesky_ex"] == 1


@every_case
def test_nothing_large_is_in_float64(monkeypatch, num_samples, weight_decay):
    """A few numbers a layer, never a matrix."""
    widest = operations_of_a_reading(monkeypatch, MANY, num_samples, weight_decay).widest
    assert 0 < widest <= 8 * MANY < min(num_samples, WIDTH) ** 2


def test_matrices_are_in_float64_where_that_is_asked_for(monkeypatch):
    """Or the test above would say nothing."""
    assert operations_of_a_reading(monkeypatch, FEW, 300, 0.0, precision="high").widest >= WIDTH**2
