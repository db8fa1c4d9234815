"""LayerAlert fires once where a reading meets a condition, is armed again beyond a margin, and does as it was told."""

import copy
import itertools
import math
import pickle
import warnings
from types import SimpleNamespace
from typing import get_type_hints

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lightning_leaky import EnergyMonitor, LayerRefiner, LeakyResNetModule
from lightning_leaky.callbacks.layer_alert import LayerAlert
from lightning_leaky.explain.conditions import _VERDICTS, Condition, watched
from lightning_leaky.explain.diagnosis import Diagnosis
from lightning_leaky.metrics.readings import Readings
from tests.callbacks.helpers import ConstantRate, TwoOptimizers
from tests.distributed import fits
from tests.distributed.collectives import counted_collectives
from tests.distributed.launch import launch

NAN, INF = math.nan, math.inf

# The condition, and when it fires.


@pytest.mark.parametrize(
    ("told", "holding", "between", "left"),
    [
        ("< 0.01", [0.0099, -INF], [0.01, 0.0124], [0.0125, INF]),
        ("<=0.01", [0.01, -3.0], [0.0101, 0.0125], [0.0126]),
        ("> -4", [-3.9, INF], [-4.0, -4.9], [-5.0, -INF]),
        (" >= 5e0 ", [5.0], [4.9, 3.75], [3.74]),
        ("< 0", [-1e-9], [], [0.0]),
        ("is nan", [NAN], [], [0.0, INF]),
        ("Is True", [1.0], [], [0.0]),
        ("is false", [0.0], [], [1.0]),
        ("math.isinf", [INF], [], [1.0]),
        (float.is_integer, [2.0], [], [2.5]),
    ],
)
def test_a_condition_holds_or_is_left_or_neither(told, holding, between, left):
    condition = Condition.of(told)
    for value in (*holding, *between, *left):
        assert bool(condition.holds(value)) == (value in holding or (value != value and NAN in holding))
        assert condition.is_left(value) == (value in left)
    assert not condition.is_left(NAN)


def test_where_it_is_left_can_be_told():
    assert not Condition.of("< 0", release=0.5).is_left(0.4)
    assert Condition.of("< 0", release=0.5).is_left(0.5)


@pytest.mark.parametrize(
    "told",
    ["", "0.01", "< ", "< a", "< nan", "> inf", "< e", "< 1.2.3", "> .", "== 1", "is bad", "no.such.function", 3],
)
def test_what_cannot_be_read_is_refused(told):
    with pytest.raises(ValueError, match=r"`condition` must be .*got "):
        Condition.of(told)


@pytest.mark.parametrize(("told", "release"), [("< 1", 0.9), ("> 1", 1.1), ("> 1", NAN), ("is nan", 1.0)])
def test_a_release_on_the_wrong_side_is_refused(told, release):
    with pytest.raises(ValueError, match=f"`release` beyond a threshold, got '{told}' and {release}"):
        Condition.of(told, release)


def fired_at(values, condition, patience):
    states = [(True, 0)]
    for value in values:
        states.append(condition.after(value, patience, *states[-1]))
    return [place for place, (before, after) in enumerate(itertools.pairwise(states)) if before[0] and not after[0]]


# Holds, is within the margin, is left, and NaN.
KINDS = {"h": 0.9, "m": 1.1, "l": 1.3, "n": NAN}


@given(word=st.text("hhhmlllln", max_size=60), patience=st.integers(1, 4))
def test_it_fires_at_the_first_run_and_again_after_a_run_beyond_the_margin(word, patience):
    """Runs are found as text, one after another."""
    expected, start = [], 0
    while (found := word.find("h" * patience, start)) >= 0:
        expected.append(found + patience - 1)
        found = word.find("l" * patience, found + patience)
        if found < 0:
            break
        start = found + patience
    assert fired_at([KINDS[kind] for kind in word], Condition.of("< 1"), patience) == expected


