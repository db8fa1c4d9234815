"""LayerRefiner: layers come and go in a trainer, beside the other callbacks, and a resumed run does not notice."""

import copy
import pickle
import warnings
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy

from lightning_leaky import EnergyMonitor, LayerRefiner, LeakyResNetModule, StepSizeAdapter
from lightning_leaky.callbacks.layer_refiner import check_trainer
from lightning_leaky.refining import RefinementSettings, discretisation_errors, refined_step_sizes, refinement_hook
from tests.callbacks.helpers import (
    ConstantRate,
    NoisyModule,
    Recorder,
    TwoNetworks,
    TwoOptimizers,
    rows_of,
    steps_with,
)

SPLITS = {"tolerance": 1e-3, "every_n_steps": 2, "start_step": 2, "max_layers": 24}
"""4, 8, 16 and 24 layers after 0, 2, 4 and 6 steps."""


class Lengths(Callback):
    """Keeps the number of layers that each batch runs with, and whether they belong together."""

    def __init__(self):
        self.lengths, self.ids = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.lengths.append(len(pl_module.network.layers))
        held = [id(parameter) for group in trainer.optimizers[0].param_groups for parameter in group["params"]]
        assert held == [id(parameter) for parameter in pl_module.parameters() if parameter.requires_grad]


class Groups(LeakyResNetModule):
    """The layers learn at another rate than the maps, both under a schedule."""

    def configure_optimizers(self):
        maps = [*self.network.input_map.parameters(), *self.network.output_map.parameters()]
        optimizer = torch.optim.AdamW(
            [{"params": maps, "lr": 1e-2}, {"params": self.network.layers.parameters(), "weight_decay": 0.1}], lr=2e-2
        )
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=2)]


def test_layers_are_those_that_the_tolerance_asks_for(make_module, make_data, make_trainer):
    """Each refinement by hand: the errors of the batch, the new mesh, the network's own `remesh`."""
    module, recorder = make_module(ConstantRate), Recorder()
    make_trainer(LayerRefiner(**SPLITS), recorder, max_epochs=5).fit(module, datamodule=make_data())
    twin = make_module(ConstantRate)
    optimizer = twin.configure_optimizers()
    for step, [(inputs, targets)] in enumerate(recorder.batches, start=1):
        optimizer.zero_grad()
        twin.loss(twin(inputs), targets).backward()
        errors = discretisation_errors(twin.network.representations(inputs).detach(), twin.network.step_sizes)
        optimizer.step()
        if step % 2 == 0:
            twin.network.remesh(refined_step_sizes(twin.network.step_sizes, errors, 1e-3, 24), optimizer)
    assert len(module.network.layers) == 16
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_micro_batches_and_their_whole_are_refined_alike(make_module, make_data, make_trainer):
    meshes = []
    for batch_size, accumulate in ((None, 1), (8, 3)):
        module, lengths = make_module(ConstantRate), Lengths()
        trainer = make_trainer(
            LayerRefiner(tolerance=0.2, every_n_steps=2, start_step=2),
            lengths,
            max_epochs=8,
            accumulate_grad_batches=accumulate,
        )
        trainer.fit(module, datamodule=make_data(batch_size=batch_size))
        assert lengths.lengths[::accumulate] == lengths.lengths[accumulate - 1 :: accumulate]
        meshes.append(module.network.step_sizes)
    assert len(meshes[0]) > 4
    torch.testing.assert_close(meshes[0], meshes[1])


def test_training_ends_below_the_tolerance(make_module, make_data, make_trainer, tmp_path):
    logger = CSVLogger(tmp_path)
    trainer = make_trainer(LayerRefiner(0.2, every_n_steps=10, start_step=10), max_epochs=150, logger=logger)
    trainer.fit(make_module(), datamodule=make_data())
    errors = [float(row["discretisation_error"]) for row in rows_of(logger.log_dir) if row["discretisation_error"]]
    assert errors[0] > 0.2
    assert errors[-1] <= 0.2


