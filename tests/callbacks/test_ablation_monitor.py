"""AblationMonitor: what ablate_path says, in a fit that goes on as without it."""

import copy
import pickle

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from lightning_leaky import AblationMonitor, EnergyMonitor, ablate_path
from tests.blocks import Net
from tests.callbacks.helpers import rows_of


class Module(LightningModule):
    """Three blocks and a head, which may have a cost of its own."""

    def __init__(self, with_cost=True):
        super().__init__()
        self.net, self.dropout = Net(), nn.Dropout(0.2)
        self.losses = []
        if with_cost:
            self.cost = F.mse_loss

    def forward(self, inputs):
        return self.net(self.dropout(inputs))

    def training_step(self, batch, batch_idx):
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.losses.append(float(loss))
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loaders(num_val=3):
    generator = torch.Generator().manual_seed(0)
    pairs = [(torch.randn(6, generator=generator), torch.randn(2, generator=generator)) for _ in range(12)]
    return DataLoader(pairs, 4, shuffle=True), DataLoader(pairs[: 4 * num_val], 4)


def fit(make_trainer, *callbacks, module=None, max_epochs=4, **settings):
    torch.manual_seed(1)
    module = Module() if module is None else module
    make_trainer(*callbacks, max_epochs=max_epochs, **settings).fit(module, *loaders())
    return module


def test_it_measures_at_the_end_and_every_few_epochs(make_trainer, tmp_path):
    monitor, logger = AblationMonitor(every_n_epochs=3, max_batches=2), CSVLogger(tmp_path)
    module = fit(make_trainer, monitor, logger=logger)
    expected = ablate_path(module, [*loaders()[1]][:2], F.mse_loss)
    assert monitor.ablation.names == ("net.encoder.0", "net.encoder.1", "net.encoder.2")
    torch.testing.assert_close(monitor.ablation.costs, expected.costs)
    rows = [row for row in rows_of(logger.log_dir) if row["removal_cost/layer_01"]]
    assert [row["step"] for row in rows] == ["9", "12"]
    found = [float(rows[-1][f"removal_cost/layer_0{number}"]) for number in (1, 2, 3)]
    assert found == pytest.approx(expected.increases.tolist(), rel=1e-5)


def test_a_due_last_epoch_is_measured_once(make_trainer, tmp_path):
    logger = CSVLogger(tmp_path)
    fit(make_trainer, AblationMonitor(every_n_epochs=2), logger=logger)
    assert [row["step"] for row in rows_of(logger.log_dir) if row["removal_cost/layer_01"]] == ["6", "12"]


def test_training_goes_on_as_without_it(make_trainer, hooks_of):
    plain, watched = fit(make_trainer), fit(make_trainer, EnergyMonitor(), AblationMonitor(every_n_epochs=1))
    assert watched.losses == plain.losses
    assert all(map(torch.equal, watched.parameters(), plain.parameters()))
    assert hooks_of(watched) == 0


def test_a_cost_can_be_named_in_a_configuration(make_trainer):
    monitor = AblationMonitor("torch.nn.functional.l1_loss")
    module = fit(make_trainer, monitor, module=Module(with_cost=False))
    expected = ablate_path(module, loaders()[1], F.l1_loss).costs
    torch.testing.assert_close(monitor.ablation.costs, expected)


@pytest.mark.parametrize(
    ("arguments", "module", "with_val", "message"),
    [
        ({}, {"with_cost": False}, True, "`cost` must be given for a module that has no method `cost`"),
        ({}, {}, False, "there are no validation batches. Give the fit a validation loader"),
        ({"layers": "nowhere.*"}, {}, True, "`layers` must match modules"),
    ],
    ids=["cost", "batches", "layers"],
)
def test_what_is_in_the_way_is_said_once_and_stops_nothing(make_trainer, arguments, module, with_val, message):
    monitor, module = AblationMonitor(every_n_epochs=1, **arguments), Module(**module)
    with pytest.warns(UserWarning, match=message) as said:
        make_trainer(monitor, max_epochs=3).fit(module, *loaders()[: 1 + with_val])
    assert sum("AblationMonitor" in str(one.message) for one in said) == 1
    assert len(module.losses) == 9
    assert monitor.ablation is None


@pytest.mark.parametrize("name", ["every_n_epochs", "max_batches"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        AblationMonitor(**{name: 0})


def test_copies(make_trainer):
    monitor = AblationMonitor()
    fit(make_trainer, monitor)
    for copied in (copy.deepcopy(monitor), pickle.loads(pickle.dumps(monitor))):
        assert copied.ablation.names == monitor.ablation.names


def test_a_measurement_that_fails_leaves_the_training_alone(make_trainer):
    plain = fit(make_trainer, module=Module(with_cost=False))
    with pytest.warns(UserWarning, match="`cost` must be given"):
        watched = fit(make_trainer, AblationMonitor(every_n_epochs=1), module=Module(with_cost=False))
    assert watched.losses == plain.losses


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_batches_are_of_the_precision_of_the_module(make_trainer, precision):
    monitor = AblationMonitor()
    fit(make_trainer, monitor, precision=precision)
    assert monitor.ablation.costs.isfinite().all()


class Stream(IterableDataset):
    """Samples without a number."""

    def __iter__(self):
        yield from loaders()[1].dataset


@pytest.mark.parametrize(
    "arrange",
    [lambda one: {"a": one, "b": one}, lambda one: [one, one], lambda one: DataLoader(Stream(), 4)],
    ids=["dictionary", "list", "stream"],
)
def test_the_first_of_several_loaders_is_read(make_trainer, arrange):
    monitor, module = AblationMonitor(), Module()
    module.validation_step = lambda batch, batch_idx, dataloader_idx=0: None
    train, val = loaders()
    make_trainer(monitor, max_epochs=1).fit(module, train, arrange(val))
    expected = ablate_path(module, val, F.mse_loss).costs
    torch.testing.assert_close(monitor.ablation.costs, expected)


def test_a_path_to_no_function_is_refused():
    with pytest.raises(ValueError, match=r"`cost` must be a function, or the import path of one, got 'torch\.nope'"):
        AblationMonitor("torch.nope")
