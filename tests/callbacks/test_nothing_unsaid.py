"""EnergyMonitor says once a fit what it does not read, and nothing of its own stops the fit."""

import warnings

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_leaky import EnergyMonitor, LayerRefiner, ReadingGuide
from lightning_leaky.callbacks import energy_monitor, reading_guide
from lightning_leaky.metrics.readings import Readings
from lightning_leaky.reading.observer import PathObserver

NOT_READ = "reads no training batch"


class Plain(LightningModule):
    """Three blocks, six batches to train on."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)))

    def training_step(self, batch, batch_idx):
        return self.blocks(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self.blocks(batch)

    predict_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)

    def train_dataloader(self):
        return DataLoader(torch.randn(12, 4), batch_size=2)

    val_dataloader = predict_dataloader = train_dataloader


class ByHand(Plain):
    """Takes a step in every third batch: `max_steps` is of these, and readings are due by batches."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.manual_backward(super().training_step(batch, batch_idx))
        if batch_idx % 3 == 2:
            self.optimizers().step()
            self.optimizers().zero_grad()


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.randn(6, 2, 4))


def said_by(run):
    """What is said of our callbacks while something runs, by Python's own rules: a warning once a place."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        run()
    texts = [str(one.message) for one in caught]
    return [text for text in texts if any(name in text for name in ("EnergyMonitor", "ReadingGuide", "LayerRefiner"))]


def fit(make_trainer, monitor, module=None, data=None, **settings):
    """Fit on six batches with the trainer's own rhythm of logging, unless told otherwise; what was said."""
    changes = {"max_epochs": 1, "log_every_n_steps": None, "limit_val_batches": 0} | settings
    trainer = make_trainer(monitor, *changes.pop("callbacks", ()), **changes)
    return said_by(lambda: trainer.fit(Plain() if module is None else module, data))


# Whether anything will be read.

UNREAD = {
    "as many steps as the trainer's rhythm wants": {},
    "several epochs": {"max_epochs": 8},
    "max_steps": {"max_steps": 3, "log_every_n_steps": 4},
    "a stream and max_steps": {"data": DataLoader(Stream(), batch_size=None), "max_steps": 3, "max_epochs": -1},
    "accumulation": {"accumulate_grad_batches": 2, "max_epochs": 2, "every_n_steps": 7},
    "never logs": {"log_every_n_steps": 0, "max_epochs": 60},
    "no training batches": {"limit_train_batches": 0, "limit_val_batches": 1},
    "few training batches": {"limit_train_batches": 2, "every_n_steps": 3},
    "no epochs": {"max_epochs": 0, "every_n_steps": 1},
    "no steps": {"max_steps": 0, "every_n_steps": 1},
}


@pytest.mark.parametrize("settings", UNREAD.values(), ids=UNREAD)
def test_a_fit_that_reads_no_training_batch_says_so_at_its_start(make_trainer, settings):
    """In one sentence, with what to change; and nothing is said of where readings are kept."""
    changes = dict(settings)
    monitor = EnergyMonitor("blocks.?", every_n_steps=changes.pop("every_n_steps", None))
    texts = fit(make_trainer, monitor, **changes)
    assert "train" not in monitor.readings
    assert len([text for text in texts if NOT_READ in text]) == 1
    assert not [text for text in texts if "are kept" in text]


def test_it_is_said_before_the_first_batch(make_trainer):
    class Early(Plain):
        def training_step(self, batch, batch_idx):
            said.append(any(NOT_READ in str(one.message) for one in caught))
            return super().training_step(batch, batch_idx)

    said, trainer = [], make_trainer(EnergyMonitor("blocks.?", every_n_steps=7), max_epochs=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Early())
    assert said == [True] * 6


def test_barebones():
    """Lightning lets callbacks run, and never logs."""
    for every_n_steps in (None, 2):
        monitor = EnergyMonitor("blocks.?", every_n_steps=every_n_steps)
        trainer = Trainer(max_epochs=9, accelerator="cpu", barebones=True, callbacks=[monitor])
        texts = said_by(lambda trainer=trainer: trainer.fit(Plain()))
        assert ("train" in monitor.readings) == (every_n_steps is not None)
        assert len([text for text in texts if NOT_READ in text]) == (every_n_steps is None)
        assert "validate" in monitor.readings


