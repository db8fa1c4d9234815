"""The steps inside blocks: found by numbers or named, read, differentiated and left out as by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2Model,
    GPT2Config,
    GPT2Model,
    GPTJConfig,
    GPTJModel,
    GraniteConfig,
    GraniteModel,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5Model,
)

from lightning_leaky.hooks.branch_capture import BranchCapture
from lightning_leaky.hooks.capture import PathCapture
from lightning_leaky.hooks.skipped import SkippedBlocks
from lightning_leaky.hooks.state import Step
from lightning_leaky.paths.block_path import path_of
from lightning_leaky.paths.branches import path_or_finder
from tests.blocks import Block

WIDTH = 16
TOKENS = torch.randint(1, 20, (3, 5), generator=torch.Generator().manual_seed(0))
WORDS = {"input_ids": TOKENS}
BOTH = {"input_ids": TOKENS, "decoder_input_ids": TOKENS}
HIDDEN = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(1))
SMALL = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
LIVELY = {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(WIDTH))

    def forward(self, hidden):
        return hidden * self.gamma


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def forward(self, hidden):
        return self.fc2(self.fc1(hidden).tanh())


class Timm(nn.Module):
    """The block of timm's vision transformer, with modules for layer scale and drop path; what runs last is first."""

    def __init__(self):
        super().__init__()
        self.norm2, self.mlp, self.ls2, self.drop_path2 = nn.LayerNorm(WIDTH), Mlp(), Scale(), nn.Identity()
        self.norm1, self.attn, self.ls1, self.drop_path1 = nn.LayerNorm(WIDTH), Mlp(), Scale(), nn.Identity()

    def forward(self, x):
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class InPlace(Timm):
    """Adds its state to what a branch returns, in place."""

    def forward(self, x):
        x = self.attn(self.norm1(x)).add_(x)
        return self.mlp(self.norm2(x)).add_(x)


class Keyword(Timm):
    """Hands on its state by keyword."""

    def forward(self, x):
        x = x + self.attn(self.norm1(input=x))
        return x + self.mlp(self.norm2(input=x))


class Overwriting(Timm):
    """Adds to its state in place, which autograd would refuse."""

    def forward(self, x):
        x += self.attn(self.norm1(x))
        x += self.mlp(self.norm2(x))
        return x


class Scaled(Timm):
    """The scales are parameters of the block's own, as of BEiT: no module returns what is added."""

    def forward(self, x):
        x = x + self.ls1.gamma * self.attn(self.norm1(x))
        return x + self.ls2.gamma * self.mlp(self.norm2(x))


class Dropping(Timm):
    """Drops by a function, as BART: no module returns what is added."""

    def forward(self, x):
        x = x + nn.functional.dropout(self.attn(self.norm1(x)), 0.3)
        return x + nn.functional.dropout(self.mlp(self.norm2(x)), 0.3)


class Parallel(Timm):
    def forward(self, x):
        return x + self.attn(self.norm1(x)) + self.mlp(self.norm2(x))


class Shared(Timm):
    """One norm for both branches: what takes the states runs twice."""

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm1(x))


class Pairs(Timm):
    """Returns something else of the same shape first."""

    def forward(self, x):
        x = super().forward(x[1] if isinstance(x, tuple) else x)
        return x * 2, x


class Stack(nn.Module):
    def __init__(self, block=Timm):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(block() for _ in range(2))

    def forward(self, hidden):
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


def torch_stack(kind, norm_first):
    torch.manual_seed(0)
    layer = kind(WIDTH, 2, 32, 0.0, batch_first=True, norm_first=norm_first)
    if kind is nn.TransformerDecoderLayer:
        return nn.TransformerDecoder(layer, 2)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def hugging(kind, config, **sizes):
    torch.manual_seed(0)
    return kind(config(**sizes, attn_implementation="eager"))


def t5():
    sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 20}
    return hugging(T5Model, T5Config, **sizes, decoder_start_token_id=0)


