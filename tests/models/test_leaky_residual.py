"""Leaky steps of residual blocks: the formula, what stays of the original model, and the way back."""

import copy
import pickle
import warnings
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

from lightning_leaky import LeakyResidual, make_leaky, unmake_leaky
from lightning_leaky.models import LeakySteps
from lightning_leaky.paths.leaky_path import find_leaky_path

WIDTH = 6


class Mlp(nn.Module):
    """h + W2 relu(W1 h), the block a user writes first."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.first, self.second = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, hidden):
        return hidden + self.second(torch.relu(self.first(hidden)))


class State(NamedTuple):
    hidden: Tensor
    cache: int


class TupleMlp(Mlp):
    def forward(self, *, hidden):
        return State(super().forward(hidden), 7)


class Conv(nn.Module):
    """A basic block with its activation at the end."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, hidden):
        return torch.relu(hidden + self.norm(self.conv(hidden)))


def encoder_layer():
    return nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.0, norm_first=True, batch_first=True)


KINDS = {"mlp": (Mlp, (5, WIDTH)), "conv": (Conv, (2, WIDTH, 3, 3)), "transformer": (encoder_layer, (2, 4, WIDTH))}
every_kind = pytest.mark.parametrize(("make", "shape"), KINDS.values(), ids=KINDS)


def stack(make=Mlp, num_layers=3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Identity(), *(make() for _ in range(num_layers)), nn.Identity())


def blocks_of(name, module):
    return not isinstance(module, nn.Identity) and "." not in name and name != "leaky_steps"


def by_hand(model, inputs, rho, depth):
    """(1 − ρL̃)h + ρL(block(h) − h), block after block of an untouched model."""
    hidden, blocks = inputs, [module for name, module in model.named_children() if blocks_of(name, module)]
    for block, step in zip(blocks, rho, strict=True):
        hidden = (1 - step * depth) * hidden + step * len(rho) * (block(hidden) - hidden)
    return hidden


def uneven(num_layers) -> Tensor:
    return torch.arange(1.0, num_layers + 1, dtype=torch.float64) / (num_layers * (num_layers + 1) / 2)


def gradients(model, inputs):
    model.zero_grad()
    model(inputs).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@every_kind
@pytest.mark.parametrize("depth", [0.0, 1.5])
def test_a_step_is_the_formula(make, shape, depth):
    model, inputs = stack(make).double(), torch.randn(shape).double()
    plain = copy.deepcopy(model)
    make_leaky(model, blocks_of, depth)
    for rho in (torch.full((3,), 1 / 3).double(), uneven(3)):
        model.leaky_steps.step_sizes.copy_(rho)
        torch.testing.assert_close(model(inputs), by_hand(plain, inputs, rho, depth), rtol=1e-12, atol=1e-12)


@every_kind
@pytest.mark.parametrize("num_layers", [1, 3, 41, 49])
def test_without_leak_and_equidistant_everything_stays_as_it_was(make, shape, num_layers):
    """Bit by bit, also where 1/L is no binary number."""
    model = stack(make, num_layers)
    plain, inputs = copy.deepcopy(model), torch.randn(shape)
    make_leaky(model, blocks_of)
    assert torch.equal(model(inputs), plain(inputs))
    before, after = gradients(plain, inputs), gradients(model, inputs)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], gradient) for name, gradient in before.items())
    state, plain_state = model.state_dict(), plain.state_dict()
    assert list(state) == list(plain_state)
    assert all(torch.equal(state[name], value) for name, value in plain_state.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_stay_too_and_the_step_sizes_stay_in_float64(dtype):
    model, inputs = stack(num_layers=7).to(dtype), torch.randn(5, WIDTH, dtype=dtype)
    plain = copy.deepcopy(model)
    make_leaky(model, blocks_of)
    for cast in (model, model.float().to(dtype)):
        if dtype == torch.float64:
            torch.testing.assert_close(cast(inputs), plain(inputs), rtol=1e-15, atol=1e-15)
        else:
            assert torch.equal(cast(inputs), plain(inputs))
        assert cast.leaky_steps.step_sizes.dtype == torch.float64


def test_uneven_steps_are_saved_and_equidistant_ones_restored():
    model, twin = make_leaky(stack(), blocks_of), make_leaky(stack(), blocks_of)
    original = copy.deepcopy(model.state_dict())
    model.leaky_steps.step_sizes.copy_(uneven(3))
    assert set(model.state_dict()) - set(original) == {"leaky_steps.step_sizes"}
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.leaky_steps.step_sizes, uneven(3))
    twin.load_state_dict(original)
    assert torch.equal(twin.leaky_steps.step_sizes, torch.full((3,), 1 / 3, dtype=torch.float64))
    assert "leaky_steps.step_sizes" in make_leaky(stack(), blocks_of, 1.0).state_dict()  # a leak always says something
    with pytest.raises(RuntimeError, match=r"leaky_steps\.step_sizes"):
        stack().load_state_dict(model.state_dict())


