"""What leaving blocks out costs: as by hand, wherever blocks are found, with the model as it was."""

import copy
from itertools import combinations

import pytest
import torch
import torchmetrics
from torch import nn
from torch.nn import functional as F
from torchmetrics import Metric
from transformers import T5Config, T5ForConditionalGeneration

from lightning_leaky import Layout, ablate_path
from lightning_leaky.hooks.skipped import SkippedBlocks
from tests.blocks import Block

NUM_BLOCKS = 4


def net(block=Block):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 6), nn.Sequential(*(block() for _ in range(NUM_BLOCKS))), nn.Linear(6, 2)
    ).double()


def batches(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 3, generator=generator).double(), torch.randn(size, 2, generator=generator).double())
        for size in sizes
    ]


def without(model, removed):
    """The same modules, but for some blocks."""
    return nn.Sequential(model[0], *(block for index, block in enumerate(model[1]) if index not in removed), model[2])


def cost_by_hand(model, data, removed=()):
    inputs, targets = (torch.cat(parts) for parts in zip(*data, strict=True))
    return F.mse_loss(without(model, removed)(inputs), targets).item()


def test_each_cost_is_that_of_the_network_without_the_block():
    model, data = net(), batches(5, 1, 3)  # a mean over samples, not over batches
    found = ablate_path(model, data, F.mse_loss)
    assert found.names == ("1.0", "1.1", "1.2", "1.3")
    assert found.baseline == pytest.approx(cost_by_hand(model, data), rel=1e-12)
    expected = [cost_by_hand(model, data, [index]) for index in range(NUM_BLOCKS)]
    assert found.costs.tolist() == pytest.approx(expected, rel=1e-12)
    assert found.increases.tolist() == pytest.approx([cost - found.baseline for cost in expected], rel=1e-9)
    assert (found.order, len(found.curve)) == ((), 0)


def test_blocks_go_together_in_a_given_order():
    model, data = net(), batches(7)
    found = ablate_path(model, data, F.mse_loss, order=[3, 1, 4])
    expected = [cost_by_hand(model, data, removed) for removed in ([], [2], [2, 0], [2, 0, 3])]
    assert found.order == (3, 1, 4)
    assert found.curve.tolist() == pytest.approx(expected, rel=1e-12)


def test_greedy_removal_takes_the_least_next():
    model, data = net(), batches(7)
    found = ablate_path(model, data, F.mse_loss, order="greedy", num_removed=3)
    taken = []
    for _ in range(3):
        left = [index for index in range(NUM_BLOCKS) if index not in taken]
        taken.append(min(left, key=lambda index: cost_by_hand(model, data, [*taken, index])))
    assert found.order == tuple(index + 1 for index in taken)
    expected = [cost_by_hand(model, data, taken[:count]) for count in range(4)]
    assert found.curve.tolist() == pytest.approx(expected, rel=1e-12)
    assert len(ablate_path(model, data, F.mse_loss, order="greedy").order) == NUM_BLOCKS // 2


@pytest.mark.parametrize(("order", "num_removed", "passes"), [((), None, 5), ([2, 1], None, 6), ("greedy", 3, 10)])
def test_the_data_are_gone_through_as_often_as_said(order, num_removed, passes):
    """Beside the one batch that finds the blocks: L + 1, then K − 1, or L − k for each k = 1, …, K − 1."""
    model, data, calls = net(), batches(2, 2), []
    model.register_forward_hook(lambda *_: calls.append(1))
    ablate_path(model, data, F.mse_loss, order=order, num_removed=num_removed)
    assert len(calls) == 1 + len(data) * passes
    del calls[:]
    ablate_path(model, iter(data), F.mse_loss, order=order, num_removed=num_removed, max_batches=1)
    assert len(calls) == 1 + passes


class Share(Metric):
    """Share of outputs above the targets: more is better, and no mean of batches."""

    higher_is_better = True

    def __init__(self):
        super().__init__()
        self.add_state("counts", torch.zeros(2), dist_reduce_fx="sum")

    def update(self, outputs, targets):
        self.counts += torch.tensor([float((outputs > targets).sum()), targets.numel()])

    def compute(self):
        return self.counts[0] / self.counts[1]


def test_a_metric_is_measured_and_the_better_kept():
    model, data = net(), batches(6, 3)
    inputs, targets = (torch.cat(parts) for parts in zip(*data, strict=True))
    shares = {
        removed: float((without(model, removed)(inputs) > targets).double().mean())
        for count in (1, 2)
        for removed in combinations(range(NUM_BLOCKS), count)
    }
    found = ablate_path(model, data, Share(), order="greedy")
    assert found.costs.tolist() == pytest.approx([shares[index,] for index in range(NUM_BLOCKS)])
    first, second = (number - 1 for number in found.order)
    assert shares[first,] == max(shares[index,] for index in range(NUM_BLOCKS))
    assert float(found.curve[2]) == pytest.approx(shares[tuple(sorted([first, second]))])


