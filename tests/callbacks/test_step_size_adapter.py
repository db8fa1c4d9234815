"""StepSizeAdapter: the hook in a trainer, its logs, its checkpoints, and the optimizers it refuses."""

import copy
import warnings
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision

from lightning_leaky import EnergyMonitor, LeakyResNet, LeakyResNetModule, StepSizeAdapter, StepSizeHook
from lightning_leaky.functional import SwitchesRule
from lightning_leaky.optim import AdaptationSettings
from lightning_leaky.reading.layout import Layout
from tests.callbacks.helpers import ConstantRate, Recorder, TwoNetworks, TwoOptimizers, rows_of, steps_with
from tests.optim.test_optimizer_steps import SAM

DATA = Path(__file__).parents[1] / "data"


def test_a_fit_does_what_the_hook_does(make_module, make_data, make_trainer):
    """Six batches by hand, with the plain hook."""
    settings = {
        "every_n_steps": 2,
        "damping": 0.3,
        "start_step": 2,
        "max_leak": 0.8,
        "rule": "switches",
        "move_weights": True,
        "scale_gradients": True,
    }
    module, recorder = make_module(ConstantRate), Recorder()
    make_trainer(StepSizeAdapter(**settings), recorder).fit(module, datamodule=make_data(batch_size=8))

    twin = make_module(ConstantRate)
    optimizer = twin.configure_optimizers()
    StepSizeHook(twin, **settings).attach(optimizer)
    for [(inputs, targets)] in recorder.batches:
        optimizer.zero_grad()
        twin.loss(twin(inputs), targets).backward()
        optimizer.step()
    assert len(recorder.batches) == 6
    assert torch.equal(module.network.step_sizes, twin.network.step_sizes)
    assert torch.equal(module.network.weights(), twin.network.weights())
    assert not torch.equal(module.network.step_sizes, make_module().network.step_sizes)


def test_a_rule_that_is_an_object_leaves_the_checkpoint_plain(make_module, make_data, make_trainer, tmp_path):
    """It loads with `weights_only`, and says if the run goes on with another rule."""
    adapter = StepSizeAdapter(rule=SwitchesRule(floor=0.5))
    trainer = make_trainer(adapter, max_epochs=1)
    trainer.fit(make_module(), datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    states = torch.load(tmp_path / "one.ckpt", weights_only=True)["callbacks"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        StepSizeAdapter(rule=SwitchesRule(floor=0.5)).load_state_dict(states[adapter.state_key])
    with pytest.warns(UserWarning, match=r"saved with rule=.SwitchesRule\(.*floor=0.5"):
        StepSizeAdapter().load_state_dict(states[adapter.state_key])


def test_micro_batches_count_as_one_step(make_module, make_data, make_trainer):
    adapters = []
    modules = []
    for batch_size, accumulate in ((None, 1), (8, 3)):
        module, adapter = make_module(ConstantRate), StepSizeAdapter(every_n_steps=2)
        trainer = make_trainer(adapter, max_epochs=5, accumulate_grad_batches=accumulate)
        trainer.fit(module, datamodule=make_data(batch_size=batch_size))
        adapters.append(adapter.state_dict())
        modules.append(module)
    assert adapters[0]["num_steps"] == adapters[1]["num_steps"] == 5
    torch.testing.assert_close(modules[1].network.step_sizes, modules[0].network.step_sizes, rtol=1e-4, atol=0)


def test_distances_of_a_skipped_step_are_forgotten(make_module, make_data, make_trainer):
    """A scaler that begins too large skips the first steps of an optimizer that is not fused, with its hooks."""

    class Probe(Callback):
        def __init__(self):
            self.left = []

        def on_train_batch_end(self, *args):
            self.left.append(bool(adapter._hook._recorder.sums.any()))

    adapter, probe = StepSizeAdapter(every_n_steps=1), Probe()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    make_trainer(adapter, probe, max_epochs=20, plugins=[precision]).fit(make_module(), datamodule=make_data())
    assert 0 < adapter.state_dict()["num_steps"] < len(probe.left)
    assert not any(probe.left)


def test_validation_batches_do_not_enter(make_module, make_data, make_trainer):
    modules = []
    for limit in (0, 1.0):
        modules.append(make_module())
        trainer = make_trainer(
            StepSizeAdapter(every_n_steps=1), max_epochs=3, limit_val_batches=limit, val_check_interval=1
        )
        trainer.fit(modules[-1], datamodule=make_data(batch_size=8))
    assert torch.equal(modules[0].network.step_sizes, modules[1].network.step_sizes)


def test_logs_the_step_sizes_that_the_step_ran_with(make_module, make_data, make_trainer, tmp_path):
    recorder, logger = Recorder(), CSVLogger(tmp_path)
    trainer = make_trainer(StepSizeAdapter(every_n_steps=1), recorder, logger=logger, max_epochs=4)
    trainer.fit(make_module(), datamodule=make_data())
    rows = rows_of(logger.log_dir)
    keys = [f"step_size/layer_{index:02d}" for index in range(1, 5)]
    assert {key for key in rows[0] if key.startswith("step_size/")} == set(keys)
    assert f"``{keys[0][:-2]}*``" in StepSizeAdapter.__doc__
    logged = [[float(row[key]) for key in keys] for row in rows if row[keys[0]]]
    used = torch.stack([state["network.step_sizes"] for state in recorder.states])
    assert steps_with(rows, keys[0]) == steps_with(rows, "train/loss") == [0, 1, 2, 3]
    torch.testing.assert_close(torch.tensor(logged), used, rtol=1e-5, atol=0)
    assert len(used.unique(dim=0)) == 4


# Checkpoints.


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_fit_equals_an_uninterrupted_one(make_module, make_data, make_trainer, tmp_path, accumulate):
    """Ten epochs at once, and from the checkpoint of the fifth; the period of 3 divides neither."""

    def fit(ckpt_path=None, seed=0):
        module, recorder, adapter = make_module(seed=seed), Recorder(), StepSizeAdapter(every_n_steps=3, damping=0.5)
        checkpoint = ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=5, save_top_k=-1)
        trainer = make_trainer(
            EnergyMonitor(),
            adapter,
            recorder,
            *([] if ckpt_path else [checkpoint]),
            max_epochs=10,
            enable_checkpointing=ckpt_path is None,
            accumulate_grad_batches=accumulate,
        )
        trainer.fit(module, datamodule=make_data(), ckpt_path=ckpt_path)
        return module, recorder.losses, adapter.state_dict()

    module, losses, state = fit()
    resumed, resumed_losses, resumed_state = fit(ckpt_path=tmp_path / "epoch=4.ckpt", seed=9)
    assert len(resumed_losses) == 5
    assert all(map(torch.equal, resumed_losses, losses[5:]))
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in module.state_dict().items())
    assert torch.equal(resumed_state["step_sizes"], state["step_sizes"])
    assert resumed_state["num_steps"] == state["num_steps"] == 10