def test_layers_that_do_nothing_are_merged(make_module, make_data, make_trainer):
    module = make_module(num_layers=12, effective_depth=0.1, init_noise=0.0, weight_decay=0.0, learning_rate=1e-6)
    make_trainer(LayerRefiner(1.0, 1, 1, min_layers=5), max_epochs=4).fit(module, datamodule=make_data())
    assert len(module.network.layers) == 5


def test_a_refiner_that_finds_nothing_is_not_felt(make_module, make_data, make_trainer):
    runs = []
    for callbacks in ([], [LayerRefiner(1e3, every_n_steps=1, start_step=1, min_layers=4)]):
        module, recorder = make_module(NoisyModule), Recorder()
        make_trainer(*callbacks, recorder, max_epochs=4).fit(module, datamodule=make_data(batch_size=8))
        runs.append((recorder.losses, list(module.parameters()), torch.get_rng_state()))
    assert all(map(torch.equal, runs[0][0], runs[1][0]))
    assert all(map(torch.equal, runs[0][1], runs[1][1]))
    assert torch.equal(runs[0][2], runs[1][2])


def test_period_start_and_stop(make_module, make_data, make_trainer):
    lengths = Lengths()
    refiner = LayerRefiner(1e-3, every_n_steps=2, start_step=3, stop_step=6, max_layers=100)
    make_trainer(refiner, lengths, max_epochs=9).fit(make_module(), datamodule=make_data())
    assert lengths.lengths == [4, 4, 4, 8, 8, 16, 16, 16, 16]
    assert refiner.state_dict() == {"num_steps": 9}


def test_passes_after_backward_do_not_enter(make_module, make_data, make_trainer, tmp_path):
    """Of a batch that is gone through more than once, the first time counts."""

    class Again(LeakyResNetModule):
        def on_after_backward(self):
            self(torch.full((5, 3), 9.0))

    errors = []
    for cls in (LeakyResNetModule, Again):
        trainer = make_trainer(LayerRefiner(0.2, 1, 1), logger=CSVLogger(tmp_path), max_epochs=4)
        trainer.fit(make_module(cls), datamodule=make_data())
        errors.append(trainer.callback_metrics["discretisation_error"])
    assert torch.equal(*errors)


def test_validation_does_not_enter(make_module, make_data, make_trainer):
    meshes = []
    for limit in (0, 1.0):
        module = make_module()
        trainer = make_trainer(LayerRefiner(0.2, 3, 3), max_epochs=4, limit_val_batches=limit, val_check_interval=1)
        trainer.fit(module, datamodule=make_data(batch_size=8))
        meshes.append(module.network.step_sizes)
    assert torch.equal(*meshes)


# Optimizers and schedules.


def test_groups_and_their_rates_stay(make_module, make_data, make_trainer):
    rates, sizes = [], []
    for callbacks in ([], [LayerRefiner(**SPLITS)]):
        module = make_module(Groups)
        trainer = make_trainer(*callbacks, max_epochs=7)
        trainer.fit(module, datamodule=make_data())
        groups = trainer.optimizers[0].param_groups
        rates.append([(group["lr"], group["initial_lr"], group["weight_decay"]) for group in groups])
        sizes.append([len(group["params"]) for group in groups])
        trained = [id(one) for one in groups[1]["params"]]
        assert trained == [id(one) for one in module.network.layers.parameters()]
    assert rates[0] == rates[1]
    assert sizes == [[2, 8], [2, 48]]


def test_follows_the_optimizer_of_the_layers(make_module, make_data, make_trainer):
    """Which steps twice a batch; that counts once."""
    module, refiner = make_module(TwoOptimizers), LayerRefiner(**SPLITS)
    trainer = make_trainer(refiner, max_epochs=4)
    trainer.fit(module, datamodule=make_data())
    assert refiner.state_dict() == {"num_steps": 4}
    assert len(module.network.layers) == 16
    held = [id(one) for one in trainer.optimizers[1].param_groups[0]["params"]]
    assert held == [id(one) for one in module.network.layers.parameters()]


