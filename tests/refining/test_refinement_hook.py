"""RefinementHook in plain PyTorch: the layers of a Lightning fit, a run that goes on, and what it leaves behind."""

import copy
import pickle
import re
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from lightning_leaky import LayerRefiner, LeakyResNet, StepSizeHook
from lightning_leaky.paths.leaky_path import find_leaky_path
from lightning_leaky.refining import RefinementHook, RefinementSettings, discretisation_errors
from tests.callbacks.helpers import ConstantRate, Recorder
from tests.distributed.launch import launch

SPLITS = {"tolerance": 1e-3, "every_n_steps": 2, "start_step": 2, "max_layers": 24}
"""4, 8, 16 and 24 layers after 0, 2, 4 and 6 steps."""
MERGES = {"tolerance": 30.0, "every_n_steps": 2, "start_step": 2}


@pytest.fixture
def follow(make_network):
    """Network, optimizer and attached hook, all anew, or from the states of others."""

    def build(states=None, seed=0, attach=None, network=None, **settings):
        network = make_network(seed=seed) if network is None else network
        hook = RefinementHook(network, **(SPLITS | settings))
        network.load_state_dict(states[0] if states else network.state_dict())
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2, fused=True)
        hook.attach(optimizer, **(attach or {}))
        if states:
            optimizer.load_state_dict(states[1])
            hook.load_state_dict(states[2])
        return network, optimizer, hook

    return build


def batches(number):
    return torch.randn(number, 8, 3, generator=torch.Generator().manual_seed(1))


