"""The optimizer hook in plain PyTorch: when it acts, what it does to the step-sizes, and what it leaves behind."""

import copy
import itertools
import math
import pickle
import re
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lightning_leaky import LeakyResNet, StepSizeHook
from lightning_leaky.functional import SwitchesRule, adaptive_step_sizes, cap_step_sizes, relative_distances
from lightning_leaky.refining import interpolate_layers


def train(network, optimizer, batches):
    """One optimizer step per batch; a list of micro-batches is one batch. Returns the step-sizes after each step."""
    history = []
    for batch in batches:
        optimizer.zero_grad()
        for inputs in batch if isinstance(batch, list) else [batch]:
            network(inputs).square().mean().backward()
        optimizer.step()
        history.append(network.step_sizes.clone())
    return history


def changes(history, start):
    """Numbers, from 1, of the optimizer steps that changed the step-sizes."""
    return [
        number
        for number, (old, new) in enumerate(zip([start, *history], history, strict=False), start=1)
        if not torch.equal(old, new)
    ]


@pytest.fixture
def follow(make_network):
    """Build network, optimizer and attached hook."""

    def build(seed=0, network=None, optimizer=None, **settings):
        network = make_network(seed=seed) if network is None else network
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-2) if optimizer is None else optimizer
        hook = StepSizeHook(network, **({"every_n_steps": 1} | settings)).attach(optimizer)
        return network, optimizer, hook

    return build


def test_two_lines_suffice(make_network):
    network = make_network()
    optimizer = torch.optim.Adam(network.parameters())
    start = network.step_sizes.clone()

    hook = StepSizeHook(network)
    hook.attach(optimizer)

    history = train(network, optimizer, [torch.randn(5, 3) for _ in range(12)])
    assert changes(history, start) == [1, 11]


# When it acts.


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"every_n_steps": 1}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"every_n_steps": 3}, [1, 4, 7]),
        ({"every_n_steps": 3, "start_step": 2}, [2, 5, 8]),
        ({"every_n_steps": 2, "start_step": 3, "stop_step": 5}, [3, 5]),
        ({"every_n_steps": 2, "start_step": 3, "stop_step": 6}, [3, 5]),
        ({"every_n_steps": 1, "start_step": 4, "stop_step": 4}, [4]),
        ({"every_n_steps": 1, "start_step": 9}, []),
    ],
)
def test_acts_on_due_steps_only(follow, settings, expected):
    network, optimizer, hook = follow(**settings)
    start = network.step_sizes.clone()
    history = train(network, optimizer, [torch.randn(5, 3) for _ in range(8)])
    assert changes(history, start) == expected
    assert hook.num_steps == 8


def test_forward_and_backward_see_the_same_step_sizes(follow):
    network, optimizer, _ = follow()
    before = network.step_sizes.clone()
    network(torch.randn(5, 3)).sum().backward()
    assert torch.equal(network.step_sizes, before)
    optimizer.step()
    assert not torch.equal(network.step_sizes, before)


def test_changes_the_buffer_in_place(follow):
    network, optimizer, _ = follow()
    buffer, address = network.step_sizes, network.step_sizes.data_ptr()
    train(network, optimizer, [torch.randn(5, 3) for _ in range(3)])
    assert network.step_sizes is buffer
    assert network.step_sizes.data_ptr() == address


@pytest.fixture
def follow_fused(follow, make_network):
    """An optimizer that an AMP scaler calls even where it skips the step, with `found_inf` set."""

    def build(**settings):
        network = make_network()
        return follow(network=network, optimizer=torch.optim.SGD(network.parameters(), lr=1e-2, fused=True), **settings)

    return build


def test_skipped_steps_do_not_count(follow_fused):
    network, optimizer, hook = follow_fused(every_n_steps=2)
    start = network.step_sizes.clone()
    optimizer.found_inf = torch.tensor(1.0)
    assert changes(train(network, optimizer, [torch.randn(5, 3)]), start) == []
    assert hook.num_steps == 0
    optimizer.found_inf = torch.tensor(0.0)
    assert changes(train(network, optimizer, [torch.randn(5, 3)]), start) == [1]
    assert hook.num_steps == 1


