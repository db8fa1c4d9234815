"""Other people's loops: what is read of several loaders and fits, what is not, and what is said of it."""

import warnings

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import nn
from torch.func import jvp
from torch.nn import functional as F

from lightning_leaky import EnergyMonitor, StepSizeAdapter, make_leaky, measure_path
from tests.others.loops import (
    ENERGIES,
    WIDTH,
    Block,
    Loop,
    Passed,
    blocks,
    close_to,
    energies,
    fit,
    informed,
    loader,
    points,
    read,
    sgd,
    told,
)
from tests.others.stubs import timm_module

# 14. Nothing will be read.


def fewer_batches_than_log_every_n_steps():
    monitor = EnergyMonitor("net.*")
    said = fit(Loop(), [points()] * 3, monitor, log_every_n_steps=50, max_epochs=5)
    assert "train" not in monitor.readings
    assert len(told(said, "EnergyMonitor", "no training batch")) == 1, said
    said = fit(Loop(), [points()] * 3, EnergyMonitor("net.*"), log_every_n_steps=50, max_epochs=17)
    assert not told(said, "no training batch"), said


def trainers_that_log_nothing():
    for settings in ({"barebones": True}, {"log_every_n_steps": 0}, {"limit_train_batches": 0}, {"fast_dev_run": True}):
        quiet = {"enable_checkpointing": None, "enable_progress_bar": None, "enable_model_summary": None}
        quiet = {**quiet, "logger": None, "log_every_n_steps": None, "num_sanity_val_steps": None}
        monitor = EnergyMonitor("net.*")
        said = fit(Loop(), [points()] * 3, monitor, **((quiet | settings) if "barebones" in settings else settings))
        is_read = "train" in monitor.readings
        assert is_read == (len(told(said, "EnergyMonitor", "no training batch")) == 0), (settings, said)
        assert not is_read or "fast_dev_run" in settings


def predictions():
    monitor = EnergyMonitor("net.*")
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[monitor])
    with pytest.warns(UserWarning, match="EnergyMonitor reads nothing"):
        trainer.predict(Loop(), loader([points()]))
    assert not monitor.readings


# 15. Pooled without a word.


class Validated(Loop):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("val_loss", self(batch).square().mean(), batch_size=len(batch))

    def configure_optimizers(self):
        return sgd(self, lr=0.05)


def two_validation_loaders():
    one, two = [points(seed=3), points(5, seed=4)], [10 * points(9, seed=5)]
    for pools in (False, True):
        monitor, module = EnergyMonitor("net.*", list(ENERGIES), every_n_steps=1, pool_loaders=pools), Validated()
        trainer = Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[monitor]
        )
        trainer.validate(module, [loader(one), loader(two)], verbose=False)
        sets = {"validate": one + two} if pools else {"validate": one, "validate/dataloader_idx_1": two}
        assert [name for name in monitor.readings if name != "validate/dataloader_idx_0"] == list(sets)
        for name, batches in sets.items():
            want = Passed(
                module.net, lambda batches=batches, module=module: [module(batch) for batch in batches]
            ).energies()
            close_to(monitor.readings[name], want)
        logged = {key for key in trainer.callback_metrics if key.startswith("val_cost_of_identity/layer")}
        assert all(("dataloader_idx" in key) != pools for key in logged)
        assert "val_loss/dataloader_idx_0" in trainer.callback_metrics


