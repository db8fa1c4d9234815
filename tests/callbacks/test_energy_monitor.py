"""EnergyMonitor: what it reads, when, where it writes, and that training does not feel it."""

import copy
import math
import pickle
import re
import warnings

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

from lightning_leaky import EnergyMonitor, KNorm, LeakyResNetModule, StepSizeAdapter
from lightning_leaky.functional import (
    energy_hamiltonian,
    hamiltonian,
    objective_weight_decay,
    velocity,
)
from tests.blocks import effective_dimension, linear
from tests.callbacks.helpers import (
    ALL,
    ENERGIES,
    MOMENTA,
    OF_PARAMETERS,
    NoisyModule,
    Recorder,
    path_by_hand,
    readings_by_hand,
    rows_of,
    steps_with,
)


def documented_keys(num_layers: int) -> set[str]:
    """Keys in the table of EnergyMonitor's docstring, written out for so many layers; ranks are not always logged."""
    names = re.findall(r"^\s*(?:\| )?``([^`]+/[^`]+)``\s", EnergyMonitor.__doc__, flags=re.MULTILINE)
    assert names
    layers = [f"layer_{index:02d}" for index in range(1, num_layers + 1)]
    keys = {name.replace("layer_*", layer) for name in names for layer in layers}
    assert {"rank/lower", "rank/upper"} <= keys
    return {key for key in keys if not key.startswith("rank/")}


def assert_equal_readings(readings, expected, tolerance):
    """Every reading that was taken equals the one by hand."""
    assert readings.quantities
    for name, values in readings.quantities.items():
        torch.testing.assert_close(
            values,
            expected[name].detach(),
            rtol=tolerance,
            atol=tolerance,
            msg=lambda text, name=name: f"{name}: {text}",
        )


# Training is not touched.


@pytest.mark.parametrize("accumulate", [1, 3])
def test_training_does_not_feel_the_monitor(make_module, make_data, make_trainer, accumulate):
    runs = []
    for monitors in ([], [EnergyMonitor(quantities=ALL)]):
        module, recorder = make_module(NoisyModule), Recorder()
        trainer = make_trainer(
            *monitors, recorder, max_epochs=3, accumulate_grad_batches=accumulate, num_sanity_val_steps=2
        )
        trainer.fit(module, datamodule=make_data(batch_size=8))
        runs.append((recorder.losses, module.state_dict(), torch.get_rng_state()))
    (losses, state, random_state), (watched_losses, watched_state, watched_random_state) = runs
    assert len(losses) == 9
    assert all(map(torch.equal, losses, watched_losses))
    assert all(torch.equal(value, watched_state[name]) for name, value in state.items())
    assert torch.equal(random_state, watched_random_state)


# Readings of training batches.


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(("precision", "tolerance"), [("64-true", 1e-10), ("32-true", 1e-4)])
def test_training_readings_equal_those_by_hand(make_module, make_data, make_trainer, accumulate, precision, tolerance):
    """Of the weights before the step, and of all micro-batches (here of equal size) as of one batch."""
    monitor = EnergyMonitor(quantities=ALL)
    recorder = Recorder(monitor)
    trainer = make_trainer(monitor, recorder, precision=precision, accumulate_grad_batches=accumulate)
    trainer.fit(make_module(), datamodule=make_data(batch_size=8))
    assert len(recorder.readings) == 6 // accumulate
    dtype = torch.float64 if precision == "64-true" else torch.float32
    for number, readings in enumerate(recorder.readings):
        then = make_module().to(dtype)
        then.load_state_dict(recorder.states[number])
        assert_equal_readings(readings, readings_by_hand(then, *recorder.batch(number)), tolerance)
        torch.testing.assert_close(readings.step_sizes, then.network.step_sizes.double())


@pytest.mark.parametrize(("settings", "k_norm"), [({"gamma": 0.5}, KNorm(0.5)), ({"gamma_rel": 0.1}, KNorm(None, 0.1))])
def test_the_stabiliser_is_the_one_asked_for(make_module, make_data, make_trainer, settings, k_norm):
    monitor = EnergyMonitor(quantities=ENERGIES, **settings)
    module, data = make_module(), make_data()
    recorder = Recorder(monitor)
    make_trainer(monitor, recorder, precision="64-true", max_epochs=1).fit(module, datamodule=data)
    then = make_module().double()
    then.load_state_dict(recorder.states[0])
    assert_equal_readings(recorder.readings[0], readings_by_hand(then, *recorder.batch(0), k_norm), 1e-10)


