"""Leaky steps of blocks that take or return several tensors of one shape: as told, or refused; never another model."""

import pytest
import torch
from torch import nn

from lightning_leaky import LeakyResidual, make_leaky, unmake_leaky

WIDTH, RHO = 6, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
L, DEPTH = len(RHO), 0.7


class Branch(nn.Module):
    """Counts its passes."""

    def __init__(self):
        super().__init__()
        self.norm, self.mixer, self.count = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), 0

    def branch(self, stream):
        self.count += 1
        return self.mixer(self.norm(stream))


class Stream(Branch):
    def forward(self, stream):
        return stream + self.branch(stream)


class HiddenResidual(Branch):
    def forward(self, hidden, residual=None):
        residual = hidden if residual is None else hidden + residual
        return self.branch(residual), residual


class ResidualHidden(Branch):
    def forward(self, residual, hidden):
        residual = hidden + residual
        return residual, self.branch(residual)


class Keywords(Branch):
    def forward(self, *, hidden, residual):
        residual = hidden + residual
        return {"residual": residual, "hidden": self.branch(residual)}


class WithContext(Branch):
    def forward(self, context, hidden):
        return hidden + self.branch(hidden * context)


class WithAux(Branch):
    def forward(self, hidden):
        return hidden + self.branch(hidden), hidden * 100


class Model(nn.Module):
    """Runs its blocks by a function of block and the values handed on."""

    def __init__(self, kind, run, start, end):
        super().__init__()
        self.layers = nn.ModuleList(kind() for _ in range(L))
        self.run, self.start, self.end = run, start, end

    def forward(self, inputs):
        values = self.start(inputs)
        for layer in self.layers:
            values = self.run(layer, values)
        return self.end(values)


def with_zeros(inputs):
    return inputs, torch.zeros_like(inputs)


SUMS = {
    "hidden, residual": (HiddenResidual, lambda layer, values: layer(*values), with_zeros, sum),
    "no residual at first": (HiddenResidual, lambda layer, values: layer(*values), lambda inputs: (inputs,), sum),
    "residual, hidden": (ResidualHidden, lambda layer, values: layer(*values), with_zeros, sum),
    "by keyword": (
        Keywords,
        lambda layer, values: layer(**values),
        lambda inputs: {"hidden": inputs, "residual": inputs * 0},
        lambda values: values["hidden"] + values["residual"],
    ),
}
CONTEXT = torch.randn(5, WIDTH)
OTHERS = {
    "context": (WithContext, lambda layer, hidden: layer(CONTEXT, hidden), "hidden"),
    "context by keyword": (WithContext, lambda layer, hidden: layer(hidden=hidden, context=CONTEXT), 1),
    "aux": (WithAux, lambda layer, hidden: layer(hidden)[0], (0, 0)),
}


def make(kind, run, start=lambda inputs: inputs, end=lambda values: values):
    torch.manual_seed(0)
    return Model(kind, run, start, end).double()


def by_hand(block, inputs):
    """(1 − ρL̃) h + ρL (block(h) − h), block after block."""
    hidden = inputs
    for index, step in enumerate(RHO):
        hidden = (1 - step * DEPTH) * hidden + step * L * (block(index, hidden) - hidden)
    return hidden


@pytest.fixture
def inputs():
    return torch.randn(5, WIDTH).double()


@pytest.mark.parametrize("kind", SUMS.values(), ids=SUMS)
def test_the_sum_of_what_is_handed_on_can_be_the_state(kind, inputs):
    model = make(*kind)
    blocks = model.layers
    expected = by_hand(lambda index, hidden: hidden + blocks[index].branch(hidden), inputs)
    plain = model(inputs)
    for layer in blocks:
        layer.count = 0
    make_leaky(model, "layers.*", state="sum")
    assert torch.equal(model(inputs), plain), "equal steps and no leak change no bit"
    assert [layer.count for layer in blocks] == [1] * L, "the state is told by what passes, not by another pass"
    unmake_leaky(model)
    make_leaky(model, "layers.*", DEPTH, state="sum").leaky_steps.step_sizes.copy_(RHO)
    torch.testing.assert_close(model(inputs), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "run", "state", "is_compiled"),
    [*((*other, False) for other in OTHERS.values()), (*OTHERS["context by keyword"], True)],
    ids=[*OTHERS, "compiled"],
)
def test_the_state_can_be_named(kind, run, state, is_compiled, inputs):
    model = make(kind, run)
    expected = by_hand(lambda index, hidden: run(model.layers[index], hidden), inputs)
    make_leaky(model, "layers.*", DEPTH, state=state).leaky_steps.step_sizes.copy_(RHO)
    torch._dynamo.reset()
    called = torch.compile(model, backend="eager") if is_compiled else model
    torch.testing.assert_close(called(inputs), expected, rtol=1e-12, atol=1e-12)


