"""EnergyMonitor over several loaders, one reading each, and after passes over the data that are no training."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader

from lightning_leaky import EnergyMonitor, PathFigures
from tests.blocks import Block, effective_dimension
from tests.callbacks.helpers import rows_of

WIDTH = 5
PREFIXES = {"validate": "val_", "test": "test_"}
stages = pytest.mark.parametrize("stage", PREFIXES)


class Several(LightningModule):
    """Keeps what its second block takes in an evaluation, by loader; learns nothing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = Block(WIDTH), Block(WIDTH)
        self.taken = {}

    def run(self, batch, loader=0):
        hidden = self.first(batch)
        self.taken.setdefault(loader, []).append(hidden.detach())
        return self.second(hidden).square().mean()

    def training_step(self, batch, batch_idx):
        return self.run(batch, "train")

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        batch = torch.cat([part for part in batch if part is not None]) if isinstance(batch, list) else batch
        self.log("loss", self.run(batch, dataloader_idx), batch_size=len(batch))

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)

    def cost(self, *loaders):
        """Cost of identity of the second block over all batches of some loaders."""
        return effective_dimension(torch.cat([hidden for loader in loaders for hidden in self.taken[loader]]))


def loaders(*sizes):
    """Loaders of batches of 3 that differ in size and in scale."""
    generator = torch.Generator().manual_seed(1)
    return [
        DataLoader((number + 1) * torch.randn(size, WIDTH, generator=generator), batch_size=3)
        for number, size in enumerate(sizes)
    ]


def assert_read(monitor, expected):
    """The readings that there are, of the second block."""
    assert monitor.readings.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(monitor.readings[name]["cost_of_identity"][1], value, rtol=1e-5, atol=0)


@stages
def test_each_loader_has_its_reading_under_lightnings_keys(make_trainer, tmp_path, stage):
    """In `readings`, in what is returned of that loader, among the callbacks' metrics, and in the log."""
    module, monitor, logger = Several(), EnergyMonitor(Block, ["cost_of_identity"]), CSVLogger(tmp_path)
    trainer = make_trainer(monitor, logger=logger)
    returned = getattr(trainer, stage)(module, loaders(7, 4, 5), verbose=False)
    expected = [module.cost(number) for number in range(3)]
    names = [stage, f"{stage}/dataloader_idx_1", f"{stage}/dataloader_idx_2"]
    assert_read(monitor, dict(zip(names, expected, strict=True)))
    rows = rows_of(logger.log_dir)
    for number, name in enumerate(names):
        for key, value in monitor.readings[name].scalars(PREFIXES[stage]).items():
            logged = f"{key}/dataloader_idx_{number}"
            (written,) = (float(row[logged]) for row in rows if row[logged])
            assert written == pytest.approx(float(value), rel=1e-5)
            assert float(trainer.callback_metrics[logged]) == pytest.approx(float(value), rel=1e-5)
        shown = {key: float(value) for key, value in returned[number].items() if "cost_of_identity" in key}
        smallest = float(monitor.readings[name]["cost_of_identity"].min())
        assert shown == {f"{PREFIXES[stage]}cost_of_identity/min/dataloader_idx_{number}": pytest.approx(smallest)}
    assert not [key for key in rows[0] if "cost_of_identity" in key and "dataloader_idx" not in key]


def test_what_is_printed_stands_under_its_loader(make_trainer, capsys):
    """Lightning leaves out the ends of keys there."""
    module, monitor = Several(), EnergyMonitor(Block, ["cost_of_identity"])
    make_trainer(monitor).validate(module, loaders(6, 3))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "cost_of_identity" in line]
    found = [float(word) for word in line.replace("\u2502", " ").split() if word[0].isdigit()]
    least = [float(one["cost_of_identity"].min()) for one in monitor.readings.values()]
    assert found == pytest.approx(least, rel=1e-4)


@stages
def test_loaders_are_pooled_where_asked(make_trainer, stage):
    module, monitor = Several(), EnergyMonitor(Block, ["cost_of_identity"], pool_loaders=True)
    trainer = make_trainer(monitor)
    first, _ = getattr(trainer, stage)(module, loaders(7, 4), verbose=False)
    assert_read(monitor, {stage: module.cost(0, 1)})
    assert f"{PREFIXES[stage]}cost_of_identity/min" in first
    assert not [key for key in trainer.callback_metrics if "identity" in key and "dataloader_idx" in key]


def test_validations_of_a_fit_start_anew_and_the_sanity_check_is_no_reading(make_trainer):
    class Forget(Callback):
        def on_validation_start(self, trainer, pl_module):
            pl_module.taken.clear()

        def on_sanity_check_end(self, trainer, pl_module):
            seen.append(dict(monitor.readings))

    seen, monitor, module = [], EnergyMonitor(Block, ["cost_of_identity"], every_n_steps=1), Several()
    told = []
    monitor.on_readings = lambda trainer, module, monitor, stage: told.append(stage)
    trainer = make_trainer(Forget(), monitor, num_sanity_val_steps=2, val_check_interval=1)
    trainer.fit(module, loaders(6)[0], loaders(7, 4))
    assert seen == [{}]
    assert told == 4 * ["train", "validate", "validate/dataloader_idx_1"]
    train = monitor.readings["train"]["cost_of_identity"][1]
    assert_read(monitor, {"train": train, "validate": module.cost(0), "validate/dataloader_idx_1": module.cost(1)})
    trainer.validate(module, loaders(4), verbose=False)
    assert set(monitor.readings) == {"train", "validate"}  # no second loader any more


