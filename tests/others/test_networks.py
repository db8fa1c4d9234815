"""Both callbacks on networks that are not ours and know nothing of us (`tests.others.networks`)."""

import copy
import warnings

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_leaky import EnergyMonitor, StepSizeAdapter, make_leaky, unmake_leaky
from lightning_leaky.functional import (
    block_influence,
    hamiltonian,
    kinetic_energy,
    objective_weight_decay,
    relative_speed,
    stable_rank,
)
from tests.blocks import effective_dimension, linear
from tests.callbacks.helpers import Recorder
from tests.others.networks import NETWORKS, BasicBlock

READ = {"cost_of_identity", "kinetic_energy", "stable_rank", "relative_speed", "block_influence"}
HIDDEN_STATES = [name for name, network in NETWORKS.items() if network.hidden_states]

pytestmark = pytest.mark.filterwarnings("ignore:EnergyMonitor has no logger")
every_network = pytest.mark.parametrize("name", NETWORKS)


@pytest.fixture
def run(make_trainer):
    """Fits on some batches, by default three of unequal size, in float64; validates on two; returns a Recorder."""

    def fit(module, name, monitor, *callbacks, batches=None, **changes):
        network = NETWORKS[name]
        batches = [network.batch(size) for size in (3, 4, 2)] if batches is None else batches
        recorder = Recorder(monitor)
        trainer = make_trainer(monitor, recorder, *callbacks, **({"max_epochs": 1, "precision": "64-true"} | changes))
        trainer.fit(module, loader_of(batches), loader_of(batches[:2]))
        recorder.validation = batches[:2]
        return recorder

    return fit


@pytest.fixture
def monitor_of():
    """A monitor that is told what to read and of the layout, and of nothing else unless asked."""

    def make(name, *args, **settings):
        layout = NETWORKS[name].layout
        told = {"quantities": sorted(READ)} | ({} if layout is None else {"layout": layout})
        return EnergyMonitor(*args, **(told | settings))

    return make


def loader_of(batches):
    return DataLoader(batches, batch_size=None)