@pytest.mark.parametrize("is_skipped", [False, True])
def test_skipped_steps_and_evaluation_leave_no_distances_behind(follow_fused, is_skipped):
    """Such a batch, an overflowing one too, must not enter the next adaptation."""
    inputs = torch.randn(5, 3)
    (network, optimizer, _), (other, other_optimizer, _) = follow_fused(), follow_fused()
    network.train(is_skipped)
    network(1e3 * torch.randn(5, 3))
    if is_skipped:
        optimizer.found_inf = torch.tensor(1.0)
        optimizer.step()
        optimizer.found_inf = torch.tensor(0.0)
    network.train()
    train(network, optimizer, [inputs])
    train(other, other_optimizer, [inputs])
    assert torch.equal(network.step_sizes, other.step_sizes)


# What it does.


@pytest.mark.parametrize(("damping", "max_leak"), [(1.0, None), (0.1, None), (1.0, 0.6), (0.3, 0.51)])
def test_one_adaptation_equals_the_functions(follow, damping, max_leak):
    network, optimizer, hook = follow(damping=damping, max_leak=max_leak)
    inputs, before = torch.randn(9, 3), network.step_sizes.clone()
    distances = relative_distances(network.representations(inputs).detach(), before)
    expected = adaptive_step_sizes(before, distances, damping)
    if max_leak is not None:
        expected = cap_step_sizes(expected, max_leak / network.effective_depth)
    train(network, optimizer, [inputs])
    torch.testing.assert_close(hook.state_dict()["step_sizes"], expected, rtol=1e-6, atol=0)
    assert torch.equal(network.step_sizes, hook.state_dict()["step_sizes"].float())
    assert not torch.equal(network.step_sizes, before)


def test_undamped_adaptation_sets_steps_in_proportion_to_inverse_distance(follow):
    """The paper's rule, written out here."""
    network, optimizer, hook = follow(damping=1.0, max_leak=None)
    inputs = torch.randn(9, 3)
    path = network.representations(inputs).detach().double()
    distances = (path[1:] - path[:-1]).norm(dim=(1, 2)) / (network.step_sizes.double() * path[1:].norm(dim=(1, 2)))
    train(network, optimizer, [inputs])
    torch.testing.assert_close(hook.state_dict()["step_sizes"], (1 / distances) / (1 / distances).sum())


def test_micro_batches_add_up_to_the_full_batch(follow):
    inputs = torch.randn(12, 3)
    network, optimizer, hook = follow()
    split, split_optimizer, split_hook = follow()
    train(network, optimizer, [inputs])
    train(split, split_optimizer, [[inputs[:2], inputs[2:9], inputs[9:]]])
    torch.testing.assert_close(
        split_hook.state_dict()["step_sizes"], hook.state_dict()["step_sizes"], rtol=1e-6, atol=0
    )
    assert split_hook.num_steps == hook.num_steps == 1


def test_only_batches_of_the_due_step_count(follow):
    """Each adaptation sees the batch of its own step, none from the steps before it."""
    network, optimizer, hook = follow(every_n_steps=3, damping=1.0, max_leak=None)
    train(network, optimizer, [torch.randn(5, 3) for _ in range(3)])
    last, before = torch.randn(5, 3), hook.state_dict()["step_sizes"]
    distances = relative_distances(network.representations(last).detach(), before)
    train(network, optimizer, [last])
    torch.testing.assert_close(
        hook.state_dict()["step_sizes"], adaptive_step_sizes(before, distances), rtol=1e-6, atol=0
    )