def test_a_cost_summed_over_samples_is_read_with_loss_reduction_sum(make_module, make_data, make_trainer):
    """Three micro-batches of unequal size: the momenta of a sum just add up."""

    class Summed(LeakyResNetModule):
        def cost(self, outputs, targets):
            return (outputs - targets).square().sum()

    monitor = EnergyMonitor(quantities=MOMENTA, loss_reduction="sum")
    recorder = Recorder(monitor)
    trainer = make_trainer(monitor, recorder, precision="64-true", accumulate_grad_batches=3, max_epochs=1)
    trainer.fit(make_module(Summed), datamodule=make_data(batch_size=10))
    assert [len(inputs) for inputs, _ in recorder.batches[0]] == [10, 10, 4]
    then = make_module(Summed).double()
    then.load_state_dict(recorder.states[0])
    assert_equal_readings(recorder.readings[0], readings_by_hand(then, *recorder.batch(0)), 1e-10)


def test_unequal_micro_batches_of_a_mean_are_weighted_by_their_samples(make_module, make_data, make_trainer):
    """Each micro-batch's mean counts for its samples, as in one mean over all of them."""
    monitor = EnergyMonitor(quantities=MOMENTA)
    recorder = Recorder(monitor)
    trainer = make_trainer(monitor, recorder, precision="64-true", accumulate_grad_batches=3, max_epochs=1)
    trainer.fit(make_module(), datamodule=make_data(batch_size=10))
    then = make_module().double()
    then.load_state_dict(recorder.states[0])
    assert_equal_readings(recorder.readings[0], readings_by_hand(then, *recorder.batch(0)), 1e-10)


def test_weight_decay_given_to_the_monitor_wins(make_module, make_data, make_trainer):
    """B is inversely proportional to λ."""
    norms = []
    for weight_decay in (None, 0.4):
        monitor = EnergyMonitor(quantities=["momentum_norm"], weight_decay=weight_decay)
        make_trainer(monitor, max_epochs=1).fit(make_module(weight_decay=0.1), datamodule=make_data())
        norms.append(monitor.readings["train"]["momentum_norm"])
    torch.testing.assert_close(norms[0], 4 * norms[1])


@pytest.mark.parametrize("own", [0.1, 0.0])
def test_a_weight_decay_of_the_optimizer_is_added_to_that_of_the_module(make_module, make_data, make_trainer, own):
    """Both act on the W_l: d on each, λρ_l/L̃ by the loss. B is inversely proportional to their sum."""

    class Twice(LeakyResNetModule):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-3, weight_decay=0.02)

    monitor = EnergyMonitor(quantities=["momentum_norm"])
    alone = EnergyMonitor(quantities=["momentum_norm"], weight_decay=1.0, prefix="alone/")
    trainer, module = make_trainer(monitor, alone, max_epochs=1), make_module(Twice, weight_decay=own)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, datamodule=make_data())
    expected = own + objective_weight_decay(0.02, 4, 2.0, acts_per_layer=False)
    norms = [one.readings["train"]["momentum_norm"] for one in (alone, monitor)]
    torch.testing.assert_close(norms[0] / norms[1], torch.full_like(norms[0], expected))
    assert len([one for one in caught if "one is too many" in str(one.message)]) == (1 if own else 0)


def test_without_weight_decay_the_default_reads_no_momenta(make_module, make_data, make_trainer):
    monitor = EnergyMonitor()
    make_trainer(monitor, max_epochs=1).fit(make_module(weight_decay=0.0), datamodule=make_data())
    assert not set(MOMENTA) & set(monitor.readings["train"].quantities)
    assert "cost_of_identity" in monitor.readings["train"].quantities


@pytest.mark.parametrize("every_n_steps", [2, 4])
def test_reads_every_n_optimizer_steps(make_module, make_data, make_trainer, every_n_steps):
    monitor = EnergyMonitor(every_n_steps=every_n_steps, on_validation=False)
    recorder = Recorder(monitor)
    make_trainer(monitor, recorder, max_epochs=8).fit(make_module(), datamodule=make_data())
    readings = [None, *recorder.readings]
    fresh = [number for number in range(1, 9) if readings[number] is not readings[number - 1]]
    assert fresh == list(range(every_n_steps, 9, every_n_steps))