def test_the_model_is_left_as_it_was(hooks_of):
    model = nn.Sequential(net(), nn.Dropout(0.5))
    model.train()
    model[0][1][2].eval()
    modes = [module.training for module in model.modules()]
    state, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    ablate_path(model, batches(4), F.mse_loss, "0.1.*", order="greedy")
    assert [module.training for module in model.modules()] == modes
    assert hooks_of(model) == 0
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    with pytest.raises(RuntimeError, match="on purpose"):
        ablate_path(model, batches(4), fail, "0.1.*")
    assert hooks_of(model) == 0


def fail(outputs, targets):
    raise RuntimeError("on purpose")


class InPlace(Block):
    """Overwrites what it is given."""

    def forward(self, hidden):
        return hidden.add_(self.linear(hidden).tanh())


class Pair(Block):
    """Returns its state beside something else."""

    def forward(self, hidden):
        return {"hidden": super().forward(hidden), "weights": hidden.new_zeros(1)}


class Chain(nn.Module):
    def __init__(self, block):
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.block = nn.ModuleList(block() for _ in range(NUM_BLOCKS)), block

    def forward(self, hidden):
        for block in self.blocks:
            hidden = block(hidden.clone())
            hidden = hidden["hidden"] if isinstance(hidden, dict) else hidden
        return hidden


@pytest.mark.parametrize("block", [Block, InPlace, Pair])
@pytest.mark.parametrize("removed", [[0], [1, 2], [3]])
@torch.no_grad()
def test_blocks_that_write_in_place_or_return_more_are_left_out(block, removed):
    model, inputs = Chain(block).eval(), torch.randn(5, 6)
    expected = copy.deepcopy(model)
    expected.blocks = nn.ModuleList(one for index, one in enumerate(model.blocks) if index not in removed)
    with SkippedBlocks(list(model.blocks), list("abcd")) as hooks, torch.no_grad():
        hooks.skipped = set(removed)
        assert torch.equal(model(inputs), expected(inputs))
        hooks.skipped = set()
        whole = model(inputs)
    assert torch.equal(model(inputs), whole)


def test_layers_of_a_plain_stack_are_left_out_with_what_follows_them():
    torch.manual_seed(0)
    model = nn.Sequential(*(part for _ in range(3) for part in (nn.Linear(4, 4), nn.ReLU())))
    inputs, targets = torch.randn(9, 4), torch.randn(9, 4)
    found = ablate_path(model, [(inputs, targets)], F.mse_loss)
    expected = [F.mse_loss(nn.Sequential(*model[: 2 * i], *model[2 * i + 2 :])(inputs), targets) for i in range(3)]
    assert found.costs.tolist() == pytest.approx([float(one) for one in expected])


def test_segments_and_blocks_that_change_the_width():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(Block(4) for _ in range(2)), nn.Sequential(nn.Linear(4, 6), nn.ReLU()), *(Block(6) for _ in range(2))
    )
    data = [(torch.randn(7, 4), torch.randn(7, 6))]
    found = ablate_path(model, data, F.mse_loss, "*")
    assert found.names == ("0", "1", "3", "4")
    with torch.no_grad():
        expected = [
            F.mse_loss(nn.Sequential(*(one for at, one in enumerate(model) if at != index))(data[0][0]), data[0][1])
            for index in (0, 1, 3, 4)
        ]
    assert found.costs.tolist() == pytest.approx([float(one) for one in expected])


@pytest.mark.parametrize("layers", [None, "encoder.block.*", "decoder.block.*"])
def test_both_sides_of_an_encoder_and_decoder_of_one_length(layers):
    """The decoder takes two tensors of one shape; what passes between the blocks tells which is its state."""
    torch.manual_seed(0)
    config = T5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2, decoder_start_token_id=0)
    model, tokens = T5ForConditionalGeneration(config).eval(), torch.randint(30, (4, 7))
    found = ablate_path(
        model, [({"input_ids": tokens, "labels": tokens}, None)], lambda outputs, _: outputs.loss, layers
    )
    stack = model.encoder if layers and "encoder" in layers else model.decoder
    blocks, expected = stack.block, []
    for index in (1, 2):  # the first holds the position bias of all
        stack.block = nn.ModuleList([*blocks[:index], *blocks[index + 1 :]])
        expected.append(float(model(input_ids=tokens, labels=tokens).loss))
    assert found.costs.tolist()[1:] == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_compiled_code_is_left_aside_even_if_it_has_run():
    """It would not see the hooks."""
    model, inputs = Chain(Block).eval(), torch.randn(5, 6)
    compiled = torch.compile(model, backend="eager")
    whole = compiled(inputs)
    with SkippedBlocks(list(model.blocks), list("abcd")) as hooks:
        hooks.skipped = {1}
        found = compiled(inputs)
    del model.blocks[1]
    assert torch.equal(found, model(inputs))
    assert not torch.equal(found, whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batches": []}, "`batches` must hold at least one batch, got none"),
        ({"order": [0]}, r"`order` must be .*numbers from 1 to 4, got \[0\]"),
        ({"order": [1, 1]}, r"`order` must be .*got \[1, 1\]"),
        ({"order": "least"}, "`order` must be 'greedy', or .*got 'least'"),
        ({"order": "greedy", "num_removed": 5}, "`num_removed` must be between 0 and the 4 blocks, got 5"),
    ],
    ids=["batches", "zero", "twice", "word", "many"],
)
def test_what_cannot_be_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ablate_path(**{"model": net(), "batches": batches(2), "cost": F.mse_loss} | arguments)