def gpt2():
    sizes = {"n_positions": 8, "n_embd": WIDTH, "n_layer": 2, "n_head": 2}
    return hugging(GPT2Model, GPT2Config, **sizes, **LIVELY)


PRE, POST = (nn.TransformerEncoderLayer, True), (nn.TransformerEncoderLayer, False)
# How to make a network, its inputs and blocks; of each step, the module whose output is added, and the norm of the sum.
CASES = {
    "encoder": (lambda: torch_stack(*PRE), HIDDEN, "layers.*", [("dropout1",), ("dropout2",)]),
    "encoder, post-norm": (
        lambda: torch_stack(*POST),
        HIDDEN,
        "layers.*",
        [("dropout1", "norm1"), ("dropout2", "norm2")],
    ),
    "decoder": (
        lambda: torch_stack(nn.TransformerDecoderLayer, True),
        {"tgt": HIDDEN, "memory": HIDDEN.flip(0)},
        "layers.*",
        [("dropout1",), ("dropout2",), ("dropout3",)],
    ),
    "decoder, post-norm": (
        lambda: torch_stack(nn.TransformerDecoderLayer, False),
        {"tgt": HIDDEN, "memory": HIDDEN.flip(0)},
        "layers.*",
        [("dropout1", "norm1"), ("dropout2", "norm2"), ("dropout3", "norm3")],
    ),
    "timm": (Stack, HIDDEN, "blocks.*", [("drop_path1",), ("drop_path2",)]),
    "in place": (lambda: Stack(InPlace), HIDDEN, "blocks.*", [("attn",), ("mlp",)]),
    "overwriting": (lambda: Stack(Overwriting), HIDDEN, "blocks.*", [("attn",), ("mlp",)]),
    "keyword": (lambda: Stack(Keyword), HIDDEN, "blocks.*", [("attn",), ("mlp",)]),
    "gpt2": (gpt2, WORDS, "h.*", [("attn",), ("mlp",)]),
    "llama": (
        lambda: hugging(LlamaModel, LlamaConfig, **SMALL, **LIVELY, num_key_value_heads=1),
        WORDS,
        "layers.*",
        [("self_attn",), ("mlp",)],
    ),
    "gemma2": (
        lambda: hugging(Gemma2Model, Gemma2Config, **SMALL, **LIVELY, num_key_value_heads=1, head_dim=8),
        WORDS,
        "layers.*",
        [("post_attention_layernorm",), ("post_feedforward_layernorm",)],
    ),
    "bert": (
        lambda: hugging(BertModel, BertConfig, **SMALL, **LIVELY),
        WORDS,
        "encoder.layer.*",
        [("attention.output.dropout", "attention.output.LayerNorm"), ("output.dropout", "output.LayerNorm")],
    ),
    "t5 encoder": (t5, BOTH, "encoder.block.*", [("layer.0.dropout",), ("layer.1.dropout",)]),
    "t5 decoder": (t5, BOTH, "decoder.block.*", [("layer.0.dropout",), ("layer.1.dropout",), ("layer.2.dropout",)]),
}
every_case = pytest.mark.parametrize("name", CASES)


def run(model, inputs):
    return model(**inputs) if isinstance(inputs, dict) else model(inputs.clone())


def output_of(returned):
    return returned[0] if isinstance(returned, tuple) else getattr(returned, "last_hidden_state", returned)


def captured(model, inputs, layers, branches=True, gradients=False, state=None):
    """The steps, and what passed them in one batch, as an observer has it."""
    path, finder = path_or_finder(model, path_of(model, layers), branches)
    kind = PathCapture if finder is None else BranchCapture
    capture = kind(path.layers if finder is None else finder.candidates, gradients, True, model, state)
    capture.attach().arm()
    outputs = output_of(run(model, inputs))
    if gradients:
        cost(outputs).backward()
    if finder is not None:
        path, places = finder.find(capture)
        searched, capture = capture, PathCapture(list(path.layers), gradients, True, model, state)
        capture.take(searched, places)
        searched.detach()
    capture.settle()
    assert capture.complaints() == {}
    capture.detach()
    (passage,) = capture.passages
    return list(path.layers), passage