OPEN = [(kind, False) for kind in [*SUMS.values(), *(other[:2] for other in OTHERS.values())]]


@pytest.mark.parametrize(
    ("kind", "is_compiled"),
    [*OPEN, (SUMS["hidden, residual"], True)],
    ids=[*SUMS, *OTHERS, "compiled"],
)
def test_what_is_left_open_is_refused_at_the_first_run(kind, is_compiled, inputs):
    model = make_leaky(make(*kind), "layers.*")
    torch._dynamo.reset()
    called = torch.compile(model, backend="eager") if is_compiled else model
    message = rf"state of layers\.0, a {kind[0].__name__}, which takes \d and returns \d of shape \(5, 6\)\. Give"
    with pytest.raises(ValueError, match=message):
        called(inputs)


def test_the_same_tensor_twice_is_one(inputs):
    class Attends(Branch):
        def forward(self, query, key, value):
            return query + self.branch(key * value)

    model = make(Attends, lambda layer, hidden: layer(hidden, hidden, value=hidden))
    expected = by_hand(lambda index, hidden: hidden + model.layers[index].branch(hidden * hidden), inputs)
    make_leaky(model, "layers.*", DEPTH).leaky_steps.step_sizes.copy_(RHO)
    torch.testing.assert_close(model(inputs), expected, rtol=1e-12, atol=1e-12)


def test_a_state_that_was_certain_stays_so():
    """Translations: lengths that differ in the first batch may be equal in a later one."""
    torch.manual_seed(0)
    layers = [nn.TransformerDecoderLayer(WIDTH, 2, 8, dropout=0.0, batch_first=True).double() for _ in range(L)]
    target, source = torch.randn(2, 4, WIDTH).double(), torch.randn(2, 5, WIDTH).double()
    decoder = nn.ModuleList(layers)
    expected = by_hand(lambda index, hidden: layers[index](hidden, source[:, :4]), target)
    make_leaky(decoder, "?", DEPTH).leaky_steps.step_sizes.copy_(RHO)

    def decoded(memory):
        hidden = target
        for layer in layers:
            hidden = layer(hidden, memory)
        return hidden

    decoded(source)
    torch.testing.assert_close(decoded(source[:, :4]), expected, rtol=1e-12, atol=1e-12)


def test_a_sum_that_is_overwritten_is_refused(inputs):
    class InPlace(HiddenResidual):
        def forward(self, hidden, residual):
            residual += hidden
            return self.branch(residual), residual

    model = make_leaky(make(InPlace, lambda layer, values: layer(*values), with_zeros, sum), "layers.*", state="sum")
    with pytest.raises(ValueError, match=r"layers\.0, a InPlace, overwrites it"):
        model(inputs)


def test_a_context_is_not_taken_for_the_state_where_steps_are_folded(inputs):
    """context + g(h) looks like a residual block, but its residual is not the state."""

    class Adds(Branch):
        def forward(self, context, hidden):
            return context + self.branch(hidden)

    model = make(Adds, lambda layer, hidden: layer(CONTEXT.double(), hidden))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    make_leaky(model, "layers.*", state="hidden").leaky_steps.step_sizes.copy_(RHO)
    model(inputs)
    with pytest.warns(UserWarning, match=r"'layers\.0', 'layers\.1', 'layers\.2'\] cannot be folded"):
        unmake_leaky(model)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_stack_hands_its_first_argument_on(inputs):
    class Conditioned(Branch):
        def forward(self, hidden, context):
            return hidden + self.branch(hidden * context)

    torch.manual_seed(0)
    stack = LeakyResidual([Conditioned().double() for _ in range(L)], DEPTH, RHO.tolist())
    expected = by_hand(lambda index, h: h + stack.layers[index].branch(h * CONTEXT), inputs)
    torch.testing.assert_close(stack(inputs, CONTEXT), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("state", ["other", 3, lambda value: value])
def test_a_state_that_cannot_be_is_refused_and_changes_nothing(state, inputs):
    model = make(*SUMS["hidden, residual"])
    plain = model(inputs)
    with pytest.raises(ValueError, match="`state` must be"):
        make_leaky(model, "layers.*", DEPTH, state=state)
    assert torch.equal(model(inputs), plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
