"""Copies, parts, exports and translations of a leaky model: they compute what it computes, or say that they do not."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import fx, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from lightning_leaky import LeakyResidual, make_leaky, unmake_leaky
from lightning_leaky.paths.leaky_path import leaky_paths
from tests.blocks import Block, Net

RHO = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
DEPTH = 0.5


def by_hand(blocks, inputs, rho=RHO):
    hidden = inputs
    for block, step in zip(blocks, rho.tolist(), strict=True):
        hidden = (1 - step * DEPTH) * hidden + 3 * step * (block(hidden) - hidden)
    return hidden


@pytest.fixture
def inputs():
    return torch.randn(5, 6)


@pytest.fixture
def net():
    model = make_leaky(Net(), "encoder.*", DEPTH)
    model.leaky_steps.step_sizes.copy_(RHO)
    return model


def loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": loaded}
every_copy = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
SAYS = r"copy of leaky blocks was made without their step-sizes"


@every_copy
@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_copy_of_a_part_says_once_that_it_has_no_steps(copied, is_compiled, net, inputs):
    plain, leaky = Net().encoder(inputs), net.encoder(inputs)
    part = copied(net.encoder)
    torch._dynamo.reset()
    called = torch.compile(part, backend="eager", fullgraph=True) if is_compiled else part
    with pytest.warns(UserWarning, match=SAYS):
        outputs = called(inputs)
    torch.testing.assert_close(outputs, plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        called(inputs)
    net.leaky_steps.step_sizes.copy_(RHO.flip(0))
    torch.testing.assert_close(called(inputs), plain)  # it does not follow the original
    net.leaky_steps.step_sizes.copy_(RHO)
    torch.testing.assert_close(net.encoder(inputs), leaky)


@every_copy
def test_a_copy_of_a_part_does_not_bring_the_rest_along(copied):
    net = make_leaky(nn.Sequential(*(Block() for _ in RHO)), "*", DEPTH)
    one = copied(net[0])
    with pytest.warns(UserWarning, match=SAYS):
        one(torch.ones(1, 6))
    assert len(pickle.dumps(one)) < 2 * len(pickle.dumps(Block()))


@every_copy
def test_a_part_can_get_steps_of_its_own(copied, net, inputs):
    expected = by_hand(Net().encoder, inputs, RHO.flip(0))
    part = make_leaky(copied(net.encoder), "*", DEPTH)
    part.leaky_steps.step_sizes.copy_(RHO.flip(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(part(inputs), expected)
        again = copied(part)
        torch.testing.assert_close(again(inputs), expected)
        torch.testing.assert_close(net.encoder(inputs), by_hand(Net().encoder, inputs))


@every_copy
@pytest.mark.parametrize("place", ["before", "behind"])
def test_steps_that_are_copied_along_are_found_wherever_they_are(copied, place, net, inputs):
    parts = [net.encoder, net] if place == "before" else [net, net.encoder]
    both = dict(zip(["one", "two"], copied(nn.ModuleList(parts)), strict=True))
    model = both["two" if place == "before" else "one"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(model(inputs), net(inputs))
    model.leaky_steps.step_sizes.copy_(RHO.flip(0))
    torch.testing.assert_close(model.encoder(inputs), by_hand(Net().encoder, inputs, RHO.flip(0)))
    torch.testing.assert_close(net.encoder(inputs), by_hand(Net().encoder, inputs))


def test_a_stack_of_ones_own_is_copied_with_its_steps(inputs):
    stack = LeakyResidual([Block() for _ in RHO], DEPTH, RHO.tolist())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(copy.deepcopy(stack)(inputs), stack(inputs))
    with pytest.warns(UserWarning, match=SAYS):
        copy.deepcopy(stack.layers)[0](inputs)


@every_copy
def test_a_copy_of_what_was_undone_says_nothing(copied, inputs):
    net = make_leaky(Net(), "encoder.*")
    unmake_leaky(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(copied(net)(inputs), Net()(inputs))


# Others call it.


def test_step_sizes_can_be_given_to_a_functional_call(net, inputs):
    rho = RHO.flip(0).requires_grad_()
    outputs = functional_call(net, {"leaky_steps.step_sizes": rho}, inputs)
    torch.testing.assert_close(outputs, net.head(by_hand(Net().encoder, inputs, rho)))
    outputs.sum().backward()
    assert rho.grad.ne(0).all()
    torch.testing.assert_close(net.leaky_steps.step_sizes, RHO)


def test_an_ensemble_takes_each_its_own_steps(net, inputs):
    other = copy.deepcopy(net)
    other.leaky_steps.step_sizes.copy_(RHO.flip(0))
    parameters, buffers = stack_module_state([net, other])
    base = copy.deepcopy(net).to("meta")
    outputs = vmap(lambda *state: functional_call(base, state, inputs))(parameters, buffers)
    torch.testing.assert_close(outputs, torch.stack([net(inputs), other(inputs)]))


def test_gradients_per_sample_add_up(net, inputs):
    parameters = dict(net.named_parameters())
    each = vmap(grad(lambda state, one: functional_call(net, state, one[None]).square().sum()), (None, 0))
    gradients = each(parameters, inputs)
    net(inputs).square().sum().backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(gradients[name].sum(0), parameter.grad)


@pytest.mark.parametrize("strict", [False, True])
def test_an_export_has_the_steps(strict, net, inputs):
    exported = torch.export.export(net, (inputs,), strict=strict)
    torch.testing.assert_close(exported.module()(inputs), net(inputs))
    assert "leaky_steps.step_sizes" in {**exported.constants, **exported.state_dict}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trace_has_the_steps(net, inputs):
    torch.testing.assert_close(torch.jit.trace(net, inputs)(inputs), net(inputs))


def test_symbolic_tracing_is_refused_by_name(net, inputs):
    leaky = net(inputs)
    with pytest.raises(ValueError, match=r"must not be traced by torch\.fx.*encoder\.0 is a leaky step; use torch\.ex"):
        fx.symbolic_trace(net)
    assert torch.equal(net(inputs), leaky)


def test_a_traced_model_of_whole_blocks_has_the_steps(inputs):
    """Modules of torch are not traced through: the graph calls them, with their hooks."""
    net = make_leaky(Net(lambda: nn.Linear(6, 6)), "encoder.*", DEPTH)
    net.leaky_steps.step_sizes.copy_(RHO)
    traced = fx.symbolic_trace(net)
    torch.testing.assert_close(traced(inputs), net(inputs))
    with pytest.warns(UserWarning, match=SAYS):
        copy.deepcopy(traced)(inputs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("block", [Block, lambda: nn.Linear(6, 6)], ids=["inside a block", "the block itself"])
def test_a_quantised_model_keeps_its_steps(block, inputs):
    """Quantisation puts modules of its own in the place of the linear ones, and hands the hooks on."""
    net = make_leaky(Net(block), "encoder.*", DEPTH)
    net.leaky_steps.step_sizes.copy_(RHO)
    plain, leaky = Net(block)(inputs), net(inputs)
    quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    assert type(quantised.head) is not nn.Linear
    torch.testing.assert_close(quantised(inputs), leaky, atol=0.1, rtol=0)
    assert (plain - leaky).abs().max() > 0.3
    assert torch.equal(net(inputs), leaky)
    with pytest.warns(UserWarning, match="cannot be folded"):
        unmake_leaky(quantised)
    assert not leaky_paths(quantised)
    torch.testing.assert_close(quantised(inputs), plain, atol=0.1, rtol=0)


def test_blocks_whose_parameters_are_not_there_yet_can_be_leaky(inputs):
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.LazyLinear(6)

        def forward(self, hidden):
            return hidden + self.linear(hidden)

    net = make_leaky(Net(Lazy), "encoder.*", DEPTH)
    net.leaky_steps.step_sizes.copy_(RHO)
    outputs = net(inputs)
    blocks = [lambda hidden, block=block: hidden + block.linear(hidden) for block in net.encoder]
    torch.testing.assert_close(outputs, net.head(by_hand(blocks, inputs)))