@given(
    damping=st.floats(0.01, 1.0),
    slack=st.floats(1.0, 3.0),
    effective_depth=st.floats(0.1, 12.0),
    seed=st.integers(0, 999),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_step_sizes_stay_a_distribution_under_the_bound(damping, slack, effective_depth, seed, dtype):
    torch.manual_seed(seed)
    num_layers = 5
    network = LeakyResNet(3, 2, width=6, num_layers=num_layers, effective_depth=effective_depth)
    network.step_sizes = network.step_sizes.to(dtype)
    max_leak = slack * effective_depth / num_layers
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    hook = StepSizeHook(network, every_n_steps=1, damping=damping, max_leak=max_leak).attach(optimizer)
    for _ in range(4):
        optimizer.zero_grad()
        network(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
        master = hook.state_dict()["step_sizes"]
        assert master.dtype == torch.float64
        assert float(master.sum()) == pytest.approx(1.0, abs=1e-12)
        assert bool((master > 0).all())
        assert float(master.max()) * effective_depth <= max_leak * (1 + 1e-12)
        assert torch.equal(network.step_sizes, master.to(dtype))


def test_a_coarse_buffer_does_not_coarsen_the_master(make_network):
    """Many small changes below the resolution of bfloat16 must not be lost, nor the sum of the step-sizes."""
    network = make_network(num_layers=64, effective_depth=1.0)
    network.step_sizes = network.step_sizes.bfloat16()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    hook = StepSizeHook(network, every_n_steps=1, damping=1e-3).attach(optimizer)
    inputs = torch.randn(5, 3)
    masters = []
    for _ in range(3):
        train(network, optimizer, [inputs])
        masters.append(hook.state_dict()["step_sizes"])
    assert float(masters[-1].sum()) == pytest.approx(1.0, abs=1e-12)
    steps = [(new - old).abs().max() for old, new in itertools.pairwise(masters)]
    resolution = (1 / 64) * 2**-8
    assert all(0 < step < resolution for step in steps)


def test_a_buffer_changed_by_others_is_followed(follow):
    network, optimizer, hook = follow(damping=1e-6)
    train(network, optimizer, [torch.randn(5, 3)])
    network.set_step_sizes([0.1, 0.2, 0.3, 0.4])
    train(network, optimizer, [torch.randn(5, 3)])
    expected = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    torch.testing.assert_close(hook.state_dict()["step_sizes"], expected, rtol=1e-4, atol=0)


def test_a_restored_state_brings_the_step_sizes_back(follow, make_network):
    """Where a sharded checkpoint has left them out, for a model that had none to speak of."""
    network, optimizer, hook = follow()
    train(network, optimizer, [torch.randn(5, 3)])
    fresh = make_network()
    StepSizeHook(fresh, every_n_steps=1).load_state_dict(hook.state_dict())
    assert torch.equal(fresh.step_sizes, network.step_sizes)


def test_a_network_in_evaluation_mode_is_told_so(follow):
    network, optimizer, _ = follow()
    network.eval()
    with pytest.warns(UserWarning, match=r"want model\.train\(\)"):
        train(network, optimizer, [torch.randn(5, 3)])


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_unusable_distances_change_nothing_and_warn_once(follow, value):
    """Zero inputs without bias rest; NaN and infinity have no distance."""
    network = LeakyResNet(3, 2, width=6, num_layers=4, effective_depth=2.0, constant_column=False)
    _, optimizer, hook = follow(network=network)
    before, master = network.step_sizes.clone(), hook.state_dict()["step_sizes"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            network(torch.full((5, 3), value))
            optimizer.step()
    assert len([one for one in caught if "per unit of p" in str(one.message)]) == 1
    assert torch.equal(network.step_sizes, before)
    assert torch.equal(hook.state_dict()["step_sizes"], master)
    train(network, optimizer, [torch.randn(5, 3)])
    assert not torch.equal(network.step_sizes, before)


# What it keeps and what it leaves behind.


@pytest.mark.parametrize("split_at", [2, 3, 4])
def test_a_resumed_run_equals_an_uninterrupted_one(follow, split_at):
    """Also in the middle of a period; the float64 master comes back with all its digits."""
    batches = [torch.randn(5, 3) for _ in range(9)]
    network, optimizer, hook = follow(every_n_steps=3, damping=0.3)
    train(network, optimizer, batches)

    first, first_optimizer, first_hook = follow(every_n_steps=3, damping=0.3)
    train(first, first_optimizer, batches[:split_at])
    state = copy.deepcopy((first.state_dict(), first_optimizer.state_dict(), first_hook.state_dict()))

    second, second_optimizer, second_hook = follow(seed=7, every_n_steps=3, damping=0.3)
    for thing, saved in zip((second, second_optimizer, second_hook), state, strict=True):
        thing.load_state_dict(saved)
    train(second, second_optimizer, batches[split_at:])

    assert torch.equal(second.step_sizes, network.step_sizes)
    assert torch.equal(second_hook.state_dict()["step_sizes"], hook.state_dict()["step_sizes"])
    assert second_hook.num_steps == hook.num_steps == 9
    for mine, theirs in zip(second.parameters(), network.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_state_saved_between_micro_batches_brings_their_distances(follow):
    """The second half of an accumulated batch after a resume, with the first half before it."""
    inputs = torch.randn(8, 3)
    network, optimizer, hook = follow()
    network(inputs[:3]).sum().backward()
    state = copy.deepcopy(hook.state_dict())
    network(inputs[3:]).sum().backward()
    optimizer.step()

    resumed, resumed_optimizer, resumed_hook = follow()
    resumed_hook.load_state_dict(state)
    resumed(inputs[3:]).sum().backward()
    resumed_optimizer.step()
    assert torch.equal(resumed_hook.state_dict()["step_sizes"], hook.state_dict()["step_sizes"])


def test_a_state_is_a_snapshot(follow):
    network, optimizer, hook = follow()
    network(torch.randn(5, 3))
    state = hook.state_dict()
    before = copy.deepcopy(state)
    assert before["sums"].any()
    train(network, optimizer, [torch.randn(5, 3)])
    assert torch.equal(state["step_sizes"], before["step_sizes"])
    assert torch.equal(state["sums"], before["sums"])
    assert not torch.equal(hook.state_dict()["step_sizes"], before["step_sizes"])


def test_a_state_loads_before_attaching(follow, make_network):
    network, optimizer, hook = follow(every_n_steps=2)
    train(network, optimizer, [torch.randn(5, 3)])
    other = make_network(seed=0)
    late = StepSizeHook(other, every_n_steps=2)
    late.load_state_dict(hook.state_dict())
    late_optimizer = torch.optim.SGD(other.parameters(), lr=1e-2)
    late.attach(late_optimizer)
    start = other.step_sizes.clone()
    assert changes(train(other, late_optimizer, [torch.randn(5, 3) for _ in range(3)]), start) == [2]
    assert late.num_steps == 4


def test_a_state_of_another_depth_is_refused(follow, make_network):
    _, _, hook = follow()
    _, _, deeper = follow(network=make_network(num_layers=5))
    with pytest.raises(ValueError, match="`state`"):
        hook.load_state_dict(deeper.state_dict())


def test_detach_removes_every_hook(follow, hooks_of):
    network, optimizer, hook = follow()
    assert hook.is_attached
    assert hooks_of(network) == 2 * len(network.layers)
    train(network, optimizer, [torch.randn(5, 3)])
    after = network.step_sizes.clone()
    hook.detach()
    assert not hook.is_attached
    assert hooks_of(network) == 0
    assert len(optimizer._optimizer_step_post_hooks) == 0
    train(network, optimizer, [torch.randn(5, 3)])
    assert torch.equal(network.step_sizes, after)
    assert hook.num_steps == 1


def test_attaching_twice_is_refused(follow):
    _, optimizer, hook = follow()
    with pytest.raises(ValueError, match="`optimizer`"):
        hook.attach(optimizer)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda hook: pickle.loads(pickle.dumps(hook))])
def test_copies_have_a_network_of_their_own_and_no_hooks(follow, hooks_of, clone):
    network, optimizer, hook = follow()
    train(network, optimizer, [torch.randn(5, 3)])
    twin = clone(hook)
    assert not twin.is_attached
    assert twin.num_steps == 1
    assert torch.equal(twin.state_dict()["step_sizes"], hook.state_dict()["step_sizes"])
    twin_optimizer = torch.optim.SGD(twin.path.parameters(), lr=1e-2)
    before = network.step_sizes.clone()
    twin.attach(twin_optimizer)
    start = twin.path.step_sizes.clone()
    assert changes(train(twin.path, twin_optimizer, [torch.randn(5, 3)]), start) == [1]
    assert torch.equal(network.step_sizes, before)


def test_finds_the_path_inside_other_modules(make_network):
    network = make_network()
    hook = StepSizeHook(nn.Sequential(nn.Linear(3, 3), network, nn.Linear(2, 2)))
    assert hook.path is network


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("every_n_steps", {"every_n_steps": 0}),
        ("damping", {"damping": 0.0}),
        ("damping", {"damping": 1.5}),
        ("start_step", {"start_step": 0}),
        ("stop_step", {"start_step": 5, "stop_step": 4}),
        ("max_leak", {"max_leak": 0.0}),
        ("max_leak", {"max_leak": 0.49}),  # L̃/L = 0.5
        ("max_leak", {"max_leak": math.nan}),
        ("rule", {"rule": "fastest"}),
        ("layout", {"layout": "tnc"}),
        ("padding_mask", {"padding_mask": torch.ones(2)}),
    ],
)
def test_wrong_settings_are_named(make_network, name, settings):
    with pytest.raises(ValueError, match=f"`{name}`"):
        StepSizeHook(make_network(), **settings)