def test_mixed_precision_reads_finite_values(make_module, make_data, make_trainer):
    """bf16 carries 8 bits: readings near those of full precision, computed outside autocast."""
    readings = []
    for precision in ("bf16-mixed", "32-true"):
        monitor = EnergyMonitor()
        make_trainer(monitor, precision=precision, max_epochs=1).fit(make_module(), datamodule=make_data())
        assert monitor.readings["train"].is_finite()
        assert monitor.readings["validate"].is_finite()
        readings.append(monitor.readings["train"])
    for name in ("cost_of_identity", "hamiltonian"):
        torch.testing.assert_close(readings[0][name], readings[1][name], rtol=0.1, atol=0.1)


def test_the_gradient_scaler_is_undone(make_module, make_data, make_trainer):
    """fp16 gradients reach the hooks multiplied by the scale."""
    readings = []
    for scale in (2.0**4, 2.0**12):
        monitor, adapter = EnergyMonitor(quantities=MOMENTA), StepSizeAdapter(every_n_steps=1)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        make_trainer(monitor, adapter, plugins=[MixedPrecision("16-mixed", "cpu", scaler)]).fit(
            make_module(), datamodule=make_data()
        )
        assert adapter.state_dict()["num_steps"] == 2
        readings.append(monitor.readings["train"])
    assert_equal_readings(readings[1], readings[0].quantities, 1e-2)


def test_overflowing_steps_are_no_steps(make_module, make_data, make_trainer):
    """The scaler finds infinite gradients and skips every step: nothing adapts, and the momenta read as they are."""
    module, adapter = make_module(), StepSizeAdapter(every_n_steps=1)
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**40))
    monitor = EnergyMonitor(quantities=["hamiltonian"])
    make_trainer(monitor, adapter, plugins=[precision]).fit(module, datamodule=make_data())
    assert adapter.state_dict()["num_steps"] == 0
    assert torch.equal(module.network.step_sizes, make_module().network.step_sizes)
    assert not monitor.readings["train"].is_finite()


def test_manual_optimization_is_read_before_the_step(make_module, make_data, make_trainer):
    class Manual(LeakyResNetModule):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            loss = self.step(batch, "train")
            self.manual_backward(loss)
            optimizer.step()
            return loss

    class Unscheduled(Manual):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    monitor = EnergyMonitor(quantities=ALL)
    recorder = Recorder(monitor)
    make_trainer(monitor, recorder, precision="64-true").fit(make_module(Unscheduled), datamodule=make_data())
    assert len(recorder.readings) == 2
    for number, readings in enumerate(recorder.readings):
        then = make_module().double()
        then.load_state_dict(recorder.states[number])
        assert_equal_readings(readings, readings_by_hand(then, *recorder.batch(number)), 1e-10)


def test_of_several_closures_in_one_step_the_first_is_read(make_module, make_data, make_trainer):
    """LBFGS moves the weights between its forward passes; the reading is of those the step started from."""

    class Lbfgs(LeakyResNetModule):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=4)

    monitor = EnergyMonitor(quantities=ALL)
    recorder = Recorder(monitor)
    make_trainer(monitor, recorder, precision="64-true").fit(make_module(Lbfgs), datamodule=make_data())
    then = make_module().double()
    then.load_state_dict(recorder.states[1])
    assert_equal_readings(recorder.readings[1], readings_by_hand(then, *recorder.batch(1)), 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_compiled_network_reads_like_an_eager_one(make_module, make_data, make_trainer, fullgraph):
    readings = []
    for compiled in (False, True):
        torch._dynamo.reset()
        module, monitor = make_module(), EnergyMonitor(quantities=ALL, precision="high")
        if compiled:
            module.network.compile(backend="aot_eager", fullgraph=fullgraph)
        trainer = make_trainer(monitor, StepSizeAdapter(every_n_steps=1), log_every_n_steps=2, max_epochs=4)
        trainer.fit(module, datamodule=make_data())
        readings.append(monitor.readings)
    for stage in ("train", "validate"):
        assert_equal_readings(readings[1][stage], readings[0][stage].quantities, 1e-5)


def test_no_batch_is_held_from_one_reading_to_the_next(make_module, make_data, make_trainer):
    """Of a single process it is read without a copy: kept, it would hold the activations of a step."""
    held = []

    class Watch(Callback):
        def on_readings(self, trainer, pl_module, monitor, stage):
            if stage == "train":
                held.extend(store.samples_in_bytes for store in monitor.observers["train"]._reader.stores)

    make_trainer(EnergyMonitor(quantities=ALL), Watch(), log_every_n_steps=1).fit(make_module(), datamodule=make_data())
    assert held
    assert not any(held)


# Readings of whole data sets.


def test_validation_and_test_readings_are_those_of_the_whole_set(make_module, make_data, make_trainer):
    """Batches of 4, the last one smaller."""
    module, data, monitor = make_module(), make_data(batch_size=4), EnergyMonitor(quantities=ALL)
    trainer = make_trainer(monitor, precision="64-true")
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data)
    module.double()
    for stage, split in (("validate", "val"), ("test", "test")):
        inputs, targets = (tensor.double() for tensor in data.splits[split].tensors)
        assert len(inputs) % 4
        assert set(monitor.readings[stage].quantities) == set(ALL) - {*OF_PARAMETERS, *MOMENTA}
        assert_equal_readings(monitor.readings[stage], readings_by_hand(module, inputs, targets), 1e-10)


