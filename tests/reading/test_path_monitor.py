"""PathMonitor reads in a loop by hand what EnergyMonitor reads under a trainer, and no misuse stops the loop."""

import copy
import pickle
import warnings

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_leaky import EnergyMonitor, LeakyResNet, PathMonitor, Readings, measure_path
from lightning_leaky.metrics import QUANTITIES
from tests.blocks import Net
from tests.callbacks.helpers import ALL, DEFAULTS

DECAY = 0.05
BLOCKS = [key for key in ALL if key not in ("hamiltonian", "criticality_residual")]


class Task(LightningModule):
    """A network and its mean squared error, by SGD with weight decay."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.network(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.network(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, weight_decay=DECAY)


class Kept(Callback):
    """All training readings of a fit."""

    def __init__(self) -> None:
        self.readings: list[Readings] = []

    def on_readings(self, trainer, module, monitor, stage):
        if stage == "train":
            self.readings.append(monitor.readings[stage])


def leaky() -> LeakyResNet:
    torch.manual_seed(0)
    return LeakyResNet(6, 2, width=5, num_layers=4, effective_depth=2.0)


def batches(number: int = 12, size: int = 9):
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(size, width, generator=generator) for width in (6, 2)] for _ in range(number)]


def by_hand(task: Task, monitor: PathMonitor | None, data, accumulate: int = 1):
    """Readings and losses of a loop by hand."""
    (optimizer,) = [task.configure_optimizers()] if monitor is None else [monitor.test_optimizer]
    found, losses = [], []
    for start in range(0, len(data), accumulate):
        for batch in data[start : start + accumulate]:
            if monitor is None:
                loss = task.training_step(batch, 0)
                (loss / accumulate).backward()
            else:
                with monitor.batch(batch, gradient_scale=1 / accumulate):
                    loss = task.training_step(batch, 0)
                    (loss / accumulate).backward()
            losses.append(loss.detach())
        found.append(None if monitor is None else monitor.read())
        optimizer.step()
        optimizer.zero_grad()
    return [one for one in found if one is not None], torch.stack(losses)


def monitored(task: Task, *arguments, **settings) -> PathMonitor:
    optimizer = task.configure_optimizers()
    monitor = PathMonitor(task, *arguments, optimizer=optimizer, **settings)
    monitor.test_optimizer = optimizer
    return monitor


def passes(monitor: PathMonitor, run, data=None):
    """What passes in a batch, and the reading after it."""
    with monitor.batch(data):
        run()
    return monitor.read()


def assert_same_bits(found: Readings, expected: Readings) -> None:
    assert found.quantities.keys() == expected.quantities.keys()
    assert (found.names, found.segments, found.num_samples) == (expected.names, expected.segments, expected.num_samples)
    for name, values in expected.quantities.items():
        assert torch.equal(found[name].nan_to_num(1e9), values.nan_to_num(1e9)), name
    assert torch.equal(found.step_sizes, expected.step_sizes)


def told(caught) -> list[str]:
    return [str(one.message) for one in caught if "PathMonitor" in str(one.message)]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(
    ("make", "layers", "quantities"),
    [(leaky, None, None), (leaky, None, ALL), (Net, None, None), (Net, "network.encoder.*", BLOCKS)],
    ids=["leaky", "leaky, all", "found blocks", "named blocks, all"],
)
def test_training_readings_are_those_of_energy_monitor(make_trainer, make, layers, quantities, accumulate):
    """Bit for bit at the same steps, and losses are those of nobody's watching."""
    kept, data = Kept(), DataLoader(batches(), batch_size=None)
    callbacks = [EnergyMonitor(layers, quantities, every_n_steps=2), kept]
    make_trainer(*callbacks, max_epochs=1, accumulate_grad_batches=accumulate).fit(Task(make()), data)
    task = Task(make())
    monitor = monitored(task, layers, quantities, 2)
    found, losses = by_hand(task, monitor, batches(), accumulate)
    assert len(found) == len(kept.readings) == 12 // accumulate // 2
    for one, expected in zip(found, kept.readings, strict=True):
        assert_same_bits(one, expected)
        assert one.is_finite()
    assert monitor.readings is found[-1]
    assert torch.equal(losses, by_hand(Task(make()), None, batches(), accumulate)[1])