def test_a_state_can_be_assigned_to_a_meta_model():
    saved = make_leaky(stack(), blocks_of, 1.0)
    saved.leaky_steps.step_sizes.copy_(uneven(3))
    with torch.device("meta"):
        model = make_leaky(stack(), blocks_of, 1.0)
    model.load_state_dict(saved.state_dict(), assign=True)
    inputs = torch.randn(5, WIDTH)
    assert torch.equal(model(inputs), saved(inputs))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_step_sizes_of_its_own(copied):
    model, inputs = make_leaky(stack(), blocks_of, 1.0), torch.randn(5, WIDTH)
    twin = copied(model)
    assert torch.equal(twin(inputs), model(inputs))
    before = model(inputs)
    twin.leaky_steps.step_sizes.copy_(uneven(3))
    assert torch.equal(model(inputs), before)
    assert not torch.allclose(twin(inputs), before)
    unmake_leaky(twin)
    assert torch.equal(model(inputs), before)


def test_tuples_and_keywords_pass_through():
    torch.manual_seed(0)
    block = TupleMlp()
    inputs = torch.randn(5, WIDTH)
    plain = block(hidden=inputs)
    LeakySteps([block], 1.0)
    leaky = block(hidden=inputs)
    assert isinstance(leaky, State)
    assert leaky.cache == 7
    torch.testing.assert_close(leaky.hidden, plain.hidden - inputs)


def test_the_output_keeps_its_dtype():
    """As under autocast, where a block may return a narrower one than it takes."""

    class Narrow(Mlp):
        def forward(self, hidden):
            return super().forward(hidden).bfloat16()

    torch.manual_seed(0)
    block, inputs = Narrow(), torch.randn(5, WIDTH)
    plain = block(inputs)
    LeakySteps([block])
    assert block(inputs).dtype == torch.bfloat16
    assert torch.equal(block(inputs), plain)


def test_a_meta_model_becomes_equidistant_where_it_is_made_real():
    with torch.device("meta"):
        model = make_leaky(stack(), blocks_of)
    assert model.leaky_steps.step_sizes.is_meta
    assert "leaky_steps.step_sizes" not in model.state_dict()
    model.to_empty(device="cpu")
    assert torch.equal(model.leaky_steps.step_sizes, torch.full((3,), 1 / 3, dtype=torch.float64))


@pytest.mark.parametrize("depth", [0.0, 1.5])
def test_compiled_steps_are_those_of_eager_code(depth):
    torch._dynamo.reset()
    model, inputs = make_leaky(stack(), blocks_of, depth), torch.randn(5, WIDTH)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(inputs), model(inputs))
    model.leaky_steps.step_sizes.copy_(uneven(3))
    torch.testing.assert_close(compiled(inputs), model(inputs))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_steps_have_the_same_gradients(use_reentrant):
    model, inputs = make_leaky(stack(), blocks_of, 1.0), torch.randn(5, WIDTH, requires_grad=True)
    expected = gradients(model, inputs)
    model.zero_grad()
    checkpoint_sequential(model, len(model), inputs, use_reentrant=use_reentrant).square().sum().backward()
    assert all(torch.equal(parameter.grad, expected[name]) for name, parameter in model.named_parameters())


# A stack of one's own.


def test_a_stack_is_its_blocks_one_after_another():
    torch.manual_seed(0)
    blocks = [encoder_layer() for _ in range(3)]
    inputs, mask = torch.randn(2, 4, WIDTH), torch.tensor([[False, False, True, True]] * 2)
    expected = inputs
    for block in blocks:
        expected = block(expected, src_key_padding_mask=mask)
    residual = LeakyResidual(blocks)
    assert torch.equal(residual(inputs, src_key_padding_mask=mask), expected)
    assert find_leaky_path(nn.Sequential(residual)) is residual.steps