@pytest.fixture
def adapted(make_module, make_data, make_trainer, tmp_path):
    """A module after adaptation, and its checkpoint."""
    module = make_module()
    trainer = make_trainer(StepSizeAdapter(every_n_steps=1), EnergyMonitor(), max_epochs=3)
    trainer.fit(module, datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "adapted.ckpt")
    assert not torch.equal(module.network.step_sizes, make_module().network.step_sizes)
    return module, tmp_path / "adapted.ckpt"


def test_a_checkpoint_brings_back_the_adapted_network(adapted):
    module, path = adapted
    loaded = LeakyResNetModule.load_from_checkpoint(path)
    inputs = torch.randn(5, 3)
    assert torch.equal(loaded.network.step_sizes, module.network.step_sizes)
    assert torch.equal(loaded(inputs), module(inputs))


def test_a_checkpoint_loads_without_the_callbacks(adapted, make_module, make_data, make_trainer):
    module, path = adapted
    other = make_module(seed=5)
    make_trainer(max_epochs=4).fit(other, datamodule=make_data(), ckpt_path=path)
    assert torch.equal(other.network.step_sizes, module.network.step_sizes)


def test_a_checkpoint_is_tensors_and_plain_values(adapted):
    _, path = adapted
    saved = torch.load(path, weights_only=True)
    assert any(key.startswith("StepSizeAdapter") for key in saved["callbacks"])


def test_other_settings_than_the_saved_ones_are_named(adapted, make_module, make_data, make_trainer):
    """And win: the saved step-sizes and counter go on under them."""
    _, path = adapted
    adapter = StepSizeAdapter(every_n_steps=1, damping=0.25)
    with pytest.warns(
        UserWarning, match="checkpoint was saved with damping=0.1; the run goes on with .*'damping': 0.25"
    ):
        make_trainer(adapter, max_epochs=4).fit(make_module(), datamodule=make_data(), ckpt_path=path)
    assert adapter.state_dict()["settings"]["damping"] == 0.25