@pytest.mark.parametrize("sizes", [(9, 0, 9), (0, 9, 9), (9, 9, 0)])
def test_a_loader_without_batches_is_no_reading(make_trainer, sizes):
    module, monitor = Several(), EnergyMonitor(Block, ["cost_of_identity"])
    returned = make_trainer(monitor).validate(module, loaders(*sizes), verbose=False)
    read = [number for number, size in enumerate(sizes) if size]
    assert list(module.taken) == read
    names = {number: f"validate/dataloader_idx_{number}" if number else "validate" for number in read}
    assert_read(monitor, {name: module.cost(number) for number, name in names.items()})
    keys = {key for one in returned for key in one if "cost_of_identity" in key}
    assert {int(key.rsplit("_", 1)[1]) for key in keys} == set(read)


def test_a_loader_that_has_become_empty_keeps_no_reading_of_an_earlier_evaluation(make_trainer):
    monitor, module = EnergyMonitor(Block, ["cost_of_identity"]), Several()
    trainer = make_trainer(monitor)
    trainer.validate(module, loaders(6, 3), verbose=False)
    assert set(monitor.readings) == {"validate", "validate/dataloader_idx_1"}
    trainer.validate(module, loaders(0, 3), verbose=False)
    assert set(monitor.readings) == {"validate/dataloader_idx_1"}


@pytest.mark.parametrize("mode", ["min_size", "max_size", "max_size_cycle"])
def test_loaders_whose_batches_come_together_are_one(make_trainer, mode):
    module, monitor = Several(), EnergyMonitor(Block, ["cost_of_identity"])
    (returned,) = make_trainer(monitor).validate(module, CombinedLoader(loaders(7, 4), mode), verbose=False)
    assert_read(monitor, {"validate": module.cost(0)})
    assert "val_cost_of_identity/min" in returned


def test_named_loaders_and_blocks_that_are_found(make_trainer):
    """In the first loader."""
    module, monitor = Several(), EnergyMonitor(quantities=["cost_of_identity"])
    data = CombinedLoader(dict(zip("ab", loaders(7, 4), strict=True)), "sequential")
    make_trainer(monitor).validate(module, data, verbose=False)
    assert_read(monitor, {"validate": module.cost(0), "validate/dataloader_idx_1": module.cost(1)})


def test_iterators_that_the_step_draws_from_are_told_apart(make_trainer):
    """Of which loader a batch is Lightning knows after the step."""

    class Draws(Several):
        def validation_step(self, dataloader_iter):
            batch, _, number = next(dataloader_iter)
            self.run(batch, number)

    module, monitor = Draws(), EnergyMonitor(Block, ["cost_of_identity"])
    make_trainer(monitor).validate(module, loaders(7, 4), verbose=False)
    assert_read(monitor, {"validate": module.cost(0), "validate/dataloader_idx_1": module.cost(1)})


def test_the_other_callbacks_bear_several_loaders(make_trainer, tmp_path):
    monitor = EnergyMonitor(Block, every_n_steps=1)
    trainer = make_trainer(monitor, PathFigures(every_n_steps=1), logger=CSVLogger(tmp_path))
    trainer.fit(Several(), loaders(6)[0], loaders(7, 4))
    assert set(monitor.readings) == {"train", "validate", "validate/dataloader_idx_1"}


# Passes that are no training.


class Normed(Several):
    """A batch norm before the blocks, which a pass after the averaging of weights renews."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def run(self, batch, loader=0):
        return super().run(self.norm(batch), loader)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("layers", [Block, None], ids=["named", "found"])
def test_the_pass_that_renews_batch_norms_is_not_read(make_trainer, layers):
    """Whatever the rhythm: the last reading of training is that of its last step."""

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            passes.append(trainer.fit_loop._skip_backward)
            seen.append(monitor.readings.get("train"))

    passes, seen, steps, monitor = [], [], [], EnergyMonitor(layers, ["cost_of_identity"], every_n_steps=1)
    monitor.on_readings = lambda trainer, module, monitor, stage: steps.append(monitor.step)
    module, averaging = Normed(), StochasticWeightAveraging(0.05, swa_epoch_start=1)
    make_trainer(monitor, averaging, Watch()).fit(module, loaders(9)[0])
    assert passes == 6 * [False] + 3 * [True]
    assert steps == [0, 1, 2, 3, 4, 5]
    assert monitor.readings["train"] is seen[5]
    last = effective_dimension(module.taken["train"][5])
    torch.testing.assert_close(monitor.readings["train"]["cost_of_identity"][1], last, rtol=1e-5, atol=0)