def cost(outputs):
    return outputs.square().sum() + outputs[..., 0].sum()


def states_by_hand(model, inputs, layers, added):
    """A_{l−1} and A_l of each step, added up from what modules return, and the tensors that carry the gradients."""
    befores, afters, seen = [], [], {}
    blocks = list(path_of(model, layers).layers)
    names = {block.get_submodule(name): name for block in blocks for step in added for name in step}

    def keep(module, args, returned):
        seen[module] = output_of(returned).clone()

    def start(block, args, kwargs):
        seen[block] = (args[0] if args else kwargs["hidden_states"]).clone()

    def end(block, args, returned):
        state = seen[block]
        for name, *norm in added:
            befores.append(state)
            state = state + seen[block.get_submodule(name)]
            state = block.get_submodule(norm[0])(state) if norm else state
            afters.append(state)

    handles = [module.register_forward_hook(keep) for module in names]
    handles += [block.register_forward_pre_hook(start, with_kwargs=True) for block in blocks]
    ends = [block.register_forward_hook(end) for block in blocks]
    outputs = run(model, inputs)
    for handle in [*handles, *ends]:
        handle.remove()
    return befores, afters, outputs


@every_case
def test_each_step_reads_as_by_hand(name, hooks_of):
    make, inputs, layers, added = CASES[name]
    model = make().eval()
    with torch.no_grad():
        befores, afters, _ = states_by_hand(model, inputs, layers, added)
        steps, passage = captured(model, inputs, layers)
    assert len(steps) == 2 * len(added)
    assert all(isinstance(step, Step) for step in steps)
    for index in range(len(steps)):
        assert torch.equal(passage.previous[index], befores[index]), index
        assert torch.equal(passage.current[index], afters[index]), index
    assert hooks_of(model) == 0


@pytest.mark.parametrize("name", [name for name in CASES if name != "overwriting"])
def test_gradients_are_those_of_the_states(name):
    make, inputs, layers, _ = CASES[name]
    model = make().eval()
    steps, passage = captured(model, inputs, layers, gradients=True)
    for tensor in model.parameters():
        tensor.grad = None
    ends, handles = {}, []
    for index, step in enumerate(steps):  # the states themselves, where the next module takes them or the block ends
        if step.then is None:
            keep = lambda module, args, returned, index=index: ends.update({index: output_of(returned)})  # noqa: E731
            handles.append(step.block.register_forward_hook(keep))
        else:
            keep = lambda module, args, kwargs, index=index: ends.update({index: first(args, kwargs)})  # noqa: E731
            handles.append(step.then.register_forward_pre_hook(keep, with_kwargs=True))
    outputs = output_of(run(model, inputs))
    for handle in handles:
        handle.remove()
    expected = torch.autograd.grad(cost(outputs), [ends[index] for index in range(len(steps))])
    for index, gradient in enumerate(expected):
        assert torch.equal(passage.gradients[index], gradient), index
        assert bool(gradient.any())


def first(args, kwargs):
    return args[0] if args else next(iter(kwargs.values()))


@every_case
def test_a_step_that_is_left_out_hands_on_its_state(name, hooks_of):
    """Of a pre-norm block that is the network whose branch returns zero, bit for bit; of a post-norm one no norm."""
    make, inputs, layers, added = CASES[name]
    model = make().eval()
    with torch.no_grad():
        steps, _ = captured(model, inputs, layers)
        numbers = list(range(len(steps)))
        for removed in [[one] for one in numbers] + [numbers[1:3], numbers[:-1:2]]:
            with SkippedBlocks(steps, [str(one) for one in numbers]) as hooks:
                hooks.skipped = set(removed)
                found = output_of(run(model, inputs))
            expected = without_by_hand(model, inputs, layers, added, removed)
            assert torch.equal(found, expected), removed
            assert not torch.equal(found, output_of(run(model, inputs)))
    assert hooks_of(model) == 0