class Two(nn.Module):
    """Hands on two tensors of one shape."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, hidden, residual):
        return self.linear(hidden), residual + hidden


class Twos(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Two() for _ in range(3))

    def forward(self, inputs):
        hidden, residual = inputs, torch.zeros_like(inputs)
        for block in self.blocks:
            hidden, residual = block(hidden, residual)
        return hidden + residual


def test_a_state_that_is_not_certain_is_asked_for_and_a_sum_can_be_left_out():
    torch.manual_seed(0)
    model, data = Twos(), [(torch.randn(5, 6), torch.randn(5, 6))]
    with pytest.raises(ValueError, match="which of them is its state is not known; say `state`"):
        ablate_path(model, data, F.mse_loss, "blocks.*")
    found = ablate_path(model, data, F.mse_loss, "blocks.*", state="sum")
    assert found.costs.shape == (3,)
    for index in range(3):
        skipped = copy.deepcopy(model)
        del skipped.blocks[index]
        assert float(found.costs[index]) == float(F.mse_loss(skipped(data[0][0]), data[0][1]))


class Counted(Two):
    """Returns one state of two, after a tensor of another shape."""

    def forward(self, hidden):
        return torch.zeros(7), self.linear(hidden), 2 * hidden


class CalledByName(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Counted() for _ in range(3))

    def forward(self, inputs):
        for block in self.blocks:
            _, *states = block(hidden=inputs)
            inputs = sum(states)
        return inputs


def test_a_sum_is_left_out_whatever_comes_along_and_however_it_was_passed():
    """Leaving a block out hands its input on: then the sum of what it returns is what it took."""
    torch.manual_seed(0)
    model, data = CalledByName(), [(torch.randn(5, 6), torch.randn(5, 6))]
    found = ablate_path(model, data, F.mse_loss, "blocks.*", state="sum")
    for index in range(3):
        skipped = copy.deepcopy(model)
        del skipped.blocks[index]
        assert float(found.costs[index]) == pytest.approx(float(F.mse_loss(skipped(data[0][0]), data[0][1])), rel=1e-6)


class Noisy(nn.Module):
    """Noise in evaluation too."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, hidden):
        return self.block(hidden + torch.randn_like(hidden))


def test_all_passes_have_the_same_noise():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 6), Noisy(nn.Sequential(Block(), Block(), Block())), nn.Linear(6, 2))
    data = [(inputs.float(), targets.float()) for inputs, targets in batches(4)]
    for parameter in model[1].block[1].parameters():
        nn.init.zeros_(parameter)  # it does nothing
    before = torch.get_rng_state()
    found = ablate_path(model, data, F.mse_loss, "1.block.*")
    assert found.increases[1] == 0
    assert found.increases[0] != 0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_metric_keeps_what_it_has_counted():
    metric = torchmetrics.MeanSquaredError()
    metric.update(torch.ones(2), torch.zeros(2))
    ablate_path(net().float(), [(inputs.float(), targets.float()) for inputs, targets in batches(4)], metric)
    assert metric.compute() == 1


def test_samples_are_counted_along_the_axis_of_the_batch():
    """Two positions of one sample, and two of three."""
    model = nn.Sequential(nn.Linear(3, 6), nn.Sequential(Block(), Block()), nn.Linear(6, 2)).double()
    data = [(torch.randn(2, size, 3).double(), torch.randn(2, size, 2).double()) for size in (1, 3)]
    found = ablate_path(model, data, F.mse_loss, "1.*", layout=Layout("tnc"))
    costs = [F.mse_loss(model(inputs), targets).item() for inputs, targets in data]
    assert found.baseline == pytest.approx((costs[0] + 3 * costs[1]) / 4, rel=1e-12)


def test_a_number_is_no_order():
    with pytest.raises(ValueError, match="`order` must be 'greedy', or different numbers from 1 to 4, got 3"):
        ablate_path(net(), batches(2), F.mse_loss, order=3)