@pytest.mark.parametrize("settings", [{}, {"max_rows": 7, "halves": True}, {"exact": True}], ids=str)
@pytest.mark.parametrize("make", [leaky, Net])
def test_readings_of_a_data_set_are_those_of_energy_monitor_and_measure_path(make_trainer, make, settings):
    task, data = Task(make()), batches(40)
    other = EnergyMonitor(**settings)
    make_trainer(other).validate(task, DataLoader(data, batch_size=None))
    monitor = PathMonitor(task, evaluation=True, **settings)
    task.eval()
    for _ in range(2):
        for batch in data:
            with monitor.batch(batch), torch.no_grad():
                task.validation_step(batch, 0)
        found = monitor.read()
        assert_same_bits(found, other.readings["validate"])
        assert found.is_part == ("max_rows" in settings)
    usual = {"exact": False, "halves": False, "precision": "default"} | settings
    measured = measure_path(task.network, [batch[0] for batch in data], list(found.quantities), **usual)
    for name in found.quantities:
        assert torch.equal(found[name], measured[name])


@pytest.mark.parametrize("unscales", [True, False])
def test_an_amp_scale_is_undone(unscales):
    """A power of two changes no digit; the first step is skipped, because its gradients overflow."""
    quantities, readings = ["momentum_norm", "first_order", "pontryagin_residual"], []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**9)):
        task = Task(leaky()).double()
        monitor, optimizer = monitored(task, None, quantities, 1, weight_decay=0.1), None
        optimizer = monitor.test_optimizer
        for index, batch in enumerate(batches(3)):
            inputs, targets = (one.double() for one in batch)
            scale = 1.0 if scaler is None else scaler.get_scale()
            with monitor.batch(inputs, gradient_scale=scale):
                loss = F.mse_loss(task.network(inputs), targets)
                (loss if scaler is None else scaler.scale(loss)).backward()
            if scaler is not None and unscales:
                scaler.unscale_(optimizer)
            readings.append(monitor.read(parameter_scale=1.0 if unscales else None))
            assert index or readings[-1].is_finite()
            optimizer.step() if scaler is None else scaler.step(optimizer)
            if scaler is not None:
                scaler.update()
            optimizer.zero_grad()
    for plain, scaled in zip(readings[:3], readings[3:], strict=True):
        assert_same_bits(scaled, plain)


def test_it_reads_every_fifty_steps_by_default_and_takes_up_where_a_run_stopped():
    monitor, due = PathMonitor(leaky()), []
    for _ in range(120):
        due += [monitor.num_steps + 1] * monitor.is_due
        monitor.read()
    assert due == [50, 100]
    monitor.num_steps = 49
    assert monitor.is_due
    assert PathMonitor(leaky(), evaluation=True).is_due


def test_what_raises_inside_a_batch_is_not_read():
    """Nor is what runs outside, as a generation between two batches."""
    task, data = Task(leaky()), batches(2)
    monitor = monitored(task, None, ["momentum_norm", "pontryagin_residual"], 1)

    def fail():
        task.training_step(data[0], 0)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        passes(monitor, fail)
    with monitor.batch(data[1]):
        task.training_step(data[1], 0).backward()
    task.network(data[0][0])  # no part of the batch
    found = monitor.read()
    other = Task(leaky())
    (expected,), _ = by_hand(other, monitored(other, None, ["momentum_norm", "pontryagin_residual"], 1), data[1:])
    assert_same_bits(found, expected)


def test_what_passes_after_a_batch_is_no_part_of_it():
    task, (batch,) = Task(leaky()), batches(1)
    monitor = PathMonitor(task, every_n_steps=1)
    with monitor.batch(batch), torch.no_grad():
        task.network(batch[0])
    task.network(batch[0])
    assert monitor.read().num_samples == (9,) * 4