def test_the_tightest_bound_is_feasible(make_network):
    StepSizeHook(make_network(), max_leak=0.5)


def test_models_without_or_with_several_paths_are_refused(make_network):
    with pytest.raises(ValueError, match="`model` must contain a module with step-sizes"):
        StepSizeHook(nn.Linear(3, 3))
    two = nn.ModuleDict({"left": make_network(), "right": make_network()})
    with pytest.raises(ValueError, match=r"`path` must say which of \['left', 'right'\] .* path='left'"):
        StepSizeHook(two)


def test_two_hooks_follow_two_paths_of_a_module(make_network):
    """Each its own optimizer's steps, as a twin that stands alone does."""
    model = nn.ModuleDict({"one": make_network(), "other": make_network(seed=1)})
    twins = {name: make_network(seed=seed) for seed, name in enumerate(model)}
    for name, twin in twins.items():
        optimizers = [torch.optim.SGD(one.parameters(), lr=1e-2) for one in (model[name], twin)]
        chosen = StepSizeHook(model, every_n_steps=1, path=name if name == "one" else model[name])
        chosen.attach(optimizers[0])
        StepSizeHook(twin, every_n_steps=1).attach(optimizers[1])
        batches = [torch.randn(5, 3) for _ in range(3)]
        history = train(model[name], optimizers[0], batches)
        torch.testing.assert_close(history, train(twin, optimizers[1], batches), rtol=0, atol=0)
        assert changes(history, torch.full((4,), 0.25)) == [1, 2, 3]