def without_by_hand(model, inputs, layers, added, removed):
    handles = []
    for number, block in enumerate(path_of(model, layers).layers):
        for place, (name, *norm) in enumerate(added):
            if number * len(added) + place in removed:
                zero = lambda module, args, returned: zeroed(returned)  # noqa: E731
                handles.append(block.get_submodule(name).register_forward_hook(zero))
                if norm:  # of a sum with nothing added
                    handles.append(block.get_submodule(norm[0]).register_forward_hook(lambda module, args, _: args[0]))
    outputs = output_of(run(model, inputs)).clone()
    for handle in handles:
        handle.remove()
    return outputs


def zeroed(returned):
    return (torch.zeros_like(returned[0]), *returned[1:]) if isinstance(returned, tuple) else returned * 0


def names_of(model, layers, branches=True, inputs=HIDDEN):
    steps, _ = captured(model, inputs, layers, branches)
    name_of = {module: name for name, module in model.named_modules()}
    return [name_of[step.named] for step in steps], [name_of[step.first] for step in steps]


def test_steps_are_named_after_their_largest_module_or_what_the_user_names():
    assert names_of(Stack(), "blocks.*")[0] == ["blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp"]
    named, firsts = names_of(Stack(), "blocks.*", ["norm1", "norm2"])
    assert named == firsts == ["blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2"]
    assert names_of(t5().eval(), "decoder.block.*", True, BOTH)[0][:3] == [
        f"decoder.block.0.layer.{i}" for i in range(3)
    ]
    assert names_of(torch_stack(*PRE).eval(), "layers.*")[0][:2] == ["layers.0.self_attn", "layers.0.linear1"]


@pytest.mark.parametrize(
    ("name", "branches"),
    [
        ("timm", ["norm1", "norm2"]),
        ("encoder, post-norm", ["self_attn", "linear1"]),
        ("t5 decoder", ["layer.*"]),
        ("gemma2", ("input_layernorm", "pre_feedforward_layernorm")),
    ],
)
@torch.no_grad()
def test_named_modules_say_what_numbers_find(name, branches):
    make, inputs, layers, _ = CASES[name]
    model = make().eval()
    found, named = captured(model, inputs, layers)[1], captured(model, inputs, layers, branches)[1]
    assert len(found.current) == len(named.current)
    for side in ("previous", "current"):
        assert all(map(torch.equal, getattr(found, side), getattr(named, side)))


@pytest.mark.parametrize("block", [Scaled, Dropping])
@torch.no_grad()
def test_what_the_code_of_a_block_scales_or_drops_is_found(block):
    model = Stack(block)
    assert names_of(model, "blocks.*")[1] == ["blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2"]


def test_a_multiplier_of_the_residual_is_found():
    model = hugging(GraniteModel, GraniteConfig, **SMALL, **LIVELY, num_key_value_heads=1, residual_multiplier=0.3)
    named, _ = names_of(model.eval(), "layers.*", inputs=WORDS)
    assert named[:2] == ["layers.0.self_attn", "layers.0.mlp"]


@torch.no_grad()
def test_a_block_of_one_branch_is_one_step():
    class Single(Block):
        def __init__(self):
            super().__init__(WIDTH)
            self.act = nn.Tanh()

        def forward(self, hidden):
            return hidden + self.act(self.linear(hidden))

    model = Stack(Single)
    steps, passage = captured(model, HIDDEN, "blocks.*")
    assert [step.then for step in steps] == [None, None]
    assert torch.equal(passage.current[1], model(HIDDEN))


@pytest.mark.parametrize("branches", [True, ["norm1", "norm2"]])
@torch.no_grad()
def test_a_module_that_does_nothing_takes_a_state(branches):
    """An empty `nn.Sequential` is false."""

    class Bare(Timm):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.Sequential(), nn.Sequential()

    model = Stack(Bare)
    _, passage = captured(model, HIDDEN, "blocks.*", branches)
    befores, afters, _ = states_by_hand(model, HIDDEN, "blocks.*", [("drop_path1",), ("drop_path2",)])
    assert all(map(torch.equal, passage.previous, befores))
    assert all(map(torch.equal, passage.current, afters))