def test_each_fit_counts_its_own_steps(make_module, make_data, make_trainer):
    adapter = StepSizeAdapter(every_n_steps=2)
    for _ in range(2):
        make_trainer(adapter, max_epochs=3).fit(make_module(), datamodule=make_data())
        assert adapter.state_dict()["num_steps"] == 3


@pytest.mark.parametrize("late", [False, True])
def test_a_state_can_come_before_or_after_the_start_of_the_fit(make_module, make_data, make_trainer, late):
    """Strategies that shard restore late."""
    first = StepSizeAdapter(every_n_steps=2)
    make_trainer(first, max_epochs=3).fit(make_module(), datamodule=make_data())
    state = copy.deepcopy(first.state_dict())
    second = StepSizeAdapter(every_n_steps=2)

    class Restore(Callback):
        def on_train_start(self, trainer, pl_module):
            if late:
                second.load_state_dict(state)

    if not late:
        second.load_state_dict(state)
    make_trainer(second, Restore(), max_epochs=2).fit(make_module(), datamodule=make_data())
    assert second.state_dict()["num_steps"] == 5


def test_two_adapters_have_their_own_keys():
    assert StepSizeAdapter(optimizer_index=0).state_key != StepSizeAdapter(optimizer_index=1).state_key


# Of several paths.


class Teacher(LeakyResNetModule):
    """A network that learns, and a longer one that follows or stands still."""

    freezes = True

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.a_teacher = LeakyResNet(3, 2, 6, 7, 2.0).requires_grad_(not self.freezes)

    def training_step(self, batch, batch_idx):
        self.a_teacher(batch[0])
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.Adam(self.network.parameters() if not self.freezes else self.parameters(), lr=1e-2)


class MomentumEncoder(Teacher):
    """Requires gradients, and is in no optimizer."""

    freezes = False


@pytest.mark.parametrize("cls", [Teacher, MomentumEncoder])
def test_what_is_not_trained_steps_aside(make_module, make_data, make_trainer, cls):
    module, alone = make_module(cls), make_module(ConstantRate)
    for one in (module, alone):
        make_trainer(StepSizeAdapter(every_n_steps=1)).fit(one, datamodule=make_data())
    assert torch.equal(module.a_teacher.step_sizes, torch.full((7,), 1 / 7))
    assert torch.equal(module.network.step_sizes, alone.network.step_sizes)
    assert not torch.equal(module.network.step_sizes, make_module().network.step_sizes)


def two_adapters(module):
    """One by name, one by module."""
    settings = {"every_n_steps": 2, "damping": 0.3}
    return [
        StepSizeAdapter(**settings, path="one", optimizer_index=0, prefix="one/"),
        StepSizeAdapter(**settings, path=module.other, optimizer_index=1, prefix="other/"),
    ]


def test_two_adapters_adapt_two_networks_as_each_would_alone(make_data, make_trainer, tmp_path):
    """With log keys of their own, each with the step-sizes of its network."""
    module, recorder, logger = TwoNetworks(), Recorder(), CSVLogger(tmp_path)
    make_trainer(*two_adapters(module), recorder, logger=logger, max_epochs=4).fit(module, datamodule=make_data())
    twin = TwoNetworks()
    hooks = []
    for name, optimizer in zip(("one", "other"), twin.configure_optimizers(), strict=True):
        network = getattr(twin, name)
        hooks.append(StepSizeHook(network, every_n_steps=2, damping=0.3).attach(optimizer))
        for [(inputs, targets)] in recorder.batches:
            optimizer.zero_grad()
            (network(inputs) - targets).square().mean().backward()
            optimizer.step()
        found = getattr(module, name).step_sizes
        assert torch.equal(found, network.step_sizes)
        assert float(found.std()) > 1e-3
        keys = [f"{name}/step_size/layer_{index:02d}" for index in range(1, 5)]
        logged = [[float(row[key]) for key in keys] for row in rows_of(logger.log_dir) if row[keys[0]]]
        used = torch.stack([state[f"{name}.step_sizes"] for state in recorder.states])
        torch.testing.assert_close(torch.tensor(logged), used, rtol=1e-5, atol=0)


def test_two_adapters_are_restored_each_its_own(make_data, make_trainer, tmp_path):
    """In another process, where the module that one was given is another object."""
    module = TwoNetworks()
    trainer = make_trainer(*two_adapters(module), max_epochs=3)
    trainer.fit(module, datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "both.ckpt")
    torch.load(tmp_path / "both.ckpt", weights_only=True)
    again = TwoNetworks()
    adapters = two_adapters(again)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Be aware that when using `ckpt_path`")
        make_trainer(*adapters, max_epochs=4).fit(again, datamodule=make_data(), ckpt_path=tmp_path / "both.ckpt")
    for adapter, name in zip(adapters, ("one", "other"), strict=True):
        assert adapter.state_dict()["num_steps"] == 4
        assert torch.equal(adapter.state_dict()["step_sizes"].float(), getattr(again, name).step_sizes)


