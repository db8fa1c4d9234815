"""The L2 term of a Leaky ResNet: its value and gradients are those of the plain formula, however they are asked for."""

import copy
import functools
import gc
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from lightning_leaky.functional.leaky_step import leak_scale

INPUTS, FACTOR = torch.randn(7, 3, generator=torch.Generator().manual_seed(1)), 0.3


def plain_term(network):
    """(1/2L̃) Σ ρ_l ‖W_l‖² + ½ Σ ‖M‖², by autograd."""
    layers = [(layer.weight, layer.bias) for layer in network.layers]
    squares = torch.stack([sum(one.square().sum() for one in pair if one is not None) for pair in layers])
    maps = [one.weight for one in (network.input_map, network.output_map) if one.weight.requires_grad]
    shares = leak_scale(network.effective_depth) * network.step_sizes
    return 0.5 * ((shares * squares).sum() + sum(one.square().sum() for one in maps))


def cost_of(network, inputs=INPUTS):
    return network(inputs).square().mean()


def total_of(network, term):
    return cost_of(network) + FACTOR * term()


@pytest.fixture
def twins(make_network):
    """A network in training, and a copy whose term is formed plainly."""

    def make(**changes):
        network = make_network(step_sizes=[0.1, 0.2, 0.3, 0.4], **changes)
        return network, copy.deepcopy(network)

    return make


def assert_same(network, plain, run):
    """What is run leaves the same gradients in both."""
    run(network, network.regularizer)
    run(plain, functools.partial(plain_term, plain))
    for (name, one), other in zip(network.named_parameters(), plain.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-7)


def train(network, term):
    total_of(network, term).backward()


KINDS = {
    "bias": {},
    "no bias": {"constant_column": False},
    "no leak": {"effective_depth": 0.0},
    "fixed maps": {"input_map": "fixed", "output_map": "fixed"},
    "gelu": {"activation": "gelu"},
}


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_value_and_gradients_are_those_of_the_formula(twins, changes):
    network, plain = twins(**changes)
    cost_of(network)
    torch.testing.assert_close(network.regularizer(), plain_term(plain))
    assert_same(network, plain, train)


def has_handles(network):
    (answer,) = {layer.handle() is not None for layer in network.layers}
    return answer


def test_each_layer_has_a_handle_as_long_as_its_graph_lives(twins):
    """Or the tests here would say nothing of them. The layers keep no graph alive themselves."""
    network, _ = twins()
    assert not has_handles(network)
    cost = cost_of(network)
    assert has_handles(network)
    del cost
    gc.collect()
    assert not has_handles(network)