def gptj():
    sizes = {"n_positions": 8, "n_embd": WIDTH, "n_layer": 2, "n_head": 2, "rotary_dim": 4}
    return hugging(GPTJModel, GPTJConfig, **sizes, **LIVELY)


@pytest.mark.parametrize(
    ("make", "inputs", "layers", "kind"),
    [
        (lambda: Stack(Parallel), HIDDEN, "blocks.*", "Parallel"),
        (lambda: Stack(Shared), HIDDEN, "blocks.*", "Shared"),
        (gptj, WORDS, "h.*", "GPTJBlock"),
    ],
)
@torch.no_grad()
def test_parallel_branches_are_refused_by_name(make, inputs, layers, kind):
    model = make().eval()
    _, finder = path_or_finder(model, path_of(model, layers), True)
    capture = BranchCapture(finder.candidates, model=model).attach()
    for _ in range(10):
        assert not finder.is_done()
        capture.arm()
        run(model, inputs)
        assert finder.find(capture) is None
    assert finder.is_done()
    told = finder.complaint(capture)
    assert f"{layers[:-1]}0', a {kind}, holds no state between its branches" in told
    assert "parallel branches" in told
    capture.clear()
    assert "did not run, or did so in compiled code" in finder.complaint(capture)


@torch.no_grad()
def test_what_is_found_is_told_as_a_user_would_say_it():
    for make, said in [(Stack, "['norm1', 'norm2']"), (lambda: torch_stack(*POST), "['self_attn', 'linear1']")]:
        model = make().eval()
        _, finder = path_or_finder(model, path_of(model, "*.*"), True)
        capture = BranchCapture(finder.candidates, model=model).attach()
        capture.arm()
        model(HIDDEN)
        finder.find(capture)
        assert finder.note() == f"4 steps found in 2 blocks, as branches={said} would name them."
        assert finder.agreed_path() is None  # it is this process's own
        assert finder.is_done()


@pytest.mark.parametrize(
    ("branches", "layers", "message"),
    [
        ("norm1", "blocks.*", "`branches` must be true, or names of modules in each block, .*got 'norm1'"),
        ([1], "blocks.*", r"`branches` must be true, or names .*got \[1\]"),
        (True, None, "`layers` must name the blocks whose `branches` are read, .*got None"),
        (["norm3"], "blocks.*", "`branches` must name modules in every block, but 'norm3' matches none in 'blocks.0'"),
    ],
)
def test_what_cannot_be_is_named(branches, layers, message):
    model = Stack()
    with pytest.raises(ValueError, match=message):
        path_or_finder(model, path_of(model, layers), branches)


@torch.no_grad()
def test_a_process_without_a_batch_takes_the_steps_of_the_others(monkeypatch):
    model = Stack()
    _, finder = path_or_finder(model, path_of(model, "blocks.*"), True)
    _, other = path_or_finder(model, path_of(model, "blocks.*"), True)
    capture = BranchCapture(finder.candidates, model=model).attach()
    capture.arm()
    model(HIDDEN)
    path, _ = finder.find(capture)
    monkeypatch.setattr("lightning_leaky.paths.branches.first_of", lambda table, _: finder._table.clone())
    agreed = other.agreed_path()
    assert [(one.first, one.then, one.named) for one in agreed.layers] == [
        (one.first, one.then, one.named) for one in path.layers
    ]
    assert other.is_done()
    assert other.agreed_path() is None


def test_leaky_steps_have_no_branches(make_network):
    network = make_network()
    with pytest.raises(ValueError, match="`branches` must be left out of a leaky path and of a plain stack, got True"):
        path_or_finder(network, network, True)