@given(values=st.lists(st.floats(-INF, 0.0125, exclude_max=True) | st.just(NAN)), patience=st.integers(1, 4))
def test_noise_within_the_margin_fires_at_most_once(values, patience):
    assert len(fired_at(values, Condition.of("< 0.01"), patience)) <= 1


@given(values=st.lists(st.floats(0.0, 0.02), max_size=80), patience=st.integers(1, 4))
def test_between_two_firings_there_is_time(values, patience):
    places = fired_at(values, Condition.of("< 0.01"), patience)
    assert all(later - earlier >= 2 * patience for earlier, later in itertools.pairwise(places))


# What is looked at.

WHOLE = Readings(
    {"cost_of_identity": torch.tensor([9.0, 2.0, 4.0]), "kinetic_energy": torch.tensor([5.0, 1e-6, 5.0])},
    torch.full((3,), 1 / 3, dtype=torch.float64),
    2.0,
)
PARTS = Readings(WHOLE.quantities, WHOLE.step_sizes, 2.0, segments=(2, 1))
BROKEN = Readings({"speed": torch.tensor([1.0, NAN])}, torch.ones(2), 0.0)


@pytest.mark.parametrize(
    ("readings", "quantity", "expected"),
    [
        (WHOLE, "cost_of_identity", {f"cost_of_identity/layer_0{n}": v for n, v in ((1, 9.0), (2, 2.0), (3, 4.0))}),
        (WHOLE, "cost_of_identity/layer_02", {"cost_of_identity/layer_02": 2.0}),
        (WHOLE, "cost_of_identity/min", {"cost_of_identity/min": 2.0}),
        (PARTS, "cost_of_identity/min", {"cost_of_identity/segment_1/min": 2.0, "cost_of_identity/segment_2/min": 4.0}),
        (PARTS, "cost_of_identity/segment_2/min", {"cost_of_identity/segment_2/min": 4.0}),
        (
            WHOLE,
            "verdict/moves_little",
            {f"verdict/moves_little/layer_0{n}": v for n, v in ((1, 0.0), (2, 1.0), (3, 0.0))},
        ),
        (WHOLE, "verdict/has_bottleneck", {"verdict/has_bottleneck": 1.0}),
        (PARTS, "verdict/has_bottleneck", {f"verdict/segment_{n}/has_bottleneck": v for n, v in ((1, 1.0), (2, 0.0))}),
        (WHOLE, "verdict/diverged", {"verdict/diverged": 0.0}),
        (BROKEN, "verdict/diverged", {"verdict/diverged": 1.0}),
        (WHOLE, "speed", {}),
        (WHOLE, "cost_of_identity/max", {}),
        (Readings({"speed": torch.ones(2)}, torch.ones(2), 0.0), "verdict/moves_little", {}),
        (Readings({"kinetic_energy": torch.ones(2)}, torch.ones(2), 0.0), "verdict/has_bottleneck", {}),
    ],
)  # fmt: skip
def test_a_key_stands_for_numbers(readings, quantity, expected):
    assert watched(readings, quantity) == expected


def test_there_is_a_key_for_each_verdict_that_is_yes_or_no_or_names_layers():
    members = {name: one.fget for name, one in vars(Diagnosis).items() if isinstance(one, property)}
    hints = get_type_hints(Diagnosis) | {name: get_type_hints(one)["return"] for name, one in members.items()}
    told = {name for name, hint in hints.items() if hint in (bool, bool | None, tuple[int, ...])} | {"diverged"}
    assert {key.removeprefix("verdict/") for key in _VERDICTS} == told


def test_no_verdict_is_nan():
    quantities = {"cost_of_identity": torch.tensor([9.0, 2.0]), "criticality_residual": torch.ones(2)}
    readings = Readings(quantities, torch.tensor([0.5, 0.5]), 2.0)
    assert math.isnan(watched(readings, "verdict/has_bottleneck")["verdict/has_bottleneck"])


# The callback, told of readings by hand.


