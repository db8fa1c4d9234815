"""Products in plain float32: whatever was asked for, and then all is as it was."""

import functools

import lightning
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_leaky import EnergyMonitor, LeakyResNetModule
from lightning_leaky.metrics import PathReader, Recipe
from lightning_leaky.utilities.precision import ieee_products

BACKENDS = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul


def by_older_name():
    """What `set_float32_matmul_precision` was told; nothing where torch refuses to say, once backends differ."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def asked():
    """Every setting of products in float32."""
    return by_older_name(), torch.backends.fp32_precision, *(backend.fp32_precision for backend in BACKENDS)


@pytest.fixture(autouse=True)
def _settings_as_they_were():
    before = asked()
    yield
    torch.set_float32_matmul_precision(before[0] or "highest")
    for backend, precision in zip(BACKENDS, before[2:], strict=True):
        backend.fp32_precision = precision
    assert asked() == before


SETTINGS = {
    "nothing": lambda: None,
    **{name: functools.partial(torch.set_float32_matmul_precision, name) for name in ("highest", "high", "medium")},
    "bf16 on CPUs": functools.partial(setattr, BACKENDS[0], "fp32_precision", "bf16"),
    "tf32 on GPUs": functools.partial(setattr, BACKENDS[1], "fp32_precision", "tf32"),
}
every_setting = pytest.mark.parametrize("ask", SETTINGS.values(), ids=SETTINGS)


def assert_exact():
    assert by_older_name() == "highest"
    assert {backend.fp32_precision for backend in BACKENDS} <= {"none", "ieee"}


@every_setting
def test_products_are_exact_inside_and_all_is_as_it_was_afterwards(ask):
    ask()
    before = asked()
    with ieee_products():
        assert_exact()
    assert asked() == before


@every_setting
def test_all_is_as_it_was_after_an_error_too(ask):
    ask()
    before = asked()
    with pytest.raises(KeyError), ieee_products():
        raise KeyError
    assert asked() == before


@every_setting
def test_one_inside_another_changes_nothing(ask):
    ask()
    before = asked()
    with ieee_products():
        with ieee_products():
            assert_exact()
        assert_exact()
    assert asked() == before


def test_as_a_decorator_it_is_of_every_call():
    torch.set_float32_matmul_precision("medium")
    checked = ieee_products()(assert_exact)
    for _ in range(2):
        checked()
    assert by_older_name() == "medium"


def test_under_autocast_products_are_of_float32():
    rows = torch.randn(64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with ieee_products():
            assert not torch.is_autocast_enabled("cpu")
            product = rows @ rows
        assert (rows @ rows).dtype == torch.bfloat16
    assert product.dtype == torch.float32
    assert torch.equal(product, rows @ rows)


# Readings.


def read_by_hand(num_samples):
    torch.manual_seed(0)
    path = torch.randn(4, num_samples, 64)
    reader = PathReader([(64, 3)], Recipe(["cost_of_identity", "kinetic_energy"], 2.0, precision="default"))
    reader.update(path[:-1], path[1:], torch.ones(3) / 3, is_last=True)
    return reader.compute().quantities


def same(quantities, others):
    return all(torch.equal(quantities[name], others[name]) for name in quantities)


@pytest.mark.parametrize("num_samples", [40, 200], ids=["N<w", "N>w"])
@every_setting
def test_a_reading_is_the_same_bits_whatever_was_asked_for(ask, num_samples):
    expected = read_by_hand(num_samples)
    ask()
    assert same(read_by_hand(num_samples), expected)


@pytest.mark.parametrize("num_samples", [40, 200], ids=["N<w", "N>w"])
def test_a_reading_is_the_same_bits_under_autocast(num_samples):
    expected = read_by_hand(num_samples)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same(read_by_hand(num_samples), expected)


class Exact(LeakyResNetModule):
    """Runs forward and backward in plain float32 whatever was asked for: only its reading is left to differ."""

    def training_step(self, batch, batch_idx):
        with ieee_products():
            return super().training_step(batch, batch_idx)

    def backward(self, loss):
        with ieee_products():
            super().backward(loss)


@pytest.mark.parametrize("num_samples", [40, 200], ids=["N<w", "N>w"])
def test_a_monitor_reads_the_same_bits_whatever_was_asked_for(make_trainer, num_samples):
    found = []
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        lightning.seed_everything(0, verbose=False)
        module, monitor = (
            Exact(8, 3, width=64, num_layers=3, effective_depth=2.0, weight_decay=0.1),
            EnergyMonitor(every_n_steps=1),
        )
        data = DataLoader([(torch.randn(num_samples, 8), torch.randn(num_samples, 3))], batch_size=None)
        make_trainer(monitor, max_epochs=1).fit(module, data)
        assert by_older_name() == precision
        found.append(monitor.readings["train"].quantities)
    assert same(*found)