def test_the_path_of_the_optimizer_that_is_followed_needs_no_name(make_data, make_trainer):
    module = TwoNetworks()
    make_trainer(StepSizeAdapter(every_n_steps=1, optimizer_index=1)).fit(module, datamodule=make_data())
    assert torch.equal(module.one.step_sizes, torch.full((4,), 0.25))
    assert float(module.other.step_sizes.std()) > 1e-3


def test_of_two_paths_of_one_optimizer_one_must_be_named(make_data, make_trainer):
    class OneOptimizer(TwoNetworks):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-2)

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward((self.one(batch[0]) + self.other(batch[0])).square().mean())
            optimizer.step()

    with pytest.raises(ValueError, match=r"`path` must say which of \['one', 'other'\] .* path='one'"):
        make_trainer(StepSizeAdapter()).fit(OneOptimizer(), datamodule=make_data())
    module = OneOptimizer()
    make_trainer(StepSizeAdapter(every_n_steps=1, path="one")).fit(module, datamodule=make_data())
    assert float(module.one.step_sizes.std()) > 1e-3
    assert torch.equal(module.other.step_sizes, torch.full((4,), 0.25))


def test_two_adapters_under_the_same_keys_are_warned_of(make_data, make_trainer):
    adapters = [StepSizeAdapter(path=name, optimizer_index=number) for number, name in enumerate(("one", "other"))]
    with pytest.warns(UserWarning, match="Several StepSizeAdapters have the `prefix` ''"):
        make_trainer(*adapters).fit(TwoNetworks(), datamodule=make_data())


def test_a_configuration_names_the_path():
    adapter = configured({"class_path": "lightning_leaky.StepSizeAdapter", "init_args": {"path": "*.network"}})
    assert adapter.settings["path"] == "*.network"
    assert adapter.state_key != StepSizeAdapter().state_key


# Steps in other steps.


def test_half_steps_in_manual_optimization_are_followed(make_module, make_data, make_trainer):
    """Two passes a batch; only the second half ends in a `step()`, that of the optimizer inside."""

    class Sharp(LeakyResNetModule):
        automatic_optimization = False

        def configure_optimizers(self):
            return SAM(self.parameters(), lr=1e-2)

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            for half in (optimizer.first_step, optimizer.second_step):
                optimizer.zero_grad()
                self.manual_backward(self.step(batch, "train"))
                half()

    module, adapter, recorder = make_module(Sharp), StepSizeAdapter(every_n_steps=1), Recorder()
    recorder.on_train_batch_end = lambda *args: None
    make_trainer(adapter, recorder, max_epochs=3).fit(module, datamodule=make_data())
    assert adapter.state_dict()["num_steps"] == 3
    twin = make_module(Sharp)
    optimizer = twin.configure_optimizers()
    StepSizeHook(twin, every_n_steps=1).attach(optimizer.base_optimizer)
    for [(inputs, targets)] in recorder.batches:
        for half in (optimizer.first_step, optimizer.second_step):
            optimizer.zero_grad()
            twin.loss(twin(inputs), targets).backward()
            half()
    assert torch.equal(module.network.step_sizes, twin.network.step_sizes)
    assert float(module.network.step_sizes.std()) > 1e-3


# What it leaves behind, and what it refuses.


def test_the_optimizer_is_left_without_hooks(make_module, make_data, make_trainer):
    optimizers, during = [], []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, *args):
            optimizers.append(trainer.optimizers[0])
            during.append(len(optimizers[0]._optimizer_step_post_hooks))

    trainer = make_trainer(StepSizeAdapter(), Watch())
    trainer.fit(make_module(), datamodule=make_data())
    assert during == [1, 1]
    assert len(optimizers[0]._optimizer_step_post_hooks) == 0


@pytest.mark.parametrize(("index", "expected_steps"), [(0, 2), (1, 4)])
def test_follows_the_designated_optimizer(make_module, make_data, make_trainer, index, expected_steps):
    adapter = StepSizeAdapter(every_n_steps=1, optimizer_index=index)
    module = make_module(TwoOptimizers)
    make_trainer(adapter).fit(module, datamodule=make_data())
    assert adapter.state_dict()["num_steps"] == expected_steps
    assert not torch.equal(module.network.step_sizes, make_module().network.step_sizes)