# Nothing of it stops a training.


class Broken(SwitchesRule):
    """Raises what it is told, when it is asked for distances."""

    def __init__(self):
        super().__init__()
        self.errors = []

    def distances(self, sums, step_sizes, effective_depth):
        if self.errors:
            raise self.errors.pop(0)
        return super().distances(sums, step_sizes, effective_depth)


def told(caught):
    return [str(one.message) for one in caught if re.search("left as they are|has failed", str(one.message))]


def test_a_rule_that_raises_leaves_the_step_sizes_and_each_reason_is_said_once_a_fit(follow):
    """Numbers in a message are no other reason; the next step that can be adapted is, with its own batch only."""
    rule = Broken()
    network, optimizer, hook = follow(rule=rule)
    for _ in range(2):
        errors = [
            RuntimeError("row 3 is bad"),
            RuntimeError("row 14 is bad"),
            KeyError("row"),
            RuntimeError("row 3 is bad"),
        ]
        rule.errors = list(errors)
        before = network.step_sizes.clone()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            train(network, optimizer, [torch.randn(5, 3) for _ in errors])
        assert torch.equal(network.step_sizes, before)
        first, second = told(caught)
        assert "RuntimeError: row 3 is bad" in first
        assert "KeyError" in second
        hook.detach()
        hook.attach(optimizer)
    inputs, before = torch.randn(5, 3), hook.state_dict()["step_sizes"]
    path = network.representations(inputs).double().detach()
    sums = torch.stack([rule.sums(*pair) for pair in itertools.pairwise(path)])
    expected = adaptive_step_sizes(before, rule.distances(sums, before, 2.0), 0.1)
    train(network, optimizer, [inputs])
    torch.testing.assert_close(hook.state_dict()["step_sizes"], expected, rtol=1e-6, atol=0)
    assert hook.num_steps == 9