@pytest.mark.parametrize("blocks", [Mlp(), [Mlp()], nn.ModuleList([Mlp()]), nn.Sequential(Mlp())])
def test_one_block_may_be_given_bare(blocks):
    residual, inputs = LeakyResidual(blocks, effective_depth=0.5), torch.randn(5, WIDTH)
    (block,) = residual.layers
    plain = inputs + block.second(torch.relu(block.first(inputs)))
    torch.testing.assert_close(residual(inputs), plain - 0.5 * inputs)


def test_a_stack_takes_its_step_sizes():
    residual = LeakyResidual([Mlp(), Mlp()], step_sizes=[0.25, 0.75])
    assert residual.steps.step_sizes.tolist() == [0.25, 0.75]
    assert set(residual.state_dict()) > {"steps.step_sizes"}


# The way back.


def test_uneven_steps_of_mlps_are_folded_in():
    model, inputs = make_leaky(stack().double(), blocks_of), torch.randn(5, WIDTH).double()
    model.leaky_steps.step_sizes.copy_(uneven(3))
    expected = model(inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unmake_leaky(model)
    torch.testing.assert_close(model(inputs), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("make", "shape"), [KINDS["conv"], KINDS["transformer"]])
def test_what_cannot_be_folded_is_named_and_left(make, shape):
    model, inputs = stack(make), torch.randn(shape)
    plain = copy.deepcopy(model)
    make_leaky(model, blocks_of)
    model.leaky_steps.step_sizes.copy_(torch.tensor([0.25, 1 / 3, 5 / 12], dtype=torch.float64))
    with pytest.warns(UserWarning, match=r"steps of \['1', '3'\] cannot be folded"):
        unmake_leaky(model)
    assert torch.equal(model(inputs), plain(inputs))


def test_a_leak_cannot_be_folded():
    model = make_leaky(stack(), blocks_of, 0.5)
    with pytest.warns(UserWarning, match=r"\['1', '2', '3'\] cannot be folded"):
        unmake_leaky(model)


# What can go wrong.


def test_a_block_that_changes_the_shape_is_named():
    model = make_leaky(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), "*")
    with pytest.raises(ValueError, match=r"but 1, a Linear, maps \(5, 4\) to \(5, 3\)"):
        model(torch.zeros(5, 4))


def test_a_block_without_a_tensor_is_named():
    class Silent(nn.Module):
        def forward(self, hidden):
            return None

    with pytest.raises(ValueError, match="number 1, a Silent, maps no tensor"):
        LeakyResidual([Silent()])(torch.zeros(5, 4))


class InPlace(nn.Module):
    def forward(self, hidden):
        return hidden.mul_(2)


class Rectified(nn.Module):
    """Overwrites its input and returns something else."""

    def forward(self, hidden):
        return torch.relu_(hidden) + 1


@pytest.mark.parametrize("cls", [InPlace, Rectified])
@pytest.mark.parametrize("grad", [True, False])
def test_a_block_that_overwrites_its_input_is_named(cls, grad):
    residual = LeakyResidual([cls()])
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match=f"number 1, a {cls.__name__}, overwrites it"):
        residual(torch.zeros(5, 4))


@pytest.mark.parametrize("depth", [0.0, 0.5])
def test_a_block_may_hand_its_input_on(depth):
    """As stochastic depth does: f = 0, and only the leak is left."""
    inputs = torch.randn(5, 4)
    torch.testing.assert_close(LeakyResidual([nn.Identity()], depth)(inputs), (1 - depth) * inputs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_leaky(stack(), "nothing.*"), "`layers`"),
        (lambda: make_leaky(stack(), "1", -1.0), "`effective_depth`"),
        (lambda: make_leaky(make_leaky(stack(), "1"), "2"), "`model` must have no leaky steps"),
        (lambda: unmake_leaky(stack()), "`model` must have leaky steps"),
        (lambda: LeakyResidual([]), "`blocks`"),
        (lambda: LeakyResidual([Mlp()], step_sizes=[0.5]), "`step_sizes`"),
        (lambda: LeakyResidual([Mlp()], step_sizes=[0.5, 0.5]), "`step_sizes`"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