def quiet(**changes):
    """What an alert asks of a trainer."""
    told = {"state": SimpleNamespace(fn="fit"), "sanity_checking": False, "is_global_zero": True, "loggers": []}
    return SimpleNamespace(**(told | {"should_stop": False} | changes))


def tell(alert, rows, trainer=None, stage="train", prefix=""):
    """Tell an alert of kinetic energies, a row a reading, and return what it says."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step, row in enumerate(rows, start=1):
            values = torch.tensor(row, dtype=torch.float64)
            names = tuple(f"blocks.{index}" for index in range(len(row)))
            readings = Readings({"kinetic_energy": values}, torch.ones(len(row)), 0.0, names)
            monitor = SimpleNamespace(readings={stage: readings}, step=step, prefix=prefix)
            alert.on_readings(quiet() if trainer is None else trainer, None, monitor, stage)
    return [str(one.message) for one in caught]


def test_each_layer_fires_by_itself_and_one_warning_tells_of_a_reading():
    rows = [[0.5, 2.0, 0.5], [0.5, 0.5, 0.5], [0.5, 0.5, 2.0], [2.0, 0.5, 0.5], [2.0, 0.5, 0.5], [0.5, 0.5, 0.5]]
    start = "LayerAlert at step {}, train: '< 1' holds, kinetic_energy/"
    assert tell(LayerAlert("kinetic_energy", "< 1", patience=2), rows) == [
        start.format(2) + "layer_01 (blocks.0) is 0.5, kinetic_energy/layer_03 (blocks.2) is 0.5.",
        start.format(3) + "layer_02 (blocks.1) is 0.5.",
    ]


def test_where_the_layers_change_it_counts_anew():
    alert = LayerAlert("kinetic_energy", "< 1", 2)
    assert not tell(alert, [[0.5]])
    alert.on_layers_changed(quiet(), None)
    assert not tell(alert, [[0.5]])
    assert tell(alert, [[0.5]])


def test_a_layer_can_be_chosen():
    (text,) = tell(LayerAlert("kinetic_energy/layer_02", "< 1", 1), [[0.5, 0.6, 0.5]])
    assert text.endswith("holds, kinetic_energy/layer_02 (blocks.1) is 0.6.")


CALLS = []


def note(trainer, pl_module, key, value):
    CALLS.append((key, value))


def fail(*args):
    raise RuntimeError("no network")


def test_functions_are_called_and_may_fail():
    CALLS.clear()
    alert = LayerAlert("kinetic_energy", "< 1", 1, action=[f"{__name__}.fail", note, "stop"])
    trainer = quiet()
    said = tell(alert, [[0.5, 0.25], [3.0, 3.0], [0.5, 3.0]], trainer)
    assert CALLS == [
        ("kinetic_energy/layer_01", 0.5),
        ("kinetic_energy/layer_02", 0.25),
        ("kinetic_energy/layer_01", 0.5),
    ]
    assert len(said) == 1
    assert "has failed, and the training goes on: RuntimeError: no network" in said[0]
    assert trainer.should_stop


def test_a_condition_that_fails_is_one_warning_and_stops_no_other_layer():
    alert = LayerAlert("kinetic_energy", lambda value: 1 / value > 1, 1)  # no number at 0
    first, second = tell(alert, [[0.0, 0.5], [0.0, 0.5]])
    assert "ZeroDivisionError" in first
    assert "layer_02 (blocks.1) is 0.5." in second


@pytest.mark.parametrize(
    "changes", [{"sanity_checking": True}, {"state": SimpleNamespace(fn="validate")}], ids=["sanity check", "validate"]
)
def test_only_readings_of_a_fit_count(changes):
    alert = LayerAlert("kinetic_energy", "< 1", 1, stage="validate")
    assert not tell(alert, [[0.5]], quiet(**changes), stage="validate")
    assert tell(alert, [[0.5]], stage="validate")


def test_other_stages_and_monitors_do_not_count():
    alert = LayerAlert("kinetic_energy", "< 1", 1, prefix="one/")
    assert not tell(alert, [[0.5]], stage="validate", prefix="one/")
    assert not tell(alert, [[0.5]], prefix="two/")
    (text,) = tell(alert, [[0.5]], prefix="one/")
    assert "one/kinetic_energy/layer_01" in text


class WandbLogger:
    """A logger that can alert, and its run."""

    def __init__(self):
        self.alerts, self.experiment = [], self

    def alert(self, title, text):
        self.alerts.append((title, text))


def test_a_logger_that_can_alerts():
    run, alert = WandbLogger(), LayerAlert("kinetic_energy", "< 1", 1, action="alert")
    assert not tell(alert, [[0.5]], quiet(loggers=[SimpleNamespace(), run]))
    ((title, text),) = run.alerts
    assert title == "kinetic_energy < 1"
    assert "layer_01 (blocks.0) is 0.5" in text


@pytest.mark.parametrize("action", ["alert", "log"])
@pytest.mark.parametrize("loggers", [[], [DummyLogger()]], ids=["no logger", "a disabled one"])
def test_where_no_logger_can_it_warns(action, loggers):
    (text,) = tell(LayerAlert("kinetic_energy", "< 1", 1, action=action), [[0.5]], quiet(loggers=loggers))
    assert "layer_01 (blocks.0) is 0.5" in text


def test_other_processes_alert_nobody():
    run, alert = WandbLogger(), LayerAlert("kinetic_energy", "< 1", 1, action="alert")
    tell(alert, [[0.5]], quiet(is_global_zero=False, loggers=[run]))
    assert not run.alerts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantity": ""}, "`quantity` must be a log key.*got ''"),
        (
            {"quantity": "verdict/moves_litle"},
            r"`quantity` must be .*'verdict/moves_little'.*got 'verdict/moves_litle'",
        ),
        ({"condition": "=1"}, "`condition` must be"),
        ({"patience": 0}, "`patience` must be >= 1, .*got 0"),
        ({"action": "halt"}, r"`action` must be of .*got 'halt'"),
        ({"action": ["warn", "no.such"]}, r"`action` must be of .*got \['warn', 'no.such'\]"),
        ({"action": []}, r"`action` must be of .*got \[\]"),
        ({"stage": "test"}, "`stage` .*got .*'test'"),
        ({"quantity": "hamiltonian/spread", "action": "freeze"}, "layers only.*got 'freeze'"),
        ({"quantity": "verdict/has_bottleneck", "action": ["freeze"]}, r"layers only.*got \['freeze'\]"),
        ({"release": 0.0}, "`release` beyond a threshold"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LayerAlert(**({"quantity": "kinetic_energy", "condition": "< 1"} | arguments))


def test_keys_in_a_checkpoint_differ_with_the_configuration_only():
    base = {"quantity": "kinetic_energy", "condition": "< 1"}
    others = [
        {"quantity": "speed"}, {"condition": "< 2"}, {"patience": 2}, {"action": ["warn", "stop"]}, {"action": note},
        {"release": 2.0}, {"stage": "validate"}, {"prefix": "one/"}, {"condition": float.is_integer},
    ]  # fmt: skip
    keys = [LayerAlert(**(base | one)).state_key for one in ({}, *others)]
    assert len(set(keys)) == len(keys)
    assert keys == [LayerAlert(**(base | one)).state_key for one in ({}, *others)]
    assert LayerAlert(**base, action=f"{__name__}.note").state_key == LayerAlert(**base, action=note).state_key


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda alert: pickle.loads(pickle.dumps(alert))])
def test_a_copy_goes_on_counting(copied):
    alert = LayerAlert("kinetic_energy", "< 1", 2, action=["warn", note])
    assert not tell(alert, [[0.5]])
    assert tell(copied(alert), [[0.5]])


@given(word=st.text("hhml", max_size=30), cut=st.integers(0, 30))
def test_a_restored_alert_goes_on_counting(word, cut):
    rows = [[KINDS[kind]] for kind in word]
    whole, before, after = (LayerAlert("kinetic_energy", "< 1", 2, action=note) for _ in range(3))
    CALLS.clear()
    tell(whole, rows)
    expected, _ = list(CALLS), CALLS.clear()
    tell(before, rows[:cut])
    after.load_state_dict(pickle.loads(pickle.dumps(before.state_dict())))
    tell(after, rows[cut:])
    assert expected == CALLS
    assert after.state_dict() == whole.state_dict()


def test_it_is_set_from_yaml():
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--callback", type=Callback)
    told = {
        "quantity": "verdict/moves_little",
        "condition": "math.isinf",
        "patience": 4,
        "stage": "validate",
    }
    for action in ("freeze", ["warn", "freeze"], [f"{__name__}.note", "stop"], f"{__name__}.note"):
        arguments = {
            "class_path": "lightning_leaky.callbacks.layer_alert.LayerAlert",
            "init_args": told | {"action": action},
        }
        alert = parser.instantiate_classes(parser.parse_object({"callback": arguments})).callback
        assert alert.state_key == LayerAlert(**told, action=action).state_key


# Real fits.


class Weights(Callback):
    """Keeps the weights after each optimizer step."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step > len(self.steps):
            whole = {name: one.detach() for name, one in pl_module.named_parameters()}
            self.steps.append({name: getattr(one, "full_tensor", one.clone)() for name, one in whole.items()})