READ = {
    "the last step": {"every_n_steps": 6},
    "the last step of several epochs": {"every_n_steps": 12, "max_epochs": 2},
    "a stream": {"data": DataLoader(Stream(), batch_size=None), "every_n_steps": 6},
    "by hand": {"module": ByHand, "every_n_steps": 6, "max_steps": 2},
    "an accumulation that begins later": {
        "callbacks": [GradientAccumulationScheduler({0: 2, 1: 6})],
        "every_n_steps": 4,
        "max_epochs": 2,
    },
    "fast_dev_run": {"fast_dev_run": True},
    "fast_dev_run of a long rhythm": {"fast_dev_run": 2, "every_n_steps": 100},
    "never logs but told": {"log_every_n_steps": 0, "every_n_steps": 1},
}


@pytest.mark.parametrize("settings", READ.values(), ids=READ)
def test_a_fit_that_reads_says_nothing_of_the_kind(make_trainer, settings):
    changes = dict(settings)
    monitor = EnergyMonitor("blocks.?", every_n_steps=changes.pop("every_n_steps", None))
    texts = fit(make_trainer, monitor, changes.pop("module", Plain)(), **changes)
    assert monitor.readings["train"].is_finite()
    assert not [text for text in texts if NOT_READ in text]


@pytest.mark.parametrize(("every_n_steps", "not_read_in"), [(8, [1, 0]), (6, [0, 1])])
def test_a_fit_that_goes_on_counts_from_where_it_is(make_trainer, every_n_steps, not_read_in):
    """Six steps, and three more in a second fit of the same trainer."""
    monitor, texts = EnergyMonitor("blocks.?", every_n_steps=every_n_steps), []
    trainer = make_trainer(monitor, max_steps=6, max_epochs=-1, limit_val_batches=0)
    for last in (6, 9):
        trainer.fit_loop.epoch_loop.max_steps = last
        texts.append(said_by(lambda: trainer.fit(Plain())))
    assert [sum(NOT_READ in text for text in one) for one in texts] == not_read_in
    assert ("train" in monitor.readings) == (not_read_in[-1] == 0)


def test_the_batches_of_an_earlier_fit_are_not_counted_on(make_trainer):
    """Two steps, and then six of more data, the third of which is the fifth in all."""
    monitor = EnergyMonitor("blocks.?", every_n_steps=5)
    trainer = make_trainer(monitor, max_epochs=1, limit_val_batches=0)
    few, many = DataLoader(torch.randn(2, 4), batch_size=1), DataLoader(torch.randn(6, 4), batch_size=1)
    assert any(NOT_READ in text for text in said_by(lambda: trainer.fit(Plain(), few)))
    trainer.fit_loop.max_epochs = 2
    assert not any(NOT_READ in text for text in said_by(lambda: trainer.fit(Plain(), many)))
    assert "train" in monitor.readings


def test_predicting_reads_nothing_and_says_so(make_trainer, hooks_of):
    module, monitor = Plain(), EnergyMonitor("blocks.?")
    texts = said_by(lambda: make_trainer(monitor).predict(module))
    assert [text for text in texts if "reads nothing in `trainer.predict`" in text] == texts
    assert len(texts) == 1
    assert monitor.readings == {}
    assert hooks_of(module) == 0


# Once a fit.