def test_blocks_are_found_in_the_first_batch_whether_it_is_due_or_not():
    task, (batch,) = Task(Net()), batches(1)
    monitor = PathMonitor(task)
    assert monitor.path is None
    assert passes(monitor, lambda: task.network(batch[0])) is None
    assert list(monitor.path.layers) == list(task.network.encoder)


def test_a_backward_pass_after_the_batch_counts():
    task, (batch,) = Task(leaky()), batches(1)
    monitor = monitored(task, None, ["momentum_norm"], 1)
    with monitor.batch(batch):
        loss = task.training_step(batch, 0)
    loss.backward()
    other = Task(leaky())
    (expected,), _ = by_hand(other, monitored(other, None, ["momentum_norm"], 1), [batch])
    assert_same_bits(monitor.read(), expected)


@pytest.mark.parametrize(("quantities", "is_read"), [(["kinetic_energy"], True), (["criticality_residual"], False)])
def test_a_reading_after_the_step_is_left_out_if_it_needs_the_weights(quantities, is_read):
    task, data = Task(leaky()), batches(2)
    monitor = monitored(task, None, quantities, 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in data:
            with monitor.batch(batch):
                task.training_step(batch, 0).backward()
            monitor.test_optimizer.step()
            assert (monitor.read() is not None) == is_read
    assert ["before `optimizer.step()`" in text for text in told(caught)] == [True] * (not is_read)


@pytest.mark.parametrize("backward", [False, True])
def test_momenta_without_a_backward_pass_are_nan_with_one_warning(backward):
    task, data = Task(leaky()), batches(2)
    monitor = monitored(task, None, ["momentum_norm", "kinetic_energy"], 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in data:
            with monitor.batch(batch), torch.set_grad_enabled(backward):
                loss = task.training_step(batch, 0)
            if backward:
                loss.backward()
            readings = monitor.read()
            assert bool(readings["momentum_norm"].isnan().any()) == (not backward)
            assert readings["kinetic_energy"].isfinite().all()
    assert [text for text in told(caught) if "no gradient has reached" in text] == told(caught)
    assert len(told(caught)) == (not backward)


def test_a_loop_that_never_reads_is_told_once():
    monitor, others = PathMonitor(leaky()), [PathMonitor(leaky()), PathMonitor(leaky(), evaluation=True)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for index in range(3000):
            for one in (monitor, *others):
                one.arm()
            if index % 500 == 0:
                others[0].read()
    assert ["1000 batches have passed without a call of `read`" in text for text in told(caught)] == [True]


def test_no_failure_stops_the_loop(monkeypatch):
    """A batch that no layer sees, a quantity that fails, a reading that fails."""
    task, (batch,) = Task(leaky()), batches(1)
    monitor = PathMonitor(task, every_n_steps=1)
    with pytest.warns(UserWarning, match="did not run"):
        assert passes(monitor, lambda: None) is None
    with monkeypatch.context() as patch:
        patch.setattr(type(monitor._observer), "compute", lambda *_: 1 / 0)
        with pytest.warns(UserWarning, match="ZeroDivisionError"):
            assert monitor.read() is None
        patch.setattr(type(monitor._observer), "arm", lambda *_: 1 / 0)
        with pytest.warns(UserWarning, match=r"a look at a batch.*ZeroDivisionError"):
            monitor.arm(batch)
    assert passes(monitor, lambda: task.training_step(batch, 0)).is_finite()


def test_a_detached_monitor_and_a_copy_say_that_they_read_nothing(hooks_of):
    network = leaky()
    monitor = PathMonitor(network, every_n_steps=1)
    passes(monitor, lambda: network(torch.randn(9, 6)).sum().backward())
    copies = [pickle.loads(pickle.dumps(monitor)), copy.deepcopy(monitor)]
    assert hooks_of(network) > 0
    monitor.detach()
    monitor.detach()
    assert hooks_of(network) == 0
    assert not any(one._post_accumulate_grad_hooks for one in network.parameters())
    for one in (monitor, *copies):
        assert_same_bits(one.readings, monitor.readings)
        with pytest.warns(UserWarning, match="detached") as caught:
            assert passes(one, lambda: network(torch.randn(9, 6))) is None
        assert len(caught) == 1


class Wrapper(torch.optim.Optimizer):
    """As accelerate and Fabric hand an optimizer out."""

    def __init__(self, optimizer):
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, pytest.param(lambda model: torch.compile(model, backend="eager"), marks=pytest.mark.slow)],
    ids=["parallel", "compiled"],
)
def test_wrappers_change_neither_names_nor_readings(wrap):
    found, (batch,) = [], batches(1)
    for wrap_model, wrap_optimizer in ((lambda model: model, lambda optimizer: optimizer), (wrap, Wrapper)):
        network = Net()
        model, optimizer = wrap_model(network), torch.optim.SGD(network.parameters(), 0.1, weight_decay=DECAY)
        quantities = ["momentum_norm", "pontryagin_residual"]
        monitor = PathMonitor(model, "encoder.*", quantities, 1, wrap_optimizer(optimizer))
        found.append(passes(monitor, lambda model=model: F.mse_loss(model(batch[0]), batch[1]).backward()))
        monitor.detach()
    assert found[0].names == ("encoder.0", "encoder.1", "encoder.2")
    assert found[0].is_finite()
    assert_same_bits(found[1], found[0])


def test_an_optimizer_tells_which_of_two_stacks_is_trained():
    networks = nn.ModuleList([Net(), Net()])
    optimizer = torch.optim.SGD(networks[1].parameters(), 0.1)
    for used, name in ((optimizer, "1.encoder.0"), ([optimizer], "1.encoder.0"), (None, "0.encoder.0")):
        monitor = PathMonitor(networks, every_n_steps=1, optimizer=used)
        readings = passes(monitor, lambda: sum(network(torch.randn(9, 6)).sum() for network in networks).backward())
        assert readings.names[0] == name
        assert set(readings.quantities) == set(DEFAULTS)
        monitor.detach()


@pytest.mark.parametrize("evaluation", [False, True])
def test_an_optimizer_tells_which_of_two_leaky_networks_is_trained(evaluation):
    networks = nn.ModuleList([leaky(), leaky()])
    optimizer = torch.optim.SGD(networks[1].parameters(), 0.1)
    monitor = PathMonitor(networks, optimizer=optimizer, evaluation=evaluation)
    assert list(monitor.path.layers) == list(networks[1].layers)
    with pytest.raises(ValueError, match="`path` must say which"):
        PathMonitor(networks, evaluation=evaluation)


def test_a_decay_of_the_model_beside_that_of_the_optimizer_is_doubted(make_module):
    module = make_module()
    optimizer = torch.optim.SGD(module.parameters(), 0.1, weight_decay=DECAY)
    with pytest.warns(UserWarning, match="Most likely one is too many"):
        monitor = PathMonitor(module, optimizer=optimizer)
    assert list(monitor.path.layers) == list(module.network.layers)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"every_n_steps": 0}, r"`every_n_steps` must be at least 1.*got 0"),
        ({"every_n_steps": 2, "evaluation": True}, "`every_n_steps` must be .*left out of an evaluation.*got 2"),
        ({"layers": "encoder.*"}, "`layers` must match modules"),
        ({"quantities": ["momentum_norm"]}, "`weight_decay` must be a finite number > 0"),
        ({"quantities": ["momentum_norm"], "evaluation": True}, r"`quantities` must hold one without.*momentum_norm"),
        ({"quantities": ["nonsense"]}, "`quantities` must be chosen from"),
        ({"optimizer": "sgd"}, "`optimizer` must be a torch.optim.Optimizer"),
    ],
)
def test_wrong_arguments_are_refused_at_once(settings, words, hooks_of):
    network = leaky()
    with pytest.raises(ValueError, match=words):
        PathMonitor(network, **settings)
    assert hooks_of(network) == 0


def test_every_quantity_is_tried():
    assert set(ALL) == set(QUANTITIES)