class Freezes(Callback):
    """What a frozen layer is to be, on one process: a layer without gradients, from a batch on."""

    def __init__(self, layer, first):
        self.layer, self.first = layer, first

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.first:
            pl_module.network.layers[self.layer].requires_grad_(False)


class AdamW(LeakyResNetModule):
    fused = False

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1, fused=self.fused)


class SGD(LeakyResNetModule):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2, momentum=0.9, weight_decay=0.1)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


ALWAYS = {"quantity": "cost_of_identity", "condition": "> -1", "patience": 2}
SECOND = ALWAYS | {"quantity": "cost_of_identity/layer_02"}
LAYER = ["network.layers.1.weight", "network.layers.1.bias"]


@pytest.mark.parametrize(
    "changes",
    [{}, {"gradient_clip_val": 0.01}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}],
    ids=["plain", "clipping", "accumulation", "bf16-mixed"],
)
@pytest.mark.parametrize("cls", [AdamW, SGD])
def test_a_frozen_layer_trains_as_one_without_gradients(make_module, make_data, make_trainer, cls, changes):
    """Neither momentum nor weight decay moves it, and it is no part of the norm by which gradients are clipped."""
    found = []
    for other in (LayerAlert(**SECOND, action="freeze"), Freezes(1, first=2)):
        weights = Weights()
        trainer = make_trainer(
            EnergyMonitor(quantities=["cost_of_identity"]), other, weights, **({"max_epochs": 6} | changes)
        )
        trainer.fit(make_module(cls), datamodule=make_data(batch_size=8))
        found.append(weights.steps)
    assert all(same(one, other) for one, other in zip(*found, strict=True))
    steps = found[0]
    for name in LAYER:
        assert not torch.equal(steps[0][name], steps[1][name])
        assert all(torch.equal(one[name], steps[1][name]) for one in steps[2:])
    assert not torch.equal(steps[1]["network.layers.2.weight"], steps[-1]["network.layers.2.weight"])