def averaging_weights_with_a_pass_for_batch_norms():
    class Normed(Validated):
        def __init__(self):
            super().__init__(nn.Sequential(nn.BatchNorm1d(WIDTH), blocks()))

    data, monitor, module = [points(seed=3), points(seed=4)], EnergyMonitor("net.1.*", every_n_steps=1), Normed()
    seen = []
    module.on_train_batch_start = lambda batch, batch_idx: seen.append(
        {name: value.clone() for name, value in module.state_dict().items()}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(module, data, StochasticWeightAveraging(0.05, swa_epoch_start=1), monitor, max_epochs=3)
    assert len(seen) == 8  # three epochs, and one more for the norms
    module.load_state_dict(seen[5])
    want = Passed(module.net[1], lambda: module.train()(data[1])).energies()
    close_to(monitor.readings["train"], want)


# 18. Said once means once a fit.


class Failing(Loop):
    """A block is left out of the first two batches, and a transform runs in the next two."""

    def training_step(self, batch, batch_idx):
        if batch_idx in (0, 1):
            return (self.net[0](batch) + self.net[2](batch)).square().mean()
        if batch_idx in (2, 3):
            return jvp(self.net, (batch,), (torch.ones_like(batch),))[1].square().mean()
        return super().training_step(batch, batch_idx)


def warnings_in_the_second_fit_of_a_notebook():
    monitor, heard = EnergyMonitor("net.*", every_n_steps=1), []
    for fits in range(3):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")  # as Python is: once a place
            quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
            used = monitor if fits < 2 else EnergyMonitor("net.*", every_n_steps=1)
            trainer = Trainer(accelerator="cpu", max_epochs=1, logger=False, callbacks=[used], **quiet)
            trainer.fit(Failing(), loader([points()] * 4))
        heard.append([str(one.message) for one in caught if "not read" in str(one.message)])
    assert [len(one) for one in heard] == [2, 2, 2], heard


def batches_that_fail_for_another_reason_later():
    monitor, module = EnergyMonitor("net.*", list(ENERGIES), every_n_steps=1), Failing()
    said = fit(module, [points(seed=seed) for seed in range(5)], monitor)
    assert len(told(said, "not read", "did not run")) == 1, said
    assert len(told(said, "not read", "transform")) == 1, said
    close_to(monitor.readings["train"], Passed(module.net, lambda: module(points(seed=4))).energies())


def step_sizes_left_as_they_are_in_every_fit():
    for _ in range(2):
        module = Loop(make_leaky(blocks(), "*"))
        module.train = lambda mode=True, module=module: module  # from_pretrained models are in evaluation mode
        module.net.eval()
        said = fit(module, [points()] * 4, StepSizeAdapter(every_n_steps=1))
        assert len(told(said, "step-sizes left as they are", "model.train()")) == 1, said


# 20. Noise that is not the network's.


def dropout_and_drop_path_are_said_once():
    drop_path = timm_module("timm.layers").DropPath(0.2)

    class Noisy(Block):
        def __init__(self, noise):
            super().__init__()
            self.noise = noise

        def forward(self, hidden):
            return hidden + self.noise(self.linear(hidden).tanh())

    for noise, is_noisy in ((nn.Dropout(0.1), True), (drop_path, True), (nn.Dropout(0.0), False)):
        module = Loop(nn.Sequential(*(Noisy(noise) for _ in range(3))))
        with informed() as heard:
            said = fit(module, [points()] * 3, EnergyMonitor("net.*"))
        assert len(told([*heard, *said], "drop", "training readings")) == is_noisy, (noise, heard, said)


# 21. Networks without blocks.


def an_autoencoder_of_a_tutorial():
    net = nn.ModuleDict(
        {
            "encoder": nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, 3)),
            "decoder": nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, WIDTH)),
        }
    )

    class Auto(Loop):
        def training_step(self, batch, batch_idx):
            return F.mse_loss(self.net["decoder"](self.net["encoder"](batch)), batch)

    monitor = EnergyMonitor(None, every_n_steps=1)
    said = fit(Auto(net), [points()] * 3, monitor)
    assert "train" not in monitor.readings
    assert len(told(said, "no layers are read")) == 1, said
    (text,) = told(said, "no layers are read")
    assert "net.encoder" in text
    assert "(12, 6)" in text
    with pytest.raises(ValueError, match=r"Did you mean 'net\.encoder"):
        fit(Auto(net), [points()], EnergyMonitor("encoder.*"))


def a_flat_stack_of_a_tutorial():
    torch.manual_seed(0)
    parts = [part for _ in range(3) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.0))]
    net = nn.Sequential(nn.Linear(4, WIDTH), nn.ReLU(), *parts, nn.Linear(WIDTH, 2))
    module, batch = Loop(net), points(12, 4)

    def path():
        hidden, seen = net[:2](batch), []
        for index in range(3):
            layer = net[2 + 3 * index : 5 + 3 * index]
            seen.append((hidden, layer(hidden)))
            hidden = seen[-1][1]
        return seen

    want = energies(*zip(*[[one.detach().double() for one in pair] for pair in path()], strict=True))
    readings, _ = read(module, [batch, batch], None)
    assert len(readings.names) == 3
    close_to(readings, want)
    close_to(measure_path(net, [batch], ENERGIES), want)