@pytest.mark.parametrize("cls", [ConstantRate, LeakyResNetModule], ids=["not fused", "fused"])
def test_steps_that_fp16_skips_do_not_count(make_module, make_data, make_trainer, cls):
    """A scaler that begins too large skips the first, and one that grows every second step some later ones."""
    refiner, lengths = LayerRefiner(**SPLITS), Lengths()
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=2))
    trainer = make_trainer(refiner, lengths, max_epochs=30, plugins=[precision])
    trainer.fit(make_module(cls), datamodule=make_data())
    taken = int(next(iter(trainer.optimizers[0].state.values()))["step"])
    assert 4 < taken < 25
    assert refiner.state_dict() == {"num_steps": taken}
    assert lengths.lengths.count(4) > 3


class FineTuner(LearningRateFinder):
    """Looks for a rate at the start of an epoch, with hooks in place."""

    def on_fit_start(self, *args, **kwargs):
        pass

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            self.lr_find(trainer, pl_module)


@pytest.mark.parametrize("cls", [LearningRateFinder, FineTuner])
def test_trials_of_rates_are_no_steps(make_module, make_data, make_trainer, cls):
    """They add nothing to the counter and change no layers; the fit goes on as before."""
    finder = cls(num_training_steps=10, early_stop_threshold=None)
    lengths, refiner = Lengths(), LayerRefiner(**SPLITS)
    module = make_module()
    make_trainer(finder, refiner, lengths, max_epochs=7).fit(module, datamodule=make_data(batch_size=12))
    assert lengths.lengths[:7] == [4, 4, 8, 8, 16, 16, 24]
    assert refiner.state_dict() == {"num_steps": 14}
    assert len(module.network.layers) == 24


# Logs.


def test_logs_what_the_step_ran_with(make_module, make_data, make_trainer, tmp_path):
    recorder, logger = Recorder(), CSVLogger(tmp_path)
    make_trainer(LayerRefiner(**SPLITS), recorder, logger=logger, max_epochs=5).fit(
        make_module(), datamodule=make_data()
    )
    rows = rows_of(logger.log_dir)
    for key in ("num_layers", "discretisation_error"):
        assert steps_with(rows, key) == steps_with(rows, "train/loss") == [0, 1, 2, 3, 4]
        assert f"``{key}``" in LayerRefiner.__doc__
    assert [float(row["num_layers"]) for row in rows if row["num_layers"]] == [4, 4, 8, 8, 16]
    found = [float(row["discretisation_error"]) for row in rows if row["discretisation_error"]]
    network = make_module().network
    for number, error in enumerate(found):
        network.load_state_dict(
            {name.removeprefix("network."): value for name, value in recorder.states[number].items()}
        )
        path = network.representations(recorder.batch(number)[0]).detach()
        assert error == pytest.approx(float(discretisation_errors(path, network.step_sizes).sum()), rel=1e-4)


def test_logs_at_logging_steps_only(make_module, make_data, make_trainer, tmp_path):
    logger = CSVLogger(tmp_path)
    trainer = make_trainer(
        LayerRefiner(**SPLITS), logger=logger, max_epochs=6, log_every_n_steps=3, accumulate_grad_batches=2
    )
    trainer.fit(make_module(), datamodule=make_data(batch_size=12))
    rows = rows_of(logger.log_dir)
    assert steps_with(rows, "num_layers") == steps_with(rows, "train/loss") == [2, 5]


# Checkpoints.