def test_steps_by_hand_leave_a_frozen_layer_alone(make_module, make_data, make_trainer):
    alert, weights = LayerAlert(**SECOND, action="freeze"), Weights()
    trainer = make_trainer(EnergyMonitor(quantities=["cost_of_identity"]), alert, weights, max_epochs=5)
    trainer.fit(make_module(TwoOptimizers), datamodule=make_data())
    layer, other = ([step[f"network.layers.{index}.weight"] for step in weights.steps] for index in (1, 2))
    assert not torch.equal(layer[0], layer[1])
    assert all(torch.equal(one, layer[1]) for one in layer[1:])
    assert not torch.equal(other[1], other[-1])


def test_readings_do_not_depend_on_the_order_of_callbacks(make_module, make_data, make_trainer):
    """A monitor reads the momenta of a frozen layer, whether its gradients are still there or not."""
    found = []
    for turn in (1, -1):
        callbacks = [EnergyMonitor(), LayerAlert(**SECOND, action="freeze")]
        make_trainer(*callbacks[::turn], max_epochs=5).fit(make_module(AdamW), datamodule=make_data())
        found.append(callbacks[0].readings["train"].quantities)
    assert "criticality_residual" in found[0]
    assert same(*found)


def test_gradients_of_frozen_parameters_are_read_in_either_order(make_module, make_data, make_trainer):
    found = []
    for turn in (1, -1):
        callbacks = [
            EnergyMonitor(quantities=["cost_of_identity", "pontryagin_residual"]),
            LayerAlert(**SECOND, action="freeze"),
        ]
        make_trainer(*callbacks[::turn], max_epochs=5).fit(make_module(SGD), datamodule=make_data())
        found.append(callbacks[0].readings["train"].quantities)
    assert found[0]["pontryagin_residual"][1] != 1
    assert same(*found)