@pytest.mark.parametrize(("stage", "split"), [("validate", "val"), ("test", "test")])
def test_evaluation_without_a_fit(make_module, make_data, make_trainer, hooks_of, stage, split):
    module, data, monitor = make_module(), make_data(batch_size=4), EnergyMonitor()
    trainer = make_trainer(monitor, precision="64-true")
    (logged,) = getattr(trainer, stage)(module, datamodule=data, verbose=False)
    inputs, targets = (tensor.double() for tensor in data.splits[split].tensors)
    assert_equal_readings(monitor.readings[stage], readings_by_hand(module.double(), inputs, targets), 1e-10)
    smallest = float(monitor.readings[stage]["cost_of_identity"].min())
    assert logged[f"{split}_cost_of_identity/min"] == pytest.approx(smallest, rel=1e-6)
    assert hooks_of(module) == 0


def test_the_sanity_check_is_ignored(make_module, make_data, make_trainer):
    """One sanity batch of other weights than those of the first validation would show; so would a logged value."""
    monitor = EnergyMonitor()
    seen = []

    class Watch(Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append(dict(monitor.readings))

    module, data = make_module(), make_data(batch_size=4)
    trainer = make_trainer(monitor, Watch(), num_sanity_val_steps=2, max_epochs=1, precision="64-true")
    trainer.fit(module, datamodule=data)
    assert seen == [{}]
    inputs, targets = (tensor.double() for tensor in data.splits["val"].tensors)
    assert_equal_readings(monitor.readings["validate"], readings_by_hand(module.double(), inputs, targets), 1e-10)


def test_validation_can_be_left_alone(make_module, make_data, make_trainer):
    monitor = EnergyMonitor(on_validation=False)
    trainer = make_trainer(monitor)
    trainer.fit(make_module(), datamodule=make_data())
    assert set(monitor.readings) == {"train"}
    assert not [key for key in trainer.callback_metrics if key.startswith("val_")]


def test_validation_in_the_middle_of_an_accumulated_batch(make_module, make_data, make_trainer):
    """A validation between two micro-batches neither enters the training reading nor loses its first half."""
    monitor = EnergyMonitor(quantities=ALL)
    recorder = Recorder(monitor)
    trainer = make_trainer(
        monitor, recorder, precision="64-true", max_epochs=1, accumulate_grad_batches=3, val_check_interval=1
    )
    trainer.fit(make_module(), datamodule=make_data(batch_size=8))
    then = make_module().double()
    then.load_state_dict(recorder.states[0])
    assert_equal_readings(recorder.readings[0], readings_by_hand(then, *recorder.batch(0)), 1e-10)


# Logs.


def test_the_table_of_keys_is_the_truth(make_module, make_data, make_trainer, tmp_path):
    """Both directions, for all three stages."""
    logger = CSVLogger(tmp_path)
    trainer = make_trainer(EnergyMonitor(quantities=ALL), logger=logger)
    data = make_data()
    module = make_module()
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    logged = {key for row in rows_of(logger.log_dir) for key, value in row.items() if value}
    of_module = {"epoch", "step", "train/loss", "val/cost", "val/mse", "test/cost", "test/mse"}
    table = documented_keys(num_layers=4)
    without_momenta = {key for key in table if key.split("/")[0] not in (*OF_PARAMETERS, *MOMENTA)}
    expected = table | {f"{prefix}{key}" for prefix in ("val_", "test_") for key in without_momenta}
    assert logged - of_module == expected


def test_logged_numbers_are_the_readings(make_module, make_data, make_trainer, tmp_path):
    monitor, logger = EnergyMonitor(quantities=ALL), CSVLogger(tmp_path)
    make_trainer(monitor, logger=logger).fit(make_module(), datamodule=make_data())
    rows = rows_of(logger.log_dir)
    for prefix, stage in (("", "train"), ("val_", "validate")):
        for key, value in monitor.readings[stage].scalars(prefix).items():
            last = [float(row[key]) for row in rows if row[key]][-1]
            assert last == pytest.approx(float(value), rel=1e-5), key


def test_summaries_follow_from_the_layers(make_module, make_data, make_trainer):
    monitor = EnergyMonitor(quantities=ALL)
    make_trainer(monitor).fit(make_module(effective_depth=2.0), datamodule=make_data())
    readings = monitor.readings["train"]
    summaries = readings.summaries()
    energy = readings["hamiltonian"]
    assert summaries["hamiltonian/spread"] == energy.max() - energy.min()
    torch.testing.assert_close(summaries["hamiltonian/bottleneck_rank"], -2 * energy.quantile(0.5) / 2.0)
    assert summaries["cost_of_identity/min"] == readings["cost_of_identity"].min()
    assert summaries["criticality_residual/max"] == readings["criticality_residual"].max()
    torch.testing.assert_close(summaries["speed/path_length"], (readings.step_sizes * readings["speed"]).sum())


@pytest.mark.parametrize(("accumulate", "log_every_n_steps"), [(1, 1), (1, 2), (3, 1), (3, 2), (2, 3)])
def test_readings_share_the_x_axis_of_the_loss(
    make_module, make_data, make_trainer, tmp_path, accumulate, log_every_n_steps
):
    logger = CSVLogger(tmp_path)
    trainer = make_trainer(
        EnergyMonitor(),
        StepSizeAdapter(every_n_steps=1),
        logger=logger,
        max_epochs=5,
        accumulate_grad_batches=accumulate,
        log_every_n_steps=log_every_n_steps,
    )
    trainer.fit(make_module(), datamodule=make_data(batch_size=4))  # 6 batches an epoch
    rows = rows_of(logger.log_dir)
    steps = steps_with(rows, "train/loss")
    assert steps == [step for step in range(30 // accumulate) if (step + 1) % log_every_n_steps == 0]
    for key in ("cost_of_identity/layer_01", "hamiltonian/spread", "step_size/layer_04"):
        assert steps_with(rows, key) == steps
    assert steps_with(rows, "val_cost_of_identity/min") == steps_with(rows, "val/cost")


def test_every_key_can_be_read_from_tensorboard(make_module, make_data, make_trainer, tmp_path):
    logger = TensorBoardLogger(tmp_path)
    monitor = EnergyMonitor(quantities=ALL)
    make_trainer(monitor, logger=logger, max_epochs=3).fit(make_module(), datamodule=make_data())
    events = EventAccumulator(logger.log_dir, size_guidance={"scalars": 0})
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert documented_keys(num_layers=4) <= tags
    loss_steps = [event.step for event in events.Scalars("train/loss")]
    for key, value in monitor.readings["train"].scalars().items():
        assert [event.step for event in events.Scalars(key)] == loss_steps == [0, 1, 2]
        assert events.Scalars(key)[-1].value == pytest.approx(float(value), rel=1e-5)


def test_a_reading_is_logged_once(make_module, make_data, make_trainer, tmp_path):
    """Lightning logs a value again and again until another replaces it."""
    logger = CSVLogger(tmp_path)
    trainer = make_trainer(EnergyMonitor(every_n_steps=3), logger=logger, max_epochs=2)
    trainer.fit(make_module(), datamodule=make_data(batch_size=4))  # 6 batches an epoch
    rows = rows_of(logger.log_dir)
    assert steps_with(rows, "train/loss") == list(range(12))
    assert steps_with(rows, "cost_of_identity/layer_01") == [2, 5, 8, 11]


def test_every_reading_is_logged_at_its_step(make_module, make_data, make_trainer, tmp_path):
    logger = CSVLogger(tmp_path)
    trainer = make_trainer(EnergyMonitor(every_n_steps=3), log_every_n_steps=2, logger=logger, max_epochs=3)
    trainer.fit(make_module(), datamodule=make_data(batch_size=4))  # 6 batches an epoch
    rows = rows_of(logger.log_dir)
    assert steps_with(rows, "cost_of_identity/layer_01") == [2, 5, 8, 11, 14, 17]
    assert steps_with(rows, "train/loss") == [1, 3, 5, 7, 9, 11, 13, 15, 17]


def test_a_trainer_that_does_not_log_logs_no_readings(make_module, make_data, make_trainer, tmp_path):
    monitor, logger = EnergyMonitor(every_n_steps=1, on_validation=False), CSVLogger(tmp_path)
    trainer = make_trainer(monitor, log_every_n_steps=0, logger=logger, max_epochs=2)
    trainer.fit(make_module(), datamodule=make_data())
    assert "train" in monitor.readings
    assert not any("cost_of_identity" in key for row in rows_of(logger.log_dir) for key in row)


def test_callbacks_can_look_at_every_number(make_module, make_data, make_trainer):
    """As EarlyStopping and ModelCheckpoint do; validation returns the summaries."""
    monitor = EnergyMonitor()
    trainer, module, data = make_trainer(monitor, max_epochs=2), make_module(), make_data()
    trainer.fit(module, datamodule=data)
    for stage, prefix in (("train", ""), ("validate", "val_")):
        for key, value in monitor.readings[stage].scalars(prefix).items():
            assert float(trainer.callback_metrics[key]) == pytest.approx(float(value), rel=1e-6)
    (returned,) = trainer.validate(module, datamodule=data, verbose=False)
    summaries = monitor.readings["validate"].summaries("val_")
    assert {key for key in returned if "of_identity" in key} == {"val_cost_of_identity/min"}
    assert summaries.keys() <= returned.keys()


def test_without_a_logger_it_warns_and_works(make_module, make_data, make_trainer):
    monitor = EnergyMonitor()
    with pytest.warns(UserWarning, match="no logger"):
        make_trainer(monitor, logger=False).fit(make_module(), datamodule=make_data())
    assert monitor.readings["train"].is_finite()


# Hooks.


class HookCounter(Callback):
    """The number of hooks at every training batch."""

    def __init__(self, count):
        self.count, self.counts = count, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.counts.append(self.count(pl_module))


def test_hooks_live_as_long_as_the_fit(make_module, make_data, make_trainer, hooks_of):
    """Registered once, not at every batch; gone after each of two fits, of a validation and of a test."""
    module, data, counter = make_module(), make_data(batch_size=8), HookCounter(hooks_of)
    trainer = make_trainer(EnergyMonitor(), StepSizeAdapter(every_n_steps=1), counter)
    trainer.fit(module, datamodule=data)
    assert hooks_of(module) == 0
    assert len(set(counter.counts)) == 1
    assert counter.counts[0] >= 4
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, datamodule=data)
    assert hooks_of(module) == 0
    assert set(counter.counts[6:]) == set(counter.counts[:6])
    trainer.validate(module, datamodule=data, verbose=False)
    trainer.test(module, datamodule=data, verbose=False)
    assert hooks_of(module) == 0


@pytest.mark.parametrize("hook", ["training_step", "validation_step"])
def test_hooks_are_gone_after_an_exception(make_module, make_data, make_trainer, hooks_of, hook):
    class Failing(LeakyResNetModule):
        pass

    def fail(self, batch, batch_idx):
        self.step(batch, "train" if hook == "training_step" else "val")
        assert hooks_of(self) > 0
        raise RuntimeError("broken on purpose")

    setattr(Failing, hook, fail)
    module, monitor = make_module(Failing), EnergyMonitor()
    with pytest.raises(RuntimeError, match="broken on purpose"):
        make_trainer(monitor, StepSizeAdapter()).fit(module, datamodule=make_data())
    assert hooks_of(module) == 0
    make_trainer(monitor).fit(make_module(), datamodule=make_data())
    assert monitor.readings["train"].is_finite()


def test_hooks_are_gone_after_a_failing_validation_without_fit(make_module, make_data, make_trainer, hooks_of):
    class Failing(LeakyResNetModule):
        def validation_step(self, batch, batch_idx):
            raise RuntimeError("broken on purpose")

    module = make_module(Failing)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        make_trainer(EnergyMonitor()).validate(module, datamodule=make_data())
    assert hooks_of(module) == 0


def test_one_monitor_serves_two_models(make_module, make_data, make_trainer):
    """Nothing of the first fit is in the second: not its sums, not its width, not its λ."""
    monitor, fresh = EnergyMonitor(), EnergyMonitor()
    make_trainer(monitor).fit(make_module(), datamodule=make_data())
    for one in (monitor, fresh):
        make_trainer(one).fit(make_module(width=9, num_layers=3, weight_decay=0.3), datamodule=make_data())
    for stage in ("train", "validate"):
        for name, values in fresh.readings[stage].quantities.items():
            assert torch.equal(monitor.readings[stage][name], values)


def test_copies_can_be_made_in_the_middle_of_a_fit(make_module, make_data, make_trainer):
    monitor, adapter = EnergyMonitor(), StepSizeAdapter(every_n_steps=1)
    copies = []

    class Copier(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            copies.extend([copy.deepcopy([monitor, adapter]), pickle.loads(pickle.dumps([monitor, adapter]))])

    make_trainer(Copier(), monitor, adapter, max_epochs=1).fit(make_module(), datamodule=make_data())
    assert len(copies) == 2
    for twins in copies:
        make_trainer(*twins, max_epochs=1).fit(make_module(), datamodule=make_data())
        torch.testing.assert_close(twins[0].readings["train"]["hamiltonian"], monitor.readings["train"]["hamiltonian"])


# What can go wrong.


def test_a_diverged_batch_is_read_as_nan_and_training_goes_on(make_module, make_data, make_trainer, tmp_path):
    class Diverging(LeakyResNetModule):
        def forward(self, inputs):
            return super().forward(inputs * (math.nan if self.global_step >= 2 and self.training else 1.0))

    monitor, logger = EnergyMonitor(quantities=ALL), CSVLogger(tmp_path)
    trainer = make_trainer(monitor, logger=logger, max_epochs=5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(make_module(Diverging), datamodule=make_data())
    assert trainer.global_step == 5
    assert len([one for one in caught if "not finite" in str(one.message)]) == 1
    assert all(bool(values.isnan().all()) for values in monitor.readings["train"].quantities.values())
    logged = [
        float(row["cost_of_identity/layer_02"]) for row in rows_of(logger.log_dir) if row["cost_of_identity/layer_02"]
    ]
    assert [math.isnan(value) for value in logged] == [False, False, True, True, True]


def test_momenta_without_weight_decay_are_refused(make_module, make_data, make_trainer):
    trainer = make_trainer(EnergyMonitor(quantities=["hamiltonian"]))
    with pytest.raises(ValueError, match="`weight_decay`"):
        trainer.fit(make_module(weight_decay=0.0), datamodule=make_data())


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("quantities", ["cost_of_identiy"]),
        ("quantities", []),
        ("every_n_steps", 0),
        ("gamma", -1.0),
        ("gamma_rel", 0.0),
        ("effective_depth", -1.0),
    ],
)
def test_wrong_arguments_are_named(name, wrong):
    with pytest.raises(ValueError, match=f"`{name}`"):
        EnergyMonitor(**{name: wrong})


# Layers of other networks.


class Foreign(LightningModule):
    """A network that knows nothing of this package."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def training_step(self, batch, batch_idx):
        return self.body(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self.body(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def one_batch():
    return DataLoader([torch.randn(3, 8)], batch_size=None)


def energies_of_a_resnet(path, momentum=None):
    """Readings with ρ = 1/L and L̃ = 0 of hidden states whose last dimension is the width."""
    rows = torch.stack([state.flatten(0, -2) for state in path]).double()
    rho = torch.full((len(path) - 1,), 1 / (len(path) - 1))
    moved = velocity(rows[:-1], rows[1:], rho)
    found = {
        "cost_of_identity": effective_dimension(rows[:-1]),
        "energy_hamiltonian": energy_hamiltonian(rows[:-1], moved, 0.0, features=linear(rows[:-1])),
    }
    if momentum is not None:
        found["hamiltonian"] = hamiltonian(rows[:-1], momentum.flatten(1, -2), 0.0, features=linear(rows[:-1]))
    return found


def test_linear_layers_of_a_sequential_are_read_as_a_path(make_trainer):
    body = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
    batch = torch.randn(10, 8)
    monitor = EnergyMonitor(
        layers="body.*", quantities=["cost_of_identity", "energy_hamiltonian", "hamiltonian"], weight_decay=0.5
    )
    make_trainer(monitor, max_epochs=1).fit(Foreign(body), DataLoader([batch], batch_size=None))
    path = [batch]
    for layer in body:
        path.append(layer(path[-1]))
    momentum = -torch.stack(torch.autograd.grad(path[-1].square().mean(), path[1:])) / 0.5
    expected = energies_of_a_resnet([state.detach() for state in path], momentum)
    assert_equal_readings(monitor.readings["train"], expected, 1e-4)
    torch.testing.assert_close(monitor.readings["train"].step_sizes, torch.full((3,), 1 / 3, dtype=torch.float64))


def test_transformer_layers_are_read_with_tokens_as_samples(make_trainer):
    layer = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=16, dropout=0.0, batch_first=True)
    body = nn.TransformerEncoder(layer, num_layers=3, enable_nested_tensor=False)
    batch = torch.randn(4, 5, 8)
    monitor = EnergyMonitor(layers="body.layers.?", quantities=["cost_of_identity", "energy_hamiltonian"])
    loader = DataLoader([batch], batch_size=None)
    make_trainer(monitor, max_epochs=1).fit(Foreign(body), loader, loader)
    path = [batch]
    for block in body.layers:
        path.append(block(path[-1]).detach())
    for stage in ("train", "validate"):
        assert_equal_readings(monitor.readings[stage], energies_of_a_resnet(path), 1e-4)


def test_a_glob_stops_at_a_dot(make_trainer):
    """The children of the blocks that match are not layers of the path."""
    body = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(12)))
    monitor = EnergyMonitor(layers="body.*", quantities=["cost_of_identity"])
    make_trainer(monitor, max_epochs=1).fit(Foreign(body), DataLoader([torch.randn(9, 8)], batch_size=None))
    assert len(monitor.readings["train"]["cost_of_identity"]) == 12


def test_a_glob_that_names_a_leaky_path_reads_it_as_one(make_module, make_data, make_trainer):
    monitors = [EnergyMonitor(), EnergyMonitor(layers="network.layers.*")]
    make_trainer(*monitors).fit(make_module(step_sizes=[0.1, 0.2, 0.3, 0.4]), datamodule=make_data())
    found, named = (monitor.readings["train"] for monitor in monitors)
    assert named.effective_depth == found.effective_depth == 2.0
    assert torch.equal(named.step_sizes, found.step_sizes)
    assert torch.equal(named["kinetic_energy"], found["kinetic_energy"])


def test_an_unknown_glob_names_what_exists(make_module, make_data, make_trainer):
    trainer = make_trainer(EnergyMonitor(layers="blocks.*"))
    with pytest.raises(ValueError, match=r"`layers` must match.*'blocks\.\*'.*network\.layers\.0"):
        trainer.fit(make_module(), datamodule=make_data())


def test_a_model_without_blocks_is_warned_of_once(make_trainer):
    loader = DataLoader([torch.randn(3, 8)] * 3, batch_size=None)
    with pytest.warns(UserWarning, match="Name the layers") as caught:
        make_trainer(EnergyMonitor()).fit(Foreign(nn.Linear(8, 8)), loader)
    assert len([one for one in caught if "Name the layers" in str(one.message)]) == 1


def test_criticality_of_foreign_layers_is_refused(make_trainer):
    monitor = EnergyMonitor(layers="body.*", quantities=["criticality_residual"], weight_decay=0.5)
    with pytest.raises(ValueError, match="`quantities`"):
        make_trainer(monitor).fit(Foreign(nn.Sequential(nn.Linear(8, 8))), one_batch())


def test_a_layer_that_did_not_run_is_named_once(make_trainer):
    class Skipping(nn.Sequential):
        def forward(self, inputs):
            return self[0](inputs)

    monitor, body = EnergyMonitor(layers="body.*"), Skipping(nn.Linear(8, 8), nn.Linear(8, 8))
    with pytest.warns(UserWarning, match=r"layers \['body.1'\] did not run") as caught:
        make_trainer(monitor).fit(Foreign(body), one_batch())
    assert len([one for one in caught if "did not run" in str(one.message)]) == 1
    assert monitor.readings == {}


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_layers_read_like_plain_ones(make_module, make_data, make_trainer, use_reentrant):
    """Activation checkpointing runs each layer again inside the backward pass; the step-sizes do not feel it either."""

    class Checkpointed(LeakyResNetModule):
        def forward(self, inputs):
            hidden = self.network.input_map(inputs)
            for layer, rho in zip(self.network.layers, self.network.step_sizes, strict=True):
                hidden = torch.utils.checkpoint.checkpoint(layer, hidden, rho, use_reentrant=use_reentrant)
            return self.network.output_map(hidden)

    readings, modules = [], []
    for cls in (LeakyResNetModule, Checkpointed):
        # Reentrant checkpointing hides the representations from autograd: gradients come from the second run.
        monitor = EnergyMonitor(quantities=ALL, on_validation=False)
        modules.append(make_module(cls))
        trainer = make_trainer(monitor, StepSizeAdapter(every_n_steps=1), limit_val_batches=0)
        trainer.fit(modules[-1], datamodule=make_data())
        readings.append(monitor.readings["train"])
    assert_equal_readings(readings[1], readings[0].quantities, 1e-5)
    torch.testing.assert_close(modules[1].network.step_sizes, modules[0].network.step_sizes)


def test_path_by_hand_is_the_networks_path(make_module):
    """The yardstick itself."""
    module, inputs = make_module(), torch.randn(5, 3)
    torch.testing.assert_close(
        torch.stack(path_by_hand(module.network, inputs)), module.network.representations(inputs)
    )