@pytest.fixture
def fit_and_resume(make_module, make_data, make_trainer, tmp_path):
    """Ten epochs at once, and from the checkpoint of the fifth; that the two are equal."""

    def fit(callbacks, num_layers, accumulate, batch_size, ckpt_path=None):
        module, recorder, lengths = make_module(seed=9 * bool(ckpt_path), num_layers=num_layers), Recorder(), Lengths()
        checkpoint = ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=5, save_top_k=-1)
        trainer = make_trainer(
            *callbacks(),
            recorder,
            lengths,
            *([] if ckpt_path else [checkpoint]),
            max_epochs=10,
            enable_checkpointing=ckpt_path is None,
            accumulate_grad_batches=accumulate,
        )
        trainer.fit(module, datamodule=make_data(batch_size=batch_size), ckpt_path=ckpt_path)
        return module, recorder, lengths.lengths

    def both(callbacks, num_layers=4, accumulate=1, batch_size=None):
        settings = callbacks, num_layers, accumulate, batch_size
        module, recorder, lengths = fit(*settings)
        resumed, again, resumed_lengths = fit(*settings, ckpt_path=tmp_path / "epoch=4.ckpt")
        half = len(lengths) // 2
        assert resumed_lengths == lengths[half:]
        assert len(again.losses) == half
        assert all(map(torch.equal, again.losses, recorder.losses[half:]))
        assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in module.state_dict().items())
        return recorder, lengths

    return both


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("num_layers", "tolerance"), [(4, 1e-3), (16, 20.0)], ids=["splits", "merges"])
def test_a_resumed_fit_equals_an_uninterrupted_one(fit_and_resume, accumulate, num_layers, tolerance):
    """On other layers than the module begins with."""
    settings = {"every_n_steps": 4, "start_step": 4, "max_layers": 24}
    _, lengths = fit_and_resume(
        lambda: [EnergyMonitor(), LayerRefiner(tolerance, **settings)], num_layers, accumulate, batch_size=12
    )
    assert len({num_layers, lengths[10], lengths[-1]}) == 3


@pytest.mark.slow
def test_a_resumed_fit_with_the_step_size_adapter(fit_and_resume):
    """All three callbacks; the adapter moves the layers that there are."""
    adapters = []

    def callbacks():
        adapters.append(StepSizeAdapter(every_n_steps=1, damping=0.3))
        return [EnergyMonitor(), adapters[-1], LayerRefiner(**SPLITS)]

    recorder, lengths = fit_and_resume(callbacks)
    assert lengths == [4, 4, 8, 8, 16, 16, 24, 24, 24, 24]
    for adapter in adapters:
        assert adapter.state_dict()["num_steps"] == 10
        assert len(adapter.state_dict()["step_sizes"]) == 24
    meshes = [state["network.step_sizes"] for state in recorder.states[6:]]
    assert all(float(rho.sum()) == pytest.approx(1, abs=1e-6) for rho in meshes)
    assert not any(map(torch.equal, meshes[:-1], meshes[1:]))


def test_a_checkpoint_brings_back_the_refined_network(make_module, make_data, make_trainer, tmp_path):
    module = make_module()
    trainer = make_trainer(LayerRefiner(**SPLITS), max_epochs=5)
    trainer.fit(module, datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "refined.ckpt")
    torch.load(tmp_path / "refined.ckpt", weights_only=True)
    loaded = LeakyResNetModule.load_from_checkpoint(tmp_path / "refined.ckpt")
    inputs = torch.randn(5, 3)
    assert len(loaded.network.layers) == 16
    assert torch.equal(loaded(inputs), module(inputs))
    make_trainer(max_epochs=6).fit(make_module(), datamodule=make_data(), ckpt_path=tmp_path / "refined.ckpt")


def test_each_fit_counts_its_own_steps(make_module, make_data, make_trainer):
    refiner = LayerRefiner(**SPLITS)
    for _ in range(2):
        make_trainer(refiner, max_epochs=3).fit(make_module(), datamodule=make_data())
        assert refiner.state_dict() == {"num_steps": 3}


def test_a_counter_restored_after_the_start_counts(make_module, make_data, make_trainer):
    """As some strategies restore it."""

    class Restore(Callback):
        def on_train_start(self, trainer, pl_module):
            refiner.load_state_dict({"num_steps": 1})

    refiner, lengths = LayerRefiner(**SPLITS), Lengths()
    make_trainer(refiner, Restore(), lengths, max_epochs=3).fit(make_module(), datamodule=make_data())
    assert lengths.lengths == [4, 8, 8]
    assert refiner.state_dict() == {"num_steps": 4}