@pytest.mark.parametrize("fused", [False, True])
def test_an_fp16_scaler_goes_on(make_module, make_data, make_trainer, fused):
    """Where every parameter would be frozen none is: a scaler raises where it has seen no gradient."""
    plugins = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]
    some, all_ = LayerAlert(**SECOND, action="freeze"), LayerAlert(**ALWAYS, action="freeze")
    module = make_module(AdamW)
    module.fused = fused
    module.parameters = module.network.layers.parameters  # what the optimizer holds
    weights = Weights()
    trainer = make_trainer(
        EnergyMonitor(quantities=["cost_of_identity"]), some, all_, weights, plugins=plugins, max_epochs=5
    )
    with pytest.warns(UserWarning, match="no parameter would be left to train"):
        trainer.fit(module, datamodule=make_data())
    assert some.frozen == LAYER
    assert all_.frozen == []
    assert same(*({name: step[name] for name in LAYER} for step in (weights.steps[2], weights.steps[-1])))


def test_it_stops_a_fit_and_the_next_one_begins_anew(make_module, make_data, make_trainer):
    alert = LayerAlert(**ALWAYS, action="stop")
    for _ in range(2):
        trainer = make_trainer(EnergyMonitor(), alert, max_epochs=9)
        trainer.fit(make_module(), datamodule=make_data())
        assert trainer.global_step == 2


def test_validation_readings_of_a_fit_count_by_epochs(make_module, make_data, make_trainer):
    alert = LayerAlert(**SECOND, action=["stop", "freeze"], stage="validate")
    trainer = make_trainer(EnergyMonitor(), alert, max_epochs=9, num_sanity_val_steps=2)
    trainer.validate(make_module(), datamodule=make_data(), verbose=False)
    trainer.fit(make_module(), datamodule=make_data())
    assert trainer.current_epoch == 2
    assert alert.frozen == LAYER


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_resumed_run_is_the_one_that_was_not_stopped(make_module, make_data, make_trainer, tmp_path, cut):
    """Before, between, and after it has fired; with a second alert whose counter decides later."""

    def fit(**resume):
        found, weights = [LayerAlert(**SECOND, action="freeze"),
                          LayerAlert("cost_of_identity/layer_03", "> -1", 4, "freeze")], Weights()  # fmt: skip
        checkpoints = ModelCheckpoint(
            tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1, enable_version_counter=False
        )
        trainer = make_trainer(EnergyMonitor(), *found, weights, checkpoints, enable_checkpointing=True, max_epochs=8)
        trainer.fit(make_module(ConstantRate), datamodule=make_data(), **resume)
        return weights.steps, [alert.state_dict() for alert in found]

    steps, states = fit()
    again, after = fit(ckpt_path=tmp_path / f"step={cut}.ckpt")
    assert len(again) == len(steps) - cut > 0
    assert all(same(one, other) for one, other in zip(again, steps[cut:], strict=True))
    assert after == states
    assert len(states[0]["frozen"]) == 2