def test_a_sum_of_states_has_no_branches():
    model = Stack()
    path, _ = path_or_finder(model, path_of(model, "blocks.*"), ["norm1", "norm2"])
    with pytest.raises(ValueError, match=r"`state` must be an argument of the blocks, .*got 'sum'"):
        PathCapture(list(path.layers), state="sum")


def test_a_step_that_cannot_be_left_out_is_refused():
    """The second module that is named takes no state of the first's shape."""
    model = Stack()
    path, _ = path_or_finder(model, path_of(model, "blocks.*"), ["norm1", "mlp.fc2"])
    with torch.no_grad(), SkippedBlocks(path.layers, list("abcd")) as hooks:
        hooks.skipped = {0}
        with pytest.raises(ValueError, match=r"layer 'a' cannot be left out: it maps \(3, 5, 16\) to \(3, 5, 32\)"):
            model(HIDDEN)


@pytest.mark.parametrize("branches", [True, ["norm1", "norm2"]])
@torch.no_grad()
def test_which_output_of_a_block_is_its_state_is_known_by_the_next(branches):
    model = Stack(Pairs)
    _, passage = captured(model, HIDDEN, "blocks.*", branches)
    assert torch.equal(passage.current[3], model(HIDDEN)[1])
    assert torch.equal(passage.current[1], model.blocks[0](HIDDEN)[1])


@pytest.mark.parametrize("branches", [True, ["norm1", "norm2"]])
@torch.no_grad()
def test_which_output_of_a_block_is_its_state_can_be_said(branches):
    model = nn.Sequential(Pairs())
    with pytest.raises(AssertionError, match="say `state`"):
        captured(model, HIDDEN, "*", branches)
    _, passage = captured(model, HIDDEN, "*", branches, state=("x", 1))
    assert torch.equal(passage.current[1], model(HIDDEN)[1])


def test_two_passes_of_a_step_are_both_kept():
    model = Stack()
    _, finder = path_or_finder(model, path_of(model, "blocks.*"), True)
    capture = BranchCapture(finder.candidates, True, counts_all=True, model=model).attach()
    capture.arm()
    (cost(model(HIDDEN)) + cost(model(HIDDEN * 2))).backward()
    path, places = finder.find(capture)
    other = PathCapture(list(path.layers), True, counts_all=True, model=model)
    other.take(capture, places)
    other.settle()
    assert other.runs == [2, 2, 2, 2]
    one, two = other.passages
    assert torch.equal(two.previous[0], 2 * one.previous[0])
    assert all(gradient is not None for passage in (one, two) for gradient in passage.gradients)


def test_a_forward_pass_that_fails_leaves_nothing(hooks_of):
    """The block that failed was never left."""

    class Failing(Timm):
        def forward(self, x):
            self.norm1(x)
            raise RuntimeError("on purpose")

    model = Stack(Failing)
    _, finder = path_or_finder(model, path_of(model, "blocks.*"), True)
    capture = BranchCapture(finder.candidates, True, model=model).attach()
    capture.arm()
    assert len(capture.step_gradients._parameters) == len(list(model.parameters()))  # each of them once
    with pytest.raises(RuntimeError, match="on purpose"):
        model(HIDDEN)
    assert len(*capture._entered.values()) > 1  # what the block took, and what passed in it
    assert not copy.deepcopy(capture)._entered
    capture.clear()
    assert not capture._entered
    capture.detach()
    assert hooks_of(model) == 0


def test_a_copy_has_no_hooks_and_holds_no_tensor(hooks_of):
    model = Stack()
    _, finder = path_or_finder(model, path_of(model, "blocks.*"), True)
    capture = BranchCapture(finder.candidates, model=model).attach()
    capture.arm()
    model(HIDDEN)
    assert hooks_of(model) > 0
    copied = copy.deepcopy(capture)
    assert not copied.armed
    assert copied.runs == [0] * len(copied.layers)
    assert not copied._handles
    capture.detach()
    assert hooks_of(model) == 0