class Diverges(Plain):
    """From the fourth step on nothing is finite."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch * (float("nan") if batch_idx >= 3 else 1), batch_idx)


def test_each_fit_says_what_it_has_to_say_once(make_trainer):
    """Python itself drops what it has shown at a place before."""
    one, other = (EnergyMonitor("blocks.?", every_n_steps=1) for _ in range(2))
    runs = [fit(make_trainer, monitor, Diverges(), max_epochs=2) for monitor in (one, other, other, one)]
    assert [sorted(text.split(":")[0] for text in texts) for texts in runs] == 4 * [
        ["EnergyMonitor", "EnergyMonitor has no logger to write to"]
    ]
    assert all(any("not finite" in text for text in texts) for texts in runs)


def test_two_fits_in_one_process_both_say_it_with_pythons_own_filters(make_trainer):
    """All in one block of filters, as in a notebook."""

    def both():
        for _ in range(2):
            trainer = make_trainer(EnergyMonitor("blocks.?", every_n_steps=1), EnergyMonitor("blocks.?"), max_epochs=1)
            trainer.fit(Diverges())
            trainer.predict(Diverges())

    texts = said_by(both)
    for part, times in (("no logger", 4), ("not finite", 4), ("the `prefix`", 4), ("trainer.predict", 4)):
        assert len([text for text in texts if part in text]) == times, part


def test_a_quantity_that_fails_later_is_said_too(make_trainer, monkeypatch):
    """Not the one that was said before."""
    broken = {2: ("speed",), 3: ("speed",), 4: ("speed", "kinetic_energy")}
    compute = PathObserver.compute

    def spoiled(self, *args):
        count.append(1)
        readings = compute(self, *args)
        spoilt = {name: readings[name] * float("nan") for name in broken.get(len(count), ())}
        return Readings(readings.quantities | spoilt, readings.step_sizes, readings.effective_depth, readings.names)

    count = []
    monkeypatch.setattr(PathObserver, "compute", spoiled)
    monitor = EnergyMonitor("blocks.?", ["speed", "kinetic_energy"], every_n_steps=1)
    texts = [text for text in fit(make_trainer, monitor) if "not finite" in text]
    assert len(texts) == 2
    assert "'speed'" in texts[0]
    assert "'kinetic_energy'" not in texts[0]
    assert "'kinetic_energy'" in texts[1]
    assert "'speed'" not in texts[1]


# Nothing of ours stops a fit.


def raises(*args, **kwargs):
    raise OSError("the disk is full")


class FullDisk(CSVLogger):
    """Takes Lightning's numbers, and not those of layers."""

    def log_metrics(self, metrics, step=None):
        if any("layer" in key for key in metrics):
            raises()
        super().log_metrics(metrics, step)


FAILURES = {
    "a logger": (None, "EnergyMonitor: logging", True),
    "a reading": ((PathObserver, "compute"), "EnergyMonitor: a reading", False),
    "the guide": ((reading_guide, "guide_page"), "ReadingGuide: writing", True),
    "the table of runs": ((reading_guide, "log_final"), "ReadingGuide: writing", True),
    "the final numbers' names": ((reading_guide, "announce_final"), "ReadingGuide: announcing", True),
    "the printed table": ((energy_monitor, "print_layers"), "EnergyMonitor: printing", True),
}


@pytest.mark.parametrize(("broken", "task", "is_kept"), FAILURES.values(), ids=FAILURES)
def test_what_fails_beside_the_training_is_one_warning(make_trainer, tmp_path, monkeypatch, broken, task, is_kept):
    if broken is not None:
        monkeypatch.setattr(*broken, raises)
    logger = (FullDisk if broken is None else CSVLogger)(tmp_path)
    module, monitor, guide = Plain(), EnergyMonitor("blocks.?", print_layers=True), ReadingGuide()
    for _ in range(2):  # and again in the next fit
        trainer = make_trainer(monitor, guide, max_epochs=2, logger=logger)
        texts = said_by(lambda trainer=trainer: trainer.fit(module))
        assert trainer.global_step == 12
        assert [
            text for text in texts if "has failed, and the training goes on: OSError: the disk is full" in text
        ] == texts
        assert [text.split(" has failed")[0] for text in texts] == [task]
        assert set(monitor.readings) == ({"train", "validate"} if is_kept else set())


def test_a_refiner_that_cannot_log_refines_all_the_same(make_module, make_data, make_trainer, tmp_path):
    module = make_module()
    refiner = LayerRefiner(1e-3, every_n_steps=2, start_step=2)
    trainer = make_trainer(refiner, logger=FullDisk(tmp_path), max_epochs=4, log_every_n_steps=1)
    texts = said_by(lambda: trainer.fit(module, datamodule=make_data()))
    assert [text.split(" has failed")[0] for text in texts if "disk is full" in text] == ["LayerRefiner: logging"]
    assert len(module.network.layers) > 4


def test_what_others_raise_on_hearing_of_readings_is_theirs(make_trainer):
    class Other(Callback):
        on_readings = staticmethod(raises)

    with pytest.raises(OSError, match="the disk is full"):
        make_trainer(EnergyMonitor("blocks.?"), Other()).fit(Plain())