# Beside other callbacks.


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_a_monitor_reads_the_layers_that_there_are(make_module, make_data, make_trainer, tmp_path, first):
    """At every step, in training and validation, without changing a loss, on either side of the refiner."""
    heard = []
    for monitor in (None, EnergyMonitor()):
        recorder, lengths, logger = Recorder(monitor), Lengths(), CSVLogger(tmp_path, name=str(monitor is None))
        callbacks = [one for one in (monitor, LayerRefiner(**SPLITS)) if one is not None]
        trainer = make_trainer(
            *(callbacks if first else callbacks[::-1]), recorder, lengths, logger=logger, max_epochs=7
        )
        trainer.fit(make_module(NoisyModule), datamodule=make_data(batch_size=12))
        heard.append(recorder.losses)
    assert all(map(torch.equal, *heard))
    read = [len(readings["cost_of_identity"]) for readings in recorder.readings]
    assert read == lengths.lengths
    assert len(set(read)) == 4
    assert all(readings.is_finite() for readings in recorder.readings)
    assert len(monitor.readings["validate"]["cost_of_identity"]) == 24
    assert steps_with(rows_of(logger.log_dir), "cost_of_identity/min") == list(range(14))


@pytest.mark.parametrize("max_leak", [None, 1.0, 0.5])
def test_merging_keeps_the_leak_of_a_layer_in_bounds(make_module, make_data, make_trainer, max_leak):
    """Below 1, or what an adapter says: of fewer layers it could not keep its bound."""
    module = make_module(num_layers=12, effective_depth=2.0)
    adapters = [] if max_leak is None else [StepSizeAdapter(every_n_steps=1, max_leak=max_leak)]
    make_trainer(*adapters, LayerRefiner(1e3, 1, 1), max_epochs=5).fit(module, datamodule=make_data())
    bound = max_leak or 1.0
    assert 2 / bound <= len(module.network.layers) < 12
    assert bool((2.0 * module.network.step_sizes <= bound + 1e-6).all())


def test_an_estimate_is_summed_once_in_a_step_that_is_logged_and_refined(
    make_module, make_data, make_trainer, tmp_path, monkeypatch
):
    sums = []
    monkeypatch.setattr(refinement_hook, "summed", lambda tensor: sums.append(len(tensor)) or tensor)
    trainer = make_trainer(LayerRefiner(1e3, 2, 2), logger=CSVLogger(tmp_path), max_epochs=4, log_every_n_steps=1)
    trainer.fit(make_module(), datamodule=make_data())
    assert len(sums) == 4


def test_others_are_told_after_the_layers_have_changed(make_module, make_data, make_trainer):
    class Listener(Callback):
        def __init__(self):
            self.told = []

        def on_layers_changed(self, trainer, pl_module):
            self.told.append((trainer.global_step, len(pl_module.network.layers)))

    listener = Listener()
    make_trainer(listener, LayerRefiner(**SPLITS), max_epochs=9).fit(make_module(), datamodule=make_data())
    assert listener.told == [(2, 8), (4, 16), (6, 24)]


