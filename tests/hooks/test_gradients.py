"""Which gradients a step uses, told apart by where they accumulate."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_leaky.hooks.capture import PathCapture
from tests.blocks import Block


@pytest.fixture
def blocks():
    torch.manual_seed(0)
    return nn.ModuleList(Block(4) for _ in range(3)).double()


def run(blocks, inputs, outputs=None):
    """Run the blocks, and keep what they return in a list of the test's own."""
    hidden = inputs
    for block in blocks:
        hidden = block(hidden)
        if outputs is not None:
            outputs.append(hidden)
    return hidden


def watch(blocks, **settings):
    capture = PathCapture(list(blocks), gradients=True, **settings).attach()
    capture.arm()
    return capture


def gradients(capture):
    capture.settle()
    (passage,) = capture.passages
    return passage.gradients


def assert_equal(read, right):
    assert len(read) == len(right)
    for one, other in zip(read, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_backward_passes_of_one_step_add_up(blocks):
    inputs, outputs = torch.randn(5, 4).double(), []
    capture = watch(blocks)
    hidden = run(blocks, inputs, outputs)
    first, second = hidden[:, 0].square().mean(), 100 * hidden[:, 1].square().mean()
    right = torch.autograd.grad(first + second, outputs, retain_graph=True)
    first.backward(retain_graph=True)
    second.backward()
    assert_equal(gradients(capture), right)


@pytest.mark.parametrize("when", ["before", "after"])
def test_gradients_that_nobody_accumulates_do_not_count(blocks, when):
    """For a chart, or inside a penalty."""
    inputs, outputs = torch.randn(5, 4).double(), []
    capture = watch(blocks)
    hidden = run(blocks, inputs, outputs)
    loss, chart = hidden.square().mean(), hidden[:, 0].sum()
    right = torch.autograd.grad(loss, outputs, retain_graph=True)
    if when == "before":
        torch.autograd.grad(chart, [*blocks.parameters()], retain_graph=True)
    loss.backward(retain_graph=True)
    if when == "after":
        torch.autograd.grad(chart, outputs)
    assert_equal(gradients(capture), right)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_that_are_zeroed_take_their_pass_with_them(blocks, set_to_none):
    """As those that the loss of a generator leaves in a discriminator."""
    capture, optimizer = watch(blocks), torch.optim.SGD(blocks.parameters(), 0.1)
    run(blocks, torch.randn(3, 4).double()).sum().backward()
    optimizer.zero_grad(set_to_none=set_to_none)
    inputs, outputs = torch.randn(5, 4).double(), []
    loss = run(blocks, inputs, outputs).square().mean()
    right = torch.autograd.grad(loss, outputs, retain_graph=True)
    loss.backward()
    assert_equal(gradients(capture), right)
    assert len(capture.passages[0].current[0]) == 5


def test_passes_without_gradients_do_not_count_beside_others(blocks):
    capture = watch(blocks)
    with torch.no_grad():
        run(blocks, torch.randn(3, 4).double())
    run(blocks, torch.randn(5, 4).double()).sum().backward()
    run(blocks, torch.randn(7, 4).double())
    capture.settle()
    assert [len(passage.current[0]) for passage in capture.passages] == [5]


def test_all_passes_count_where_no_backward_pass_comes(blocks):
    capture = watch(blocks)
    for rows in (3, 5):
        run(blocks, torch.randn(rows, 4).double())
    capture.settle()
    assert [len(passage.current[0]) for passage in capture.passages] == [3, 5]


@pytest.mark.parametrize("announced", [True, False])
def test_frozen_layers_take_the_gradients_of_announced_passes(blocks, announced):
    inputs, outputs = torch.randn(5, 4).double().requires_grad_(), []
    capture = watch(blocks.requires_grad_(False))
    loss = run(blocks, inputs, outputs).square().mean()
    right = torch.autograd.grad(loss, outputs, retain_graph=True)
    capture.step_gradients.in_backward = announced
    loss.backward()
    assert_equal(gradients(capture), right if announced else [None] * 3)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_pass_is_no_pass(blocks, reentrant):
    """Of two views, each keeps its own gradients, though backward runs the second one first."""
    views = [torch.randn(5, 4).double().requires_grad_() for _ in range(2)]
    outputs = [[], []]
    losses = [run(blocks, view, seen).square().mean() for view, seen in zip(views, outputs, strict=True)]
    right = [torch.autograd.grad(losses[0] + 3 * losses[1], seen, retain_graph=True) for seen in outputs]
    capture = watch(blocks)
    for weight, view in zip((1, 3), views, strict=True):
        hidden = view
        for block in blocks:
            hidden = checkpoint(block, hidden, use_reentrant=reentrant)
        losses[weight // 2] = weight * hidden.square().mean()
    (losses[0] + losses[1]).backward()
    capture.settle()
    assert capture._passes == capture.passages
    assert len(capture.passages) == 2
    for passage, gradients, seen in zip(capture.passages, right, outputs, strict=True):
        assert_equal(passage.gradients, gradients)
        assert_equal(passage.current, [one.detach() for one in seen])


class Routed(Block):
    """A first parameter that no pass uses, as that of an expert that gets no tokens."""

    def __init__(self):
        nn.Module.__init__(self)
        self.gate, self.linear = nn.Linear(4, 4), nn.Linear(4, 4)


def test_a_parameter_that_is_not_used_hides_no_backward_pass():
    blocks, inputs, outputs = nn.ModuleList(Routed() for _ in range(3)).double(), torch.randn(5, 4).double(), []
    capture = watch(blocks)
    loss = run(blocks, inputs, outputs).square().mean()
    right = torch.autograd.grad(loss, outputs, retain_graph=True)
    loss.backward()
    assert_equal(gradients(capture), right)


def test_nobody_keeps_gradients_between_batches(blocks):
    capture = watch(blocks)
    run(blocks, torch.randn(5, 4).double()).sum().backward()
    capture.clear()
    assert capture.step_gradients._receivers == []
    assert capture.step_gradients._waiting == []


class Checkpointed(Block):
    """A block whose inside is run once more: hooks stand outside of it."""

    def forward(self, hidden):
        return checkpoint(super().forward, hidden, use_reentrant=True)


def test_parameters_may_be_reached_in_a_pass_within_the_pass(blocks):
    inputs, outputs = torch.randn(5, 4).double().requires_grad_(), []
    right = torch.autograd.grad(run(blocks, inputs, outputs).square().mean(), outputs)
    others = nn.ModuleList(Checkpointed(4) for _ in range(3)).double()
    others.load_state_dict(blocks.state_dict())
    capture = watch(others)
    run(others, inputs).square().mean().backward()
    assert_equal(gradients(capture), right)


def test_parameters_that_come_with_the_first_batch_are_looked_at_from_the_second():
    blocks = nn.ModuleList(nn.Sequential(nn.LazyLinear(4), nn.Tanh()) for _ in range(3)).double()
    capture = watch(blocks)
    run(blocks, torch.randn(5, 4).double())
    capture.arm()
    outputs = []
    loss = run(blocks, torch.randn(5, 4).double(), outputs).square().mean()
    right = torch.autograd.grad(loss, outputs, retain_graph=True)
    loss.backward()
    assert_equal(gradients(capture), right)


def test_a_gradient_that_cannot_be_added_leaves_the_backward_pass_alone(blocks, monkeypatch):
    """For want of memory, say: the layers are complained of, and no part of a sum is taken for the whole."""

    def fail(*_):
        raise MemoryError("no room")

    capture = watch(blocks)
    monkeypatch.setattr(capture.step_gradients, "_hand_on", fail)
    run(blocks, torch.randn(5, 4).double()).sum().backward()
    assert all(parameter.grad is not None for parameter in blocks.parameters())
    assert capture.complaints() == dict.fromkeys(range(3), "cannot be read: no room")