def test_a_text_is_logged(make_module, make_data, make_trainer, tmp_path):
    logger = TensorBoardLogger(tmp_path)
    alert = LayerAlert(**SECOND, action="log")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="LayerAlert")
        make_trainer(EnergyMonitor(), alert, logger=logger).fit(make_module(), datamodule=make_data())
    events = EventAccumulator(logger.log_dir).Reload()
    (event,) = events.Tensors("alerts/cost_of_identity/layer_02/text_summary")
    assert b"cost_of_identity/layer_02 (network.layers.1) is" in event.tensor_proto.string_val[0]
    assert event.step == 1  # the second step, where its loss is


READ = r".*must read it in stage='{}', and reads \[{}"
UNSEEN = {
    "no monitor": ([], {}, READ.format("train", r"\]")),
    "another prefix": ([{"prefix": "one/"}], {}, "an EnergyMonitor with prefix='' must"),
    "not read": ([{"quantities": ["cost_of_identity"]}], {"quantity": "speed"}, READ.format("train", "'cost_of_id")),
    "no verdict": (
        [{"quantities": ["cost_of_identity"]}],
        {"quantity": "verdict/moves_little"},
        READ.format("train", "'cost_of_identity', "),
    ),
    "no such summary": ([{}], {"quantity": "cost_of_identity/max"}, "'cost_of_identity/min'"),
    "no such layer": ([{}], {"quantity": "cost_of_identity/layer_05"}, "'cost_of_identity'"),
    "no validation": ([{"on_validation": False}], {"stage": "validate"}, READ.format("validate", r"\]")),
    "no momenta": ([{}], {"quantity": "hamiltonian", "stage": "validate"}, READ.format("validate", "'")),
}


@pytest.mark.parametrize(("monitors", "changes", "message"), UNSEEN.values(), ids=UNSEEN)
def test_what_is_not_looked_at_is_said_once_a_fit(make_module, make_data, make_trainer, monitors, changes, message):
    alert = LayerAlert(**({"quantity": "cost_of_identity", "condition": "> -1", "action": "stop"} | changes))
    trainer = make_trainer(*(EnergyMonitor(**one) for one in monitors), alert)
    with pytest.warns(UserWarning, match=message) as caught:
        trainer.fit(
            make_module(),
            datamodule=make_data(),
        )
    assert sum("is not looked at" in str(one.message) for one in caught) == 1
    assert not trainer.should_stop