def in_a_thread(function):
    """What a function returns that another thread has run."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_a_term_that_another_thread_has_formed(twins):
    """Autograd numbers the nodes of each thread by themselves, so those of the term may run last."""

    def run(network, term):
        network(INPUTS), network(INPUTS)  # higher numbers here than there
        cost = cost_of(network)
        total = cost + FACTOR * in_a_thread(term)
        total.backward(retain_graph=True)
        cost.backward()

    assert_same(*twins(), run)


def test_what_a_broken_backward_pass_left_is_not_added_to_the_next(twins):
    network, plain = twins()
    for one, term in ((network, network.regularizer), (plain, functools.partial(plain_term, plain))):
        cost = cost_of(one)
        broken = cost * 1.0
        broken.register_hook(lambda gradient: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            (FACTOR * term() + broken).backward(retain_graph=True)
        one.zero_grad()
        cost.backward()
    for one, other in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-7)


def test_a_term_inside_a_checkpoint_whose_network_is_not(twins):
    def run(network, term):
        loss = lambda outputs: outputs.square().mean() + FACTOR * term()  # noqa: E731
        checkpoint(loss, network(INPUTS), use_reentrant=False).backward()

    assert_same(*twins(), run)


def test_batches_of_gradients(twins):
    network, plain = twins()
    found = []
    for one, term in ((network, network.regularizer), (plain, functools.partial(plain_term, plain))):
        total = total_of(one, term)
        losses = torch.stack([total, 2 * total])
        found.append(torch.autograd.grad(losses, list(one.parameters()), torch.eye(2), is_grads_batched=True))
        found[-1] += (torch.autograd.functional.jacobian(one, INPUTS, vectorize=True),)
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("is_first", [False, True], ids=["cost first", "term first"])
def test_backward_passes_of_their_own_add_up(twins, is_first):
    def run(network, term):
        parts = [cost_of(network), FACTOR * term()]
        for part in reversed(parts) if is_first else parts:
            part.backward()

    assert_same(*twins(), run)


RUNS = {
    "term alone": lambda network, term: (cost_of(network), term().backward()),
    "two forward passes": lambda network, term: (cost_of(network) + cost_of(network, 2 * INPUTS) + term()).backward(),
    "twice": lambda network, term: (total_of(network, term) + 2 * term()).backward(),
    "two steps": lambda network, term: [train(network, term) for _ in range(2)],
    "loss scale": lambda network, term: (1024 * total_of(network, term) / 1024).backward(),
    "all twice": lambda network, term: [total_of(network, term).backward(), term().backward()],
    "once more": lambda network, term: [total_of(network, term).backward(retain_graph=True), term().backward()],
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_gradients_are_those_of_the_formula_whatever_is_done_with_the_term(twins, run):
    assert_same(*twins(), run)


@pytest.mark.parametrize("has_cost", [True, False])
def test_second_derivatives_are_those_of_the_formula(twins, has_cost):
    found, (network, plain) = [], twins()
    for one, term in ((network, network.regularizer), (plain, functools.partial(plain_term, plain))):
        parameters, cost = list(one.parameters()), cost_of(one)
        total = (cost if has_cost else 0) + FACTOR * term()
        first = torch.autograd.grad(total, parameters, create_graph=True)
        found.append([*first, *torch.autograd.grad(sum(slope.pow(3).sum() for slope in first), parameters)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("frozen", ["layers.1.", "layers.", "layers.2.weight", "layers.2.bias", "input_map"])
def test_what_is_frozen_has_no_gradient_but_layers_still_count(twins, frozen):
    network, plain = twins()
    whole = plain_term(plain).detach()
    for one in (network, plain):
        for name, parameter in one.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen))
    assert_same(network, plain, train)
    assert all(one.grad is None for one in network.parameters() if not one.requires_grad)
    cost_of(network)
    expected = plain_term(plain) if frozen == "input_map" else whole  # a map counts where it is learned
    torch.testing.assert_close(network.regularizer().detach(), expected.detach())


def double_a_weight(network):
    with torch.no_grad():
        network.layers[1].weight.mul_(2)


SITUATIONS = {
    "before a forward pass": lambda network: None,
    "in evaluation": lambda network: cost_of(network.eval()),
    "after a pass without gradients": lambda network: torch.no_grad()(cost_of)(network),
    "after a pass in evaluation": lambda network: [cost_of(network), cost_of(network.eval())],
    "after a change of dtype": lambda network: [cost_of(network), network.double()],
    "after a change in place": lambda network: [cost_of(network), double_a_weight(network)],
}


@pytest.mark.parametrize("prepare", SITUATIONS.values(), ids=SITUATIONS)
def test_wherever_there_is_no_handle_it_is_the_formula(twins, prepare):
    """Of the weights as they are when it is asked for."""

    def run(network, term):
        held.append(prepare(network))  # the graph, too
        values.append(term())
        values[-1].backward()

    held, values = [], []
    assert_same(*twins(), run)
    torch.testing.assert_close(*values)


def test_without_gradients_it_is_a_number_and_those_that_follow_are_right(twins):
    network, plain = twins()
    cost = cost_of(network)
    with torch.no_grad():
        found = network.regularizer()
    assert not found.requires_grad
    torch.testing.assert_close(found, plain_term(plain).detach())
    assert_same(network, plain, lambda one, term: ((cost if one is network else cost_of(one)) + term()).backward())


def test_a_weight_that_changes_between_the_backward_passes_is_an_error_and_no_wrong_gradient(twins):
    network, _ = twins(input_map="fixed")
    cost, term = cost_of(network), network.regularizer()
    cost.backward()
    double_a_weight(network)
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        term.backward()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_a_copy_between_forward_and_backward_stands_by_itself(twins, copied):
    network, plain = twins()
    cost, other = cost_of(network), copied(network)
    assert_same(network, plain, lambda one, term: ((cost if one is network else cost_of(one)) + term()).backward())
    assert all(one.grad is None for one in other.parameters())
    plain.zero_grad()
    assert_same(other, plain, train)


def test_gradients_go_on_to_the_weights_that_others_are_made_of(twins):
    network, plain = twins()
    for one in (network, plain):
        torch.manual_seed(0)
        for layer in one.layers:
            parametrizations.spectral_norm(layer)
            layer.parametrizations.weight.eval()
    assert_same(network, plain, train)


def test_it_acts_on_weights_that_are_no_parameters(make_network):
    """As under FSDP1, whose layers hold pieces of one flat parameter in a forward pass."""
    network = make_network()
    own = list(network.layers.parameters())
    expected = torch.autograd.grad(network.regularizer(), own)
    flat = torch.nn.Parameter(torch.cat([one.detach().flatten() for one in own]))
    pieces = iter(flat.split([one.numel() for one in own]))
    for layer in network.layers:
        for name, one in list(layer.named_parameters()):
            delattr(layer, name)
            setattr(layer, name, next(pieces).view_as(one))
    (found,) = torch.autograd.grad(network.regularizer(), flat)
    torch.testing.assert_close(found, torch.cat([one.flatten() for one in expected]))