def test_follows_layers_that_another_has_changed(make_module, make_data, make_trainer):
    class ByHand(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.global_step == 1:
                pl_module.network.remesh([0.25, 0.25, 0.5], trainer.optimizers[0])
                refiner.on_layers_changed(trainer, pl_module)

    refiner, lengths = LayerRefiner(**SPLITS), Lengths()
    make_trainer(ByHand(), refiner, lengths, max_epochs=3).fit(make_module(), datamodule=make_data())
    assert lengths.lengths == [4, 3, 6]


# Of several paths.


def test_two_refiners_change_two_paths(make_data, make_trainer, tmp_path):
    """Each with its own tolerance, keys and place in a checkpoint."""
    module, logger = TwoNetworks(), CSVLogger(tmp_path)
    refiners = [LayerRefiner(**SPLITS, path="one", prefix="one/"), LayerRefiner(1e3, 2, 2, path=module.other)]
    trainer = make_trainer(*refiners, logger=logger, max_epochs=5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, datamodule=make_data())
    assert not [one for one in caught if "`prefix`" in str(one.message)]
    assert (len(module.one.layers), len(module.other.layers)) == (16, 2)
    rows = rows_of(logger.log_dir)
    logged = {key: [float(row[key]) for row in rows if row[key]] for key in ("one/num_layers", "num_layers")}
    assert logged == {"one/num_layers": [4, 4, 8, 8, 16], "num_layers": [4, 4, 2, 2, 2]}
    trainer.save_checkpoint(tmp_path / "both.ckpt")
    saved = torch.load(tmp_path / "both.ckpt", weights_only=True)["callbacks"]
    keys = ["LayerRefiner{'path': 'one'}", "LayerRefiner{'path': 'other'}"]
    assert [saved[key] for key in keys] == [{"num_steps": 5}] * 2
    assert LayerRefiner(0.1).state_key == "LayerRefiner"


def test_of_two_trained_paths_one_must_be_named(make_data, make_trainer):
    refused(make_trainer(LayerRefiner(0.1)), TwoNetworks(), make_data(), r"`path` must say which .* path='one'")


def test_the_bound_of_an_adapter_on_another_path_is_not_kept(make_data, make_trainer):
    bounds = {}
    for index, path in enumerate(("one", "other")):
        module = TwoNetworks(num_layers=12)
        adapter = StepSizeAdapter(max_leak=0.25, path=path, optimizer_index=index)
        make_trainer(adapter, LayerRefiner(1e3, 1, 1, path="other"), max_epochs=6).fit(module, datamodule=make_data())
        bounds[path] = float(2.0 * module.other.step_sizes.max())
    assert bounds["other"] <= 0.25 + 1e-6 < 0.5 < bounds["one"] <= 1 + 1e-6


# What it leaves behind.


def test_no_hook_is_left(make_module, make_data, make_trainer, hooks_of):
    during = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            during.append((hooks_of(pl_module), len(trainer.optimizers[0]._optimizer_step_post_hooks)))

    module = make_module()
    trainer = make_trainer(LayerRefiner(**SPLITS), Watch(), max_epochs=3)
    trainer.fit(module, datamodule=make_data())
    assert during == [(8, 1), (16, 1), (16, 1)]
    assert hooks_of(module) == 0
    assert len(trainer.optimizers[0]._optimizer_step_post_hooks) == 0


def test_no_hook_is_left_by_an_error(make_module, make_data, make_trainer, hooks_of):
    class Broken(Callback):
        def on_before_backward(self, trainer, *args):
            if trainer.global_step == 3:
                raise RuntimeError("on purpose")

    module = make_module()
    trainer = make_trainer(LayerRefiner(**SPLITS), Broken(), max_epochs=9)
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.fit(module, datamodule=make_data())
    assert len(module.network.layers) == 8
    assert hooks_of(module) == 0


def test_copies_from_the_middle_of_a_fit_can_be_trained(make_module, make_data, make_trainer, hooks_of):
    copies = []

    class Copier(Callback):
        def on_before_backward(self, trainer, pl_module, loss):
            if trainer.global_step == 3:
                copies.append(copy.deepcopy([pl_module, refiner]))
                copies.append(pickle.loads(pickle.dumps([pl_module, refiner])))

    refiner = LayerRefiner(**SPLITS)
    make_trainer(refiner, Copier(), max_epochs=5).fit(make_module(), datamodule=make_data())
    for module, other in copies:
        assert other.state_dict() == {"num_steps": 3}
        before = hooks_of(module)
        make_trainer(other, max_epochs=3, limit_val_batches=0).fit(module, datamodule=make_data())
        assert len(module.network.layers) == 16
        assert hooks_of(module) <= before


def poison(network):
    network.layers[1].weight.data.fill_(float("nan"))


def freeze(network):
    network.eval()


@pytest.mark.parametrize("spoil", [poison, freeze])
def test_layers_that_cannot_be_read_stay_with_one_warning(make_module, make_data, make_trainer, spoil):
    class Spoil(Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            spoil(pl_module.network)

    module = make_module()
    with pytest.warns(UserWarning, match="layers are left as they are") as caught:
        make_trainer(LayerRefiner(**SPLITS), Spoil(), max_epochs=5).fit(module, datamodule=make_data())
    assert len([one for one in caught if "layers are left" in str(one.message)]) == 1
    assert len(module.network.layers) == 4


# Refusals, all before the first step.


def refused(trainer, module, data, match):
    recorder = Recorder()
    trainer.callbacks.append(recorder)
    with pytest.raises(ValueError, match=match):
        trainer.fit(module, datamodule=data)
    assert recorder.losses == []


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        (ModelParallelStrategy(1, 1), "it shards the parameters"),
        (FSDPStrategy(), "it shards the parameters"),
        (type("DeepSpeedStrategy", (DDPStrategy,), {})(), "it shards the parameters"),
        (DDPStrategy(static_graph=True), "static_graph=True promises"),
        (DDPStrategy(ddp_comm_state=object()), "`ddp_comm_state` is of as many"),
    ],
    ids=["FSDP2", "FSDP1", "DeepSpeed", "static graph", "state of gradients"],
)
def test_strategies_that_count_parameters_for_good_are_refused(strategy, reason):
    if isinstance(strategy, ModelParallelStrategy):
        strategy._device_mesh = {"tensor_parallel": SimpleNamespace(size=lambda: 1)}
    with pytest.raises(ValueError, match=f"`strategy` must .* got {type(strategy).__name__}: {reason}"):
        check_trainer(SimpleNamespace(strategy=strategy, world_size=2, callbacks=[]))