class Stack(ConstantRate):
    """A plain stack, whose layers are a linear map and the norm after it."""

    def __init__(self):
        super().__init__(3, 2, 6, 2, 2.0)
        maps = [part for _ in range(3) for part in (nn.Linear(6, 6), nn.LayerNorm(6), nn.Tanh())]
        self.network = nn.Sequential(nn.Linear(3, 6), *maps, nn.Linear(6, 2))

    def training_step(self, batch, batch_idx):
        return (self.network(batch[0]) - batch[1]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.network(batch[0])

    on_validation_epoch_end = on_train_epoch_end = lambda self: None


def test_all_of_a_layer_is_frozen(make_data, make_trainer):
    alert = LayerAlert(**SECOND, action="freeze")
    make_trainer(EnergyMonitor(), alert, max_epochs=3).fit(Stack(), datamodule=make_data())
    assert alert.frozen == ["network.4.weight", "network.4.bias", "network.5.weight", "network.5.bias"]


def test_where_the_layers_change_all_thaw(make_module, make_data, make_trainer):
    alert, weights = LayerAlert(**SECOND, action="freeze"), Weights()
    refiner = LayerRefiner(1e-3, every_n_steps=9, start_step=4)
    trainer = make_trainer(EnergyMonitor(), alert, refiner, weights, max_epochs=5)
    trainer.fit(make_module(), datamodule=make_data())
    assert same(*({name: step[name] for name in LAYER} for step in (weights.steps[1], weights.steps[2])))
    assert alert.frozen == []


@pytest.mark.parametrize("key", ["cost_of_identity/layer_03", "val_cost_of_identity/layer_03", "hamiltonian/spread"])
def test_early_stopping_sees_the_keys_of_layers(make_module, make_data, make_trainer, key):
    stopping = EarlyStopping(key, patience=1, mode="max", min_delta=1e9)
    trainer = make_trainer(EnergyMonitor(), stopping, max_epochs=9)
    trainer.fit(make_module(), datamodule=make_data())
    assert trainer.current_epoch == 2


# Several processes.

STRATEGIES = {
    "ddp": (AdamW, DDPStrategy, {}),
    "views": (AdamW, DDPStrategy, {"gradient_as_bucket_view": True}),
    "static": (AdamW, DDPStrategy, {"static_graph": True}),
    "shards": (None, ModelParallelStrategy, {"data_parallel_size": 2, "tensor_parallel_size": 1}),
}


class Sharded(fits.Sharded):
    configure_optimizers = AdamW.configure_optimizers
    fused = False


def shared_fit(cls, strategy, stage, accumulated):
    weights = Weights()
    freezes = LayerAlert(**SECOND, action="freeze", stage=stage)
    stops = LayerAlert("cost_of_identity", "> -1", 4, "stop", stage=stage)
    changes = {"max_epochs": 9, "accumulate_grad_batches": accumulated, "gradient_clip_val": 0.1, "strategy": strategy}
    size = 1 if strategy == "auto" else 2
    trainer = fits.make_trainer(size, [EnergyMonitor(), freezes, stops, weights], **changes)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*LayerAlert")
        trainer.fit(fits.make_module(cls or Sharded), fits.Data(accumulated=accumulated))
    return weights.steps, freezes.state_dict(), stops.state_dict()


def collectives_of(*alerts):
    """How many collectives two epochs take."""
    with counted_collectives() as said:
        fits.make_trainer(2, [EnergyMonitor(), *alerts], max_epochs=2).fit(fits.make_module(), fits.Data())
    return said


def shared_fits(rank, size, folder):
    alert = LayerAlert(**SECOND, action=["warn", "freeze"])
    assert collectives_of(alert) == collectives_of()
    return {
        (name, stage, accumulated): shared_fit(cls, strategy(**told), stage, accumulated)
        for name, (cls, strategy, told) in STRATEGIES.items()
        for stage, accumulated in (("train", 1), ("train", 2), ("validate", 1))
        if (name, accumulated) != ("static", 2)  # torch refuses it
    }


@pytest.mark.slow
def test_processes_freeze_and_stop_alike(tmp_path):
    """A fit that processes share freezes and stops where that of one process does, without another word."""
    found = launch(shared_fits, 2, tmp_path)
    for (name, stage, accumulated), one in found[0].items():
        other = found[1][name, stage, accumulated]
        alone = shared_fit(AdamW, "auto", stage, accumulated)
        assert one[1:] == other[1:] == alone[1:]
        assert one[1]["frozen"] == LAYER
        assert len(one[0]) == len(alone[0]) == (4 if stage == "train" else 8)
        assert all(same(*pair) for pair in zip(one[0], other[0], strict=True))
        for step, expected in zip(one[0], alone[0], strict=True):
            torch.testing.assert_close(step, expected, rtol=1e-9, atol=1e-12)
        first = 1 if stage == "train" else 3
        assert all(torch.equal(step[LAYER[0]], one[0][first][LAYER[0]]) for step in one[0][first:])