class Shapeless(SwitchesRule):
    def distances(self, sums, step_sizes, effective_depth):
        return super().distances(sums, step_sizes, effective_depth)[:-1]


def spoilt_state(network, optimizer):
    """As of an optimizer that keeps its moments in blocks."""
    for parameter in network.parameters():
        optimizer.state[parameter]["absmax"] = torch.ones(3)


@pytest.mark.parametrize(
    ("settings", "spoil", "reason"),
    [
        ({"rule": Shapeless()}, lambda network, optimizer: None, "`distances` must have the shape"),
        ({"move_weights": True}, spoilt_state, "`optimizer` must keep tensors of a parameter's shape"),
        ({}, lambda network, optimizer: network.step_sizes.fill_(math.nan), "finite"),
        ({}, lambda network, optimizer: network.layers[0].eval(), "training mode|Look for layers"),
    ],
    ids=["wrong shape", "state that cannot move", "step-sizes of NaN", "one layer in evaluation mode"],
)
def test_whatever_fails_in_the_middle_the_training_goes_on(follow, settings, spoil, reason):
    network, optimizer, hook = follow(**settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        train(network, optimizer, [torch.randn(5, 3)])
        spoil(network, optimizer)
        before, weights = network.step_sizes.clone(), network.weights().detach().clone()
        train(network, optimizer, [torch.randn(5, 3) for _ in range(2)])
    (only,) = told(caught)
    assert re.search(reason, only)
    torch.testing.assert_close(network.step_sizes, before, rtol=0, atol=0, equal_nan=True)
    assert hook.num_steps == 3
    assert not torch.equal(network.weights(), weights)


def test_fake_tensors_leave_it_as_it_was(follow):
    """A rehearsal of a step, as for an estimate of memory."""
    network, optimizer, hook = follow()
    before = hook.state_dict()["step_sizes"]
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network(torch.randn(5, 3))
        optimizer.step()
    assert torch.equal(hook.state_dict()["step_sizes"], before)
    (after,) = train(network, optimizer, [torch.randn(5, 3)])
    assert float((after - before).abs().max()) > 1e-3


def test_the_global_random_state_is_untouched(follow):
    network, optimizer, _ = follow()
    batch = torch.randn(5, 3)
    state = torch.get_rng_state()
    train(network, optimizer, [batch])
    assert torch.equal(torch.get_rng_state(), state)


def test_no_warning_in_a_healthy_run(follow):
    network, optimizer, _ = follow()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(network, optimizer, [torch.randn(5, 3) for _ in range(3)])


def test_iterated_adaptation_makes_relative_distances_equal(make_network):
    """Where weights rest, the rule's fixed point is reached: ρ_l c_l is the same for all layers."""
    network = make_network(effective_depth=1.0, init_noise=0.1).double()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    StepSizeHook(network, every_n_steps=1, damping=0.5).attach(optimizer)
    inputs = torch.randn(20, 3, dtype=torch.float64)

    def unevenness():
        path = network.representations(inputs).detach()
        moved = network.step_sizes * relative_distances(path, network.step_sizes)
        return float(moved.max() / moved.min()) - 1

    before = unevenness()
    train(network, optimizer, [inputs] * 60)
    assert before > 0.05
    assert unevenness() < 1e-3


# Rules, moving weights, gradients per unit of p.


class Slowly:
    """A rule that wants step-sizes in proportion to 1, 2, 3, …, whatever the network does."""

    def sums(self, previous, current):
        return torch.ones(2, 2)

    def distances(self, sums, step_sizes, effective_depth):
        assert sums.shape == (len(step_sizes), 2, 2)
        return 1 / torch.arange(1, len(step_sizes) + 1, dtype=torch.float64)


def test_a_rule_of_ones_own(follow):
    network, optimizer, _ = follow(rule=Slowly(), damping=1.0, max_leak=None)
    train(network, optimizer, [torch.randn(5, 3)])
    expected = torch.arange(1, len(network.layers) + 1) / sum(range(1, len(network.layers) + 1))
    torch.testing.assert_close(network.step_sizes, expected)


def test_compiled_code_does_not_make_the_sums(follow):
    """A CUDA graph overwrites what it has made: of the tensors that outlive a pass, it may make none."""
    made = []

    def backend(graph, inputs):
        made.extend(node for node in graph.graph.nodes if "zeros" in str(node.target))
        return graph

    network, optimizer, hook = follow()
    eager, other, _ = follow()
    torch._dynamo.reset()
    network.compile(backend=backend, fullgraph=True)
    batches = [torch.randn(5, 3) for _ in range(3)]
    torch.testing.assert_close(train(network, optimizer, batches), train(eager, other, batches))
    assert hook.state_dict()["sums"] is not None
    assert made == []


class PerNeuron:
    """Sums of the width of the layer, and something else for a single column."""

    def __init__(self, of_one_column):
        self.of_one_column = of_one_column

    def sums(self, previous, current):
        return (current - previous).square().sum(0) if current.shape[-1] > 1 else self.of_one_column()

    def distances(self, sums, step_sizes, effective_depth):
        return sums.sum(1).sqrt() / step_sizes


def refuse():
    raise IndexError("two neurons at least")


@pytest.mark.parametrize("of_one_column", [refuse, lambda: None, lambda: torch.zeros(1)])
def test_sums_may_be_as_wide_as_the_layer(follow, of_one_column):
    network, optimizer, hook = follow(rule=PerNeuron(of_one_column))
    (after,) = train(network, optimizer, [torch.randn(5, 3)])
    assert hook.state_dict()["sums"].shape == (4, 6)
    assert float((after - 0.25).abs().max()) > 1e-3


def test_switches_over_micro_batches(follow):
    """Sums of micro-batches are those of the whole batch, and the update is that of the rule by hand."""
    inputs = torch.randn(12, 3)
    rule = SwitchesRule()
    network, optimizer, _ = follow(rule="switches", damping=1.0, max_leak=None)
    path = network.representations(inputs).double().detach()
    sums = torch.stack([rule.sums(before, after) for before, after in itertools.pairwise(path)])
    speeds = rule.distances(sums, network.step_sizes, network.effective_depth)
    expected = adaptive_step_sizes(network.step_sizes, speeds)
    train(network, optimizer, [[inputs[:5], inputs[5:]]])
    torch.testing.assert_close(network.step_sizes, expected.float(), rtol=1e-5, atol=0)


def test_weights_move_with_their_place(make_network):
    """W as a function of p stays what it was: after a step of no length each layer holds what stands where it is."""
    network = make_network()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.0)
    before, weights = network.step_sizes.clone(), network.weights().detach().clone()
    StepSizeHook(network, 1, damping=0.5, move_weights=True).attach(optimizer)
    train(network, optimizer, [torch.randn(5, 3)])
    assert not torch.equal(network.step_sizes, before)
    expected = interpolate_layers(weights, before, network.step_sizes)
    torch.testing.assert_close(network.weights().detach(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(network.weights(), weights)


def test_moving_weights_disturbs_the_function_less(make_network):
    """Of a network whose weights are a smooth function of p."""
    outputs = {}
    for moves in (False, True):
        network = make_network(num_layers=12, effective_depth=1.0)
        positions = torch.arange(12) / 12
        with torch.no_grad():
            first, last = (network.layers[0].weight.clone(), 3 * network.layers[1].weight)
            for layer, position in zip(network.layers, positions, strict=True):
                layer.weight.copy_((1 - position) * first + position * last)
                layer.bias.fill_(position)
        inputs = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
        exact = network(inputs).detach()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
        StepSizeHook(network, 1, damping=1.0, move_weights=moves, max_leak=None).attach(optimizer)
        train(network, optimizer, [inputs])
        outputs[moves] = float((network(inputs).detach() - exact).norm())
    assert outputs[True] < outputs[False] / 2


def test_layers_of_several_kinds_cannot_exchange_weights(make_network):
    network = make_network()
    network.layers[1].bias = None
    with pytest.raises(ValueError, match="`layers` must have parameters of the same names and shapes"):
        StepSizeHook(network, move_weights=True).attach(torch.optim.SGD(network.parameters(), lr=0.1))


def test_gradients_per_unit_of_p(make_network):
    inputs, gradients = torch.randn(5, 3), {}
    for scales in (False, True):
        network = make_network()
        network.set_step_sizes(torch.arange(1, len(network.layers) + 1) / sum(range(1, len(network.layers) + 1)))
        hook = StepSizeHook(network, scale_gradients=scales, max_leak=None)
        hook.attach(torch.optim.SGD(network.parameters(), lr=0.1))
        for _ in range(2):  # accumulated ones are scaled once
            network(inputs).square().mean().backward()
        gradients[scales] = [layer.weight.grad.clone() for layer in network.layers]
        of_maps = network.input_map.weight.grad
        gradients[scales].append(of_maps.clone())
    shares = [*(network.step_sizes * len(network.layers)), 1.0]
    for plain, scaled, share in zip(gradients[False], gradients[True], shares, strict=True):
        torch.testing.assert_close(scaled * share, plain)
    hook.detach()
    network.zero_grad()
    network(inputs).square().mean().backward()
    torch.testing.assert_close(2 * network.layers[0].weight.grad, gradients[False][0])


def test_an_attached_hook_that_scales_and_moves_can_be_copied(follow):
    network, optimizer, hook = follow(scale_gradients=True, move_weights=True)
    train(network, optimizer, [torch.randn(5, 3)])
    copied = pickle.loads(pickle.dumps(copy.deepcopy(hook)))
    assert not copied.is_attached
    assert hook.is_attached


# Steps that somebody else tells.


@pytest.mark.parametrize("automatic", [True, False])
def test_each_step_counts_once_whoever_tells_it(make_network, automatic):
    """An automatic hook hears its optimizer; another one hears only `end_step`."""
    torch.manual_seed(0)
    network, inputs = make_network(), torch.randn(4, 7, 3)
    expected = copy.deepcopy(network)
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.1) for one in (network, expected)]
    hook = StepSizeHook(network, every_n_steps=1).attach(optimizers[0], automatic=automatic)
    other = StepSizeHook(expected, every_n_steps=1).attach(optimizers[1])
    for batch in inputs:
        train(expected, optimizers[1], [batch])
        train(network, optimizers[0], [batch])
        hook.end_step()
        assert hook.num_steps == other.num_steps
        assert torch.equal(network.step_sizes, expected.step_sizes)
    assert float((network.step_sizes - 1 / len(network.step_sizes)).abs().max()) > 1e-4