def train(network, optimizer, inputs):
    """One optimizer step a batch. Returns the number of layers that each step ran with."""
    lengths = []
    for batch in inputs:
        lengths.append(len(find_leaky_path(network).layers))
        optimizer.zero_grad()
        network(batch).square().mean().backward()
        optimizer.step()
    return lengths


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(("num_layers", "settings"), [(4, SPLITS), (12, MERGES)], ids=["splits", "merges"])
def test_a_loop_refines_as_a_fit_does(make_module, make_data, make_trainer, num_layers, settings, accumulate):
    """Bit for bit: layers, step-sizes, weights."""
    module, recorder, refiner = make_module(ConstantRate, num_layers=num_layers), Recorder(), LayerRefiner(**settings)
    trainer = make_trainer(refiner, recorder, max_epochs=7, accumulate_grad_batches=accumulate)
    trainer.fit(module, datamodule=make_data(batch_size=24 // accumulate))

    twin = make_module(ConstantRate, num_layers=num_layers)
    optimizer = twin.configure_optimizers()
    hook = RefinementHook(twin, **settings).attach(optimizer)
    for batch in recorder.batches:
        optimizer.zero_grad()
        for inputs, targets in batch:
            (twin.loss(twin(inputs), targets) / accumulate).backward()
        optimizer.step()
    assert len(twin.network.layers) == {4: 24, 12: 3}[num_layers]
    assert_same(module.state_dict(), twin.state_dict())
    assert hook.state_dict() == refiner.state_dict() == {"num_steps": 7}


@pytest.mark.parametrize("split_at", [1, 2, 5])
def test_a_resumed_run_equals_an_uninterrupted_one(follow, split_at):
    network, optimizer, _ = follow()
    lengths = train(network, optimizer, batches(9))
    first, optimizer, hook = follow()
    train(first, optimizer, batches(9)[:split_at])
    states = [copy.deepcopy(one.state_dict()) for one in (first, optimizer, hook)]
    resumed, optimizer, _ = follow(states, seed=1)
    assert train(resumed, optimizer, batches(9)[split_at:]) == lengths[split_at:]
    assert_same(network.state_dict(), resumed.state_dict())


def test_detaching_stops_it_and_leaves_no_hook(follow, hooks_of):
    network, optimizer, hook = follow()
    assert train(network, optimizer, batches(3)) == [4, 4, 8]
    hook.detach()
    assert (hooks_of(network), len(optimizer._optimizer_step_post_hooks)) == (0, 0)
    assert train(network, optimizer, batches(3)) == [8, 8, 8]
    hook.attach(optimizer)
    assert train(network, optimizer, batches(2)) == [8, 16]


def test_tells_after_layers_have_changed(follow):
    told = []
    network, optimizer, _ = follow(attach={"on_change": lambda: told.append(len(network.layers))})
    train(network, optimizer, batches(8))
    assert told == [8, 16, 24]


def test_the_errors_of_each_step_can_be_read(follow):
    """Those of its passes, with the layers that it ran with."""
    lengths = []
    network, optimizer, hook = follow(attach={"automatic": False})

    def read(errors):
        torch.testing.assert_close(errors, expected, rtol=1e-5, atol=0)
        lengths.append(len(network.layers))

    for inputs in batches(6):
        expected = discretisation_errors(network.representations(inputs).detach(), network.step_sizes)
        hook.arm(anyway=True)
        train(network, optimizer, [inputs])
        hook.end_step(read)
    assert lengths == [4, 4, 8, 8, 16, 16]


def test_beside_a_step_size_hook(follow):
    """Which follows the layers that there are when it is made, and in the optimizer's step cannot be."""
    settings = {"every_n_steps": 1, "damping": 0.3}
    adapters = []

    def adapt_anew():
        adapters.pop().detach()
        adapters.append(StepSizeHook(network, **settings).attach(optimizer))

    network, optimizer, hook = follow(attach={"automatic": False, "on_change": adapt_anew})
    adapters.append(StepSizeHook(network, **settings).attach(optimizer))
    for inputs in batches(8):
        hook.arm()
        train(network, optimizer, [inputs])
        hook.end_step()
    assert len(network.layers) == network.step_sizes.unique().numel() == 24


def test_a_mesh_changed_by_hand_is_followed(follow):
    network, optimizer, hook = follow()
    train(network, optimizer, batches(1))
    network.remesh([0.25, 0.25, 0.5], optimizer)
    hook.follow()
    assert train(network, optimizer, batches(3)) == [3, 6, 6]


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_passes_inside_backward_do_not_enter(follow, make_network, use_reentrant):
    """Checkpointed layers run once more there, in reverse."""

    class Checkpointed(LeakyResNet):
        def forward(self, inputs):
            representation = self.input_map(inputs)
            for layer, rho in zip(self.layers, self.step_sizes, strict=True):
                representation = checkpoint(layer, representation, rho, use_reentrant=use_reentrant)
            return self.output_map(representation)

    found = []
    for cls in (LeakyResNet, Checkpointed):
        network = make_network()
        network.__class__ = cls
        network, optimizer, _ = follow(network=network, tolerance=0.2)
        train(network, optimizer, batches(8))
        found.append(network.state_dict())
    assert len(network.layers) > 4
    assert_same(*found)


def test_steps_that_fp16_skips_do_not_count(follow):
    """Nor do their passes: of a fused optimizer the hook hears, of others it must be told."""
    meshes = []
    for skips in (False, True):
        network, optimizer, hook = follow(tolerance=0.2)
        for inputs in batches(6):
            if skips:
                optimizer.found_inf = torch.tensor(1.0)  # as a scaler says it
                train(network, optimizer, [9 * inputs])
                network(9 * inputs)
                hook.forget()
            optimizer.found_inf = torch.tensor(0.0)
            train(network, optimizer, [inputs])
        assert hook.state_dict() == {"num_steps": 6}
        meshes.append(network.step_sizes)
    assert len(meshes[0]) > 4
    assert torch.equal(*meshes)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_copies_have_a_network_of_their_own_and_no_hooks(follow, hooks_of, clone):
    network, optimizer, hook = follow(attach={"on_change": lambda: None})
    train(network, optimizer, batches(3))
    twin, other = clone([network, hook])
    assert not other.is_attached
    assert (len(twin.layers), hooks_of(network)) == (8, 16)
    optimizer = torch.optim.Adam(twin.parameters())
    other.attach(optimizer)
    assert train(twin, optimizer, batches(2)) == [8, 16]
    assert len(network.layers) == 8


def _told_and_trained(rank: int, size: int, folder: Path):
    if size > 1:
        dist.init_process_group("gloo")
    torch.manual_seed(0)
    network = LeakyResNet(3, 2, width=6, num_layers=4, effective_depth=2.0).double()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    wrapped = []

    def wrap():
        wrapped.append(DistributedDataParallel(network) if size > 1 else network)

    wrap()
    RefinementHook(wrapped[0], tolerance=0.1, every_n_steps=2, start_step=2).attach(optimizer, on_change=wrap)
    for inputs in batches(8).double():
        train(wrapped[-1], optimizer, [inputs[rank::size]])
    if size > 1:
        dist.destroy_process_group()
    return len(wrapped), network.state_dict()


@pytest.mark.slow
def test_processes_refine_as_one_does(tmp_path):
    """Under DDP without Lightning, wrapped anew."""
    expected = _told_and_trained(0, 1, tmp_path)
    assert expected[0] > 2
    for found in launch(_told_and_trained, 2, tmp_path):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


# Nothing of it stops a training.


def spoilt_state(network, optimizer):
    """As of an optimizer that keeps its moments in blocks."""
    for parameter in network.parameters():
        optimizer.state[parameter]["absmax"] = torch.ones(3)


def diverged(network, optimizer):
    network.layers[2].weight.data.fill_(torch.nan)


def half_seen(network, optimizer):
    network.layers[1].register_forward_hook(lambda layer, args, output: output.to(torch.complex64), prepend=True)
    network.layers[2].register_forward_pre_hook(lambda layer, args: (args[0].real, *args[1:]), prepend=True)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoilt_state, "`optimizer` must keep tensors of a parameter's shape"),
        (diverged, "A layer has diverged"),
        (half_seen, "Layer 2 takes or returns no floating-point tensor"),
    ],
)
def test_whatever_fails_the_layers_stay_and_it_is_said_once_a_fit(follow, spoil, reason):
    network, optimizer, hook = follow(every_n_steps=1, start_step=1, max_layers=8)
    assert train(network, optimizer, batches(1)) == [4]
    hook.settings = RefinementSettings(1e-3, every_n_steps=1, start_step=1)
    spoil(network, optimizer)
    for starts_anew in (False, spoil is not spoilt_state):  # at the start of a fit that state is refused
        if starts_anew:
            hook.detach()
            hook.attach(optimizer)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            assert train(network, optimizer, batches(3)) == [8, 8, 8]
        messages = [str(one.message) for one in caught if re.search("layers are left|Refining", str(one.message))]
        assert len(messages) == (starts_anew or hook.num_steps == 4)
        assert all(reason in message for message in messages)
    assert hook.num_steps == 7