def test_a_compiled_module_is_refused(make_module, make_data, make_trainer):
    module = torch.compile(make_module(), backend="eager")
    refused(make_trainer(LayerRefiner(0.1)), module, make_data(), "must not be compiled")


@pytest.mark.parametrize(
    "make", [lambda: EMAWeightAveraging(decay=0.9), lambda: StochasticWeightAveraging(0.05)], ids=["EMA", "SWA"]
)
def test_averaging_is_refused(make_module, make_data, make_trainer, make):
    refused(make_trainer(LayerRefiner(0.1), make()), make_module(), make_data(), "must not average the weights")


def test_what_the_hook_refuses_is_refused(make_module, make_data, make_trainer):
    class Part(LeakyResNetModule):
        def configure_optimizers(self):
            return torch.optim.SGD(self.network.layers[:2].parameters(), lr=1e-2)

    refused(make_trainer(LayerRefiner(0.1)), make_module(Part), make_data(), "`optimizers` must be one that trains")
    refused(make_trainer(LayerRefiner(0.1)), make_module(num_layers=1), make_data(), "`num_layers` must be at least 2")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("tolerance", {"tolerance": 0.0}),
        ("every_n_steps", {"every_n_steps": 0}),
        ("start_step", {"start_step": 0}),
        ("stop_step", {"start_step": 3, "stop_step": 2}),
        ("max_layers", {"max_layers": 1}),
        ("min_layers", {"min_layers": 0}),
    ],
)
def test_wrong_arguments_are_named_at_once(name, settings):
    with pytest.raises(ValueError, match=f"`{name}`"):
        LayerRefiner(**({"tolerance": 0.1} | settings))


def test_every_argument_can_be_set_from_yaml():
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--callback", type=Callback)
    settings = {"tolerance": 0.1, "every_n_steps": 3, "start_step": 2, "stop_step": 9, "max_layers": 7, "min_layers": 3}
    settings |= {"path": "student.*"}
    assert set(settings) == {field.name for field in fields(RefinementSettings)}
    told = settings | {"prefix": "student/"}
    found = parser.parse_object({"callback": {"class_path": "lightning_leaky.LayerRefiner", "init_args": told}})
    refiner = parser.instantiate_classes(found).callback
    assert (refiner.settings, refiner.prefix) == (settings, "student/")