def doubled(batch):
    """A batch in float64."""
    if isinstance(batch, dict):
        return {key: doubled(value) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(map(doubled, batch))
    return batch.double() if batch.is_floating_point() else batch


def module_then(name, recorder, number, leaky=False):
    """The module as it was before an optimizer step, in float64."""
    module = NETWORKS[name].make().double()
    if leaky:
        make_leaky(module, NETWORKS[name].layers)
    module.load_state_dict(recorder.states[number], strict=True)
    return module


def passed_through(module, name, batch):
    """What each block takes and returns, by hooks of our own, and the loss; both still in the graph."""
    taken, returned = [], []

    def keep(block, args, output):
        taken.append(args[0])
        returned.append(output)

    handles = [module.get_submodule(block).register_forward_hook(keep) for block in NETWORKS[name].blocks]
    loss = module.loss(doubled(batch))
    for handle in handles:
        handle.remove()
    assert len(taken) == len(NETWORKS[name].blocks)
    return taken, returned, loss


def matrices(name, passed, batch):
    """Samples in rows, by hand."""
    return [NETWORKS[name].rows(tensor.detach(), batch) for tensor in passed]


def energies_by_hand(previous, current, step_sizes=None):
    """The default readings at L̃ = 0, each layer by itself."""
    rho = torch.ones(len(previous)).double() / len(previous) if step_sizes is None else step_sizes
    readings = {quantity: [] for quantity in READ}
    for before, after, step_size in zip(previous, current, rho.tolist(), strict=True):
        moved = (after - before) / step_size
        readings["cost_of_identity"].append(effective_dimension(before))
        readings["kinetic_energy"].append(kinetic_energy(before, moved, 0.0, features=linear(before)))
        readings["relative_speed"].append(relative_speed(before, after, features=linear(before)))
        readings["block_influence"].append(block_influence(before, after))
        readings["stable_rank"].append(stable_rank(before))
    return {quantity: torch.stack(values) for quantity, values in readings.items()}


def validation_by_hand(name, module, batches, step_sizes=None):
    """The default readings of some batches as of one, in evaluation mode."""
    module.double().eval()
    passed = []
    for batch in batches:
        # With gradients: without, torch packs padded batches of its encoder into nested tensors, a kernel of its own.
        taken, returned, _ = passed_through(module, name, batch)
        passed.append([matrices(name, taken, batch), matrices(name, returned, batch)])
    previous, current = ([torch.cat(rows) for rows in zip(*side, strict=True)] for side in zip(*passed, strict=True))
    return energies_by_hand(previous, current, step_sizes)


def momenta_by_hand(name, module, batch, weight_decay):
    """Hamiltonian and norm of the momentum at L̃ = 0, from gradients with respect to what the blocks return."""
    taken, returned, loss = passed_through(module, name, batch)
    gradients = torch.autograd.grad(loss, returned)
    momenta = [-gradient / weight_decay for gradient in matrices(name, gradients, batch)]
    pairs = zip(matrices(name, taken, batch), momenta, strict=True)
    energies = [hamiltonian(before, momentum, 0.0, features=linear(before)) for before, momentum in pairs]
    return {
        "hamiltonian": torch.stack(energies),
        "momentum_norm": torch.stack([momentum.double().norm() for momentum in momenta]),
    }


def assert_readings(readings, expected):
    """All of them, to eight digits."""
    assert set(readings.quantities) == set(expected)
    for quantity, values in expected.items():
        torch.testing.assert_close(
            readings[quantity], values, rtol=1e-8, atol=0, msg=lambda text, quantity=quantity: f"{quantity}: {text}"
        )
    assert all(float(values.abs().min()) > 0 for values in expected.values())


# What is read.


@every_network
def test_the_blocks_are_found(run, monitor_of, name):
    """Without arguments, as one would name them, and without a complaint."""
    network, monitor = NETWORKS[name], monitor_of(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(network.make(), name, monitor)
    assert not [str(one.message) for one in caught if "read" in str(one.message) and "logger" not in str(one.message)]
    assert set(monitor.readings) == {"train", "validate"}
    for readings in monitor.readings.values():
        assert readings.names == network.blocks
        assert readings.segments == network.segments
        torch.testing.assert_close(readings.step_sizes, torch.full_like(readings.step_sizes, 1 / len(network.blocks)))
        assert set(readings.quantities) == READ
        assert readings.is_finite()


@every_network
def test_readings_of_a_training_batch_equal_those_by_hand(run, monitor_of, name):
    """Of every batch, at the weights before its step."""
    recorder = run(NETWORKS[name].make(), name, monitor_of(name))
    assert len(recorder.readings) == 3
    for number, readings in enumerate(recorder.readings):
        (batch,) = recorder.batches[number]
        taken, returned, _ = passed_through(module_then(name, recorder, number), name, batch)
        assert_readings(readings, energies_by_hand(matrices(name, taken, batch), matrices(name, returned, batch)))


@every_network
def test_readings_of_a_validation_set_equal_those_by_hand(run, monitor_of, name):
    """Of two batches of unequal size as of one, in evaluation mode."""
    module, monitor = NETWORKS[name].make(), monitor_of(name)
    recorder = run(module, name, monitor)
    expected = validation_by_hand(name, module, recorder.validation)
    assert_readings(monitor.readings["validate"], expected)


@pytest.mark.parametrize("name", HIDDEN_STATES)
def test_the_representations_are_the_hidden_states_of_transformers(run, monitor_of, name):
    """The last of them has passed the final normalisation, and is no layer's input."""
    recorder = run(NETWORKS[name].make(), name, monitor_of(name))
    (batch,) = recorder.batches[-1]
    module = module_then(name, recorder, -1)
    hidden = module.model(**doubled(batch), output_hidden_states=True).hidden_states
    assert len(hidden) == 4
    previous = matrices(name, hidden[:-1], batch)
    expected = energies_by_hand(previous[:-1], previous[1:], torch.ones(2).double() / 3)
    for quantity, values in expected.items():
        torch.testing.assert_close(recorder.readings[-1][quantity][:-1], values, rtol=1e-8, atol=0)
    torch.testing.assert_close(recorder.readings[-1]["cost_of_identity"][-1], effective_dimension(previous[-1]))


@every_network
@pytest.mark.parametrize("given", [True, False], ids=["given", "of_the_optimizer"])
def test_momenta_equal_those_by_hand(run, monitor_of, name, given):
    """B_l = −(1/λ) ∂C/∂A_l with λ as given, or λ = d/L from the weight decay of SGD."""
    quantities = ["hamiltonian", "momentum_norm"]
    if given:
        module, settings, weight_decay = NETWORKS[name].make(), {"weight_decay": 0.1}, 0.1
    else:
        module, settings = NETWORKS[name].make(weight_decay=0.2), {}
        weight_decay = objective_weight_decay(0.2, len(NETWORKS[name].blocks), 0.0)
        assert weight_decay == pytest.approx(0.2 / len(NETWORKS[name].blocks), rel=1e-12)
    recorder = run(module, name, monitor_of(name, quantities=quantities, **settings))
    for number, readings in enumerate(recorder.readings):
        (batch,) = recorder.batches[number]
        then = module_then(name, recorder, number)
        assert_readings(readings, momenta_by_hand(name, then, batch, weight_decay))


def test_of_a_transition_nothing_is_read(run, monitor_of):
    """Chosen along with the others it splits the path all the same."""
    monitor = monitor_of("resnet", BasicBlock)
    recorder = run(NETWORKS["resnet"].make(), "resnet", monitor)
    blocks = {name for name, module in NETWORKS["resnet"].make().named_modules() if isinstance(module, BasicBlock)}
    assert blocks - set(monitor.readings["train"].names) == {f"model.layer{stage}.0" for stage in (2, 3, 4)}
    assert monitor.readings["train"].segments == (2, 1, 1, 1)
    (batch,) = recorder.batches[-1]
    taken, _, _ = passed_through(module_then("resnet", recorder, -1), "resnet", batch)
    assert [tensor.shape[1] for tensor in taken] == [4, 4, 6, 8, 10]
    parts = [part["cost_of_identity"] for part in monitor.readings["train"].split()]
    assert [len(part) for part in parts] == [2, 1, 1, 1]
    assert "cost_of_identity/segment_4/min" in monitor.readings["train"].summaries()


def test_stages_apart_are_read_where_they_are_chosen(run, monitor_of):
    """As where they are found: each is a segment."""
    monitor = monitor_of("convnext", "model.convnext.encoder.stages.*.layers.*")
    run(NETWORKS["convnext"].make(), "convnext", monitor)
    readings = monitor.readings["train"]
    assert readings.names == tuple(
        f"model.convnext.encoder.stages.{stage}.layers.{block}"
        for stage, depth in ((0, 2), (1, 3))
        for block in range(depth)
    )
    assert readings.segments == (2, 3)
    assert readings.is_finite()


def test_channels_last_gives_the_same_readings(run, monitor_of):
    """The memory format changes no axes. (ConvNeXt moves channels last by itself.)"""
    name = "resnet"
    network, quantities = NETWORKS[name], [*READ, "hamiltonian", "momentum_norm"]
    pixels, labels = network.batch(3)
    module, seen, monitors = network.make(), [], []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        mine = copy.deepcopy(module).to(memory_format=memory_format)
        block = mine.get_submodule(network.blocks[-1])
        block.register_forward_hook(lambda block, args, output: seen.append(args[0]))
        monitors.append(monitor_of(name, quantities=quantities, weight_decay=0.1))
        run(mine, name, monitors[-1], batches=[(pixels.contiguous(memory_format=memory_format), labels)])
    assert seen[0].is_contiguous()
    assert seen[-1].is_contiguous(memory_format=torch.channels_last)
    assert not seen[-1].is_contiguous()
    for stage in ("train", "validate"):
        assert_readings(monitors[1].readings[stage], monitors[0].readings[stage].quantities)


def test_attention_tells_the_order_of_axes(run, monitor_of):
    """Sequences first, with a padding mask, as with "tnc"."""
    name = "encoder_of_sequences_first"
    batches = [NETWORKS[name].batch(3)]
    told, untold = monitor_of(name), EnergyMonitor(quantities=sorted(READ))
    module = NETWORKS[name].make()
    run(copy.deepcopy(module), name, told, batches=batches)
    run(module, name, untold, batches=batches)
    assert_readings(untold.readings["train"], told.readings["train"].quantities)


# Leaky steps.


def gradients_of(module, batch):
    module.zero_grad()
    module.loss(batch).backward()
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None}


def outputs_of(module, batch, training):
    with torch.no_grad():
        return module.train(training)(batch)


def assert_same_function(module, other, batch):
    """Outputs, losses and gradients, bit by bit; what batch normalisation remembers of it too."""
    for training in (True, False):
        assert torch.equal(outputs_of(module, batch, training), outputs_of(other, batch, training))
        assert torch.equal(module.loss(batch), other.loss(batch))
        gradients, others = gradients_of(module, batch), gradients_of(other, batch)
        assert gradients.keys() == others.keys()
        assert all(torch.equal(gradient, others[key]) for key, gradient in gradients.items())
    assert_same_state(module, other)


def assert_same_state(module, other):
    state, others = module.state_dict(), other.state_dict()
    assert list(state) == list(others)
    assert all(torch.equal(value, others[key]) for key, value in state.items())


@every_network
def test_leaky_steps_change_nothing_until_they_adapt(name, hooks_of):
    """At L̃ = 0 function, gradients and state are those of the model, bit by bit; unmade, so is the model."""
    network = NETWORKS[name]
    plain, batch = network.make(), network.batch(3)
    leaky = make_leaky(copy.deepcopy(plain), network.layers)
    assert list(leaky.leaky_steps.layers) == [leaky.get_submodule(block) for block in network.blocks]
    assert hooks_of(leaky) == hooks_of(plain) + 2 * len(network.blocks)
    assert_same_function(plain, leaky, batch)
    for source, target in ((network.make(), leaky), (make_leaky(network.make(), network.layers), plain)):
        target.load_state_dict(source.state_dict(), strict=True)
        assert_same_state(source, target)
    leaky.load_state_dict(plain.state_dict(), strict=True)
    back = unmake_leaky(leaky)
    assert back is leaky
    assert hooks_of(back) == hooks_of(plain)
    assert [child for child, _ in back.named_modules()] == [child for child, _ in plain.named_modules()]
    assert_same_function(plain, back, batch)


@every_network
def test_ten_steps_with_adaptive_step_sizes(run, monitor_of, name):
    """ρ stays a distribution and moves; the monitor beside reads the leaky path, with the ρ of each step."""
    network, monitor = NETWORKS[name], monitor_of(name)
    module = make_leaky(network.make(), network.layers)
    batches = [network.batch(3) for _ in range(10)]
    adapter = StepSizeAdapter(every_n_steps=1, layout=network.layout)
    recorder = run(module, name, monitor, adapter, batches=batches)
    rho = module.leaky_steps.step_sizes
    assert len(recorder.losses) == len(recorder.readings) == 10
    assert torch.isfinite(torch.stack(recorder.losses)).all()
    assert rho.dtype == torch.float64
    assert float(rho.min()) > 0
    assert abs(float(rho.sum()) - 1) < 1e-9
    assert float((rho - 1 / len(rho)).abs().max()) > 1e-3
    for number in (0, 1, 9):
        readings, then = recorder.readings[number], module_then(name, recorder, number, leaky=True)
        assert readings.names == network.blocks
        assert readings.segments == network.segments
        torch.testing.assert_close(readings.step_sizes, then.leaky_steps.step_sizes, rtol=1e-12, atol=0)
        taken, returned, _ = passed_through(then, name, batches[number])
        previous, current = matrices(name, taken, batches[number]), matrices(name, returned, batches[number])
        assert_readings(readings, energies_by_hand(previous, current, then.leaky_steps.step_sizes))
    torch.testing.assert_close(monitor.readings["validate"].step_sizes, rho, rtol=1e-12, atol=0)
    assert_readings(monitor.readings["validate"], validation_by_hand(name, module, recorder.validation, rho))


@every_network
def test_leaky_steps_do_what_they_say(name):
    """h ← (1 − ρL̃) h + ρL (block(h) − h), to what the next block takes."""
    network = NETWORKS[name]
    plain, batch = network.make().double(), network.batch(3)
    leaky = make_leaky(copy.deepcopy(plain), network.layers, effective_depth=1.5)
    rho = torch.arange(1.0, len(network.blocks) + 1, dtype=torch.float64)
    leaky.leaky_steps.step_sizes.copy_(rho / rho.sum())
    taken, returned, _ = passed_through(leaky, name, batch)
    with torch.no_grad():
        first = plain.get_submodule(network.blocks[0])
        seen = {}
        handle = first.register_forward_hook(lambda block, args, output: seen.update(before=args[0], after=output))
        plain.loss(doubled(batch))
        handle.remove()
    gain, leak = float(rho[0] / rho.sum()) * len(rho), float(rho[0] / rho.sum()) * 1.5
    wanted = (1 - leak) * seen["before"] + gain * (seen["after"] - seen["before"])
    torch.testing.assert_close(taken[0], seen["before"])
    torch.testing.assert_close(returned[0], wanted)
    same = [before is after for before, after in zip(returned[:-1], taken[1:], strict=True)]
    assert all(same) or name in ("resnet", "convnext")  # what stands between the stages


@pytest.mark.parametrize("name", HIDDEN_STATES)
@pytest.mark.parametrize("asked_before", [False, True])
def test_hidden_states_of_transformers_are_those_of_the_leaky_path(name, asked_before):
    """Also where they were asked for before: transformers has its hooks on the blocks from then on."""
    network = NETWORKS[name]
    module, batch = network.make().double(), doubled(network.batch(3))
    if asked_before:
        module.model(**batch, output_hidden_states=True)
    make_leaky(module, network.layers).leaky_steps.step_sizes.copy_(torch.tensor([0.5, 0.3, 0.2]))
    hidden = module.model(**batch, output_hidden_states=True).hidden_states
    taken, _, _ = passed_through(module, name, batch)
    for state, tensor in zip(hidden[:-1], taken, strict=True):
        assert torch.equal(state, tensor)