def test_a_rehearsal_on_fake_tensors_changes_nothing(follow):
    network, optimizer, _ = follow(every_n_steps=1, start_step=1)
    with FakeTensorMode(allow_non_fake_inputs=True):
        network(torch.randn(5, 3))
        with pytest.warns(UserWarning, match="training goes on"):
            optimizer.step()
    assert train(network, optimizer, batches(2)) == [4, 8]


def test_what_the_user_does_on_a_change_may_fail(follow):
    """Without it, a wrapped network would be trained wrongly."""

    def fail():
        raise RuntimeError("no room")

    network, optimizer, _ = follow(every_n_steps=1, start_step=1, attach={"on_change": fail})
    with pytest.raises(RuntimeError, match="no room"):
        train(network, optimizer, batches(1))


# Refusals.


class ZeroRedundancyOptimizer(torch.optim.SGD):
    """As torch's is called, which only several processes can make."""


def test_attaching_twice_is_refused(follow):
    _, optimizer, hook = follow()
    with pytest.raises(ValueError, match="attached already"):
        hook.attach(optimizer)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda network: [torch.optim.LBFGS(network.parameters())], "got LBFGS"),
        (lambda network: [ZeroRedundancyOptimizer(network.parameters())], "got Zero.*, which shares them out"),
        (lambda network: [torch.optim.SGD(network.layers[:2].parameters())], "`optimizers` must be one that trains"),
        (lambda network: [torch.optim.SGD(network.parameters()) for _ in range(2)], "got 2 of 2"),
        (lambda network: [], "got 0 of 0"),
    ],
    ids=["LBFGS", "shared out", "some layers", "two", "none"],
)
def test_optimizers_that_cannot_follow_are_refused(make_network, hooks_of, make, match):
    network = make_network()
    hook = RefinementHook(network, tolerance=0.1)
    with pytest.raises(ValueError, match=match):
        hook.attach(*make(network))
    assert (hook.is_attached, hooks_of(network)) == (False, 0)


def compiled_layer(network):
    network.layers[1] = torch.compile(network.layers[1], backend="eager")
    return network


def compiled_in_place(network):
    network.layers[1].compile(backend="eager")
    return network


class Fixed(nn.Module):
    """A path that offers no `remesh`."""

    def __init__(self, network):
        super().__init__()
        self.layers, self.effective_depth = network.layers, 2.0
        self.register_buffer("step_sizes", network.step_sizes)


@pytest.mark.parametrize(
    ("change", "num_layers", "match"),
    [
        (compiled_layer, 4, "must not be compiled"),
        (compiled_in_place, 4, "must not be compiled"),
        (Fixed, 4, "without `remesh`"),
        (lambda network: network, 1, "`num_layers` must be at least 2"),
    ],
    ids=["compiled layer", "compiled in place", "no remesh", "one layer"],
)
def test_models_without_layers_to_change_are_refused(make_network, change, num_layers, match):
    with pytest.raises(ValueError, match=match):
        RefinementHook(nn.Sequential(change(make_network(num_layers=num_layers))), tolerance=0.1)


@pytest.mark.parametrize(
    ("name", "value"), [("tolerance", 0.0), ("every_n_steps", 0), ("min_layers", 0), ("max_leak", 0.0)]
)
def test_wrong_settings_are_named(make_network, name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        RefinementHook(make_network(), **({"tolerance": 0.1} | {name: value}))