@pytest.mark.parametrize("index", [None, 2, -1])
def test_several_optimizers_want_a_valid_index(make_module, make_data, make_trainer, index):
    trainer = make_trainer(StepSizeAdapter(optimizer_index=index))
    with pytest.raises(ValueError, match="`optimizer_index`"):
        trainer.fit(make_module(TwoOptimizers), datamodule=make_data())


def test_a_model_without_step_sizes_is_refused(make_module, make_data, make_trainer):
    class Plain(LeakyResNetModule):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            self.network = torch.nn.Linear(3, 2)

        def loss(self, outputs, targets):
            return self.cost(outputs, targets)

    with pytest.raises(ValueError, match="step-sizes"):
        make_trainer(StepSizeAdapter()).fit(make_module(Plain), datamodule=make_data())


def test_an_infeasible_bound_is_refused_at_the_start(make_module, make_data, make_trainer):
    recorder = Recorder()
    with pytest.raises(ValueError, match="`max_leak`"):
        make_trainer(StepSizeAdapter(max_leak=0.4), recorder).fit(make_module(), datamodule=make_data())
    assert recorder.losses == []


def test_wrong_arguments_are_named_at_once():
    with pytest.raises(ValueError, match="`damping`"):
        StepSizeAdapter(damping=0.0)


# Its settings are those of the hook, on the command line too.


def test_arguments_may_be_given_by_place():
    assert StepSizeAdapter(3, 0.5).settings == StepSizeAdapter(every_n_steps=3, damping=0.5).settings


def test_the_command_line_knows_every_setting_with_its_help():
    parser = ArgumentParser()
    arguments = parser.add_class_arguments(StepSizeAdapter)
    defaults = {"optimizer_index": None, "prefix": "", "allow_untested": False}
    assert set(arguments) == {field.name for field in fields(AdaptationSettings)} | {*defaults}
    assert all(action.help for action in parser._actions if action.dest in arguments)
    assert parser.get_defaults().as_dict() == StepSizeAdapter().settings | defaults


def configured(section):
    """The adapter of a section of a configuration."""
    parser = ArgumentParser()
    parser.add_subclass_arguments(Callback, "callback")
    return parser.instantiate_classes(parser.parse_object({"callback": section})).callback


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_configuration_brings_layout_and_mask():
    told = {"layout": {"axes": "tnc"}, "padding_mask": "mask", "rule": "switches"}
    adapter = configured({"class_path": "lightning_leaky.StepSizeAdapter", "init_args": told})
    assert adapter.settings == StepSizeAdapter(**(told | {"layout": Layout("tnc")})).settings


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_a_version_with_fewer_settings_has_written_loads():
    """Its configuration, and its checkpoint without a warning about settings that it did not have."""
    callbacks = yaml.safe_load((DATA / "written_by_flat_package.yaml").read_text())["trainer"]["callbacks"]
    adapter = configured(next(one for one in callbacks if one["class_path"] == "lightning_leaky.StepSizeAdapter"))
    states = torch.load(DATA / "written_by_flat_package.pt", weights_only=True)["callbacks"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter.load_state_dict(states[adapter.state_key])
    with pytest.warns(UserWarning, match="saved with rule='switches'; the run goes on"):
        StepSizeAdapter(every_n_steps=2).load_state_dict(states[adapter.state_key])


def test_objects_among_the_settings_are_the_same_in_another_run(make_module, make_data, make_trainer, tmp_path):
    """By what they print, which is without their address."""

    class Nameless(SwitchesRule):
        __repr__ = object.__repr__

    def adapter():
        return StepSizeAdapter(rule=Nameless(), layout=Layout("nc"), padding_mask=lambda batch: None)

    trainer = make_trainer(adapter(), max_epochs=1)
    trainer.fit(make_module(), datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    states = torch.load(tmp_path / "one.ckpt", weights_only=True)["callbacks"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter().load_state_dict(states[adapter().state_key])


@pytest.mark.parametrize(("use_buffers", "expected"), [(True, 1), (False, 0)])
def test_averaging_of_buffers_is_warned_of(make_module, make_data, make_trainer, use_buffers, expected):
    averaging = WeightAveraging(use_buffers=use_buffers)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer(StepSizeAdapter(), averaging).fit(make_module(), datamodule=make_data())
    assert len([one for one in caught if "`use_buffers=False`" in str(one.message)]) == expected
