"""Which tensor is the state, and what it held when it passed."""

import pytest
import torch
from torch import nn

from lightning_leaky import measure_path

DATA = [torch.randn(10, 6) for _ in range(2)]


class Core(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, hidden):
        return hidden + self.linear(hidden).tanh()


class Run(nn.Module):
    """Three blocks, called as a function says."""

    def __init__(self, call, block=Core):
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.call = nn.ModuleList(block() for _ in range(3)), call

    def forward(self, hidden):
        context = torch.ones_like(hidden)
        for block in self.blocks:
            hidden = self.call(block, hidden, context)
        return hidden


def energies(model, **settings):
    return measure_path(model, DATA, ["kinetic_energy"], layers="blocks.*", **settings)["kinetic_energy"]


RIGHT = energies(Run(lambda block, hidden, context: block(hidden)))


class After(Core):
    def forward(self, context, hidden):
        return super().forward(hidden)


class Auxiliary(Core):
    def forward(self, hidden):
        new = super().forward(hidden)
        return 2 * new, new


class Named(Core):
    def forward(self, hidden, context):
        return {"context": context + 1, "hidden": super().forward(hidden)}


CALLS = {
    "context first": (After, lambda block, hidden, context: block(context, hidden)),
    "context first, by keyword": (After, lambda block, hidden, context: block(context, hidden=hidden)),
    "an auxiliary output first": (Auxiliary, lambda block, hidden, context: block(hidden)[1]),
}


@pytest.mark.parametrize("case", CALLS)
def test_what_one_block_hands_on_to_the_next_is_the_state(case):
    block, call = CALLS[case]
    torch.testing.assert_close(energies(Run(call, block)), RIGHT)


def test_a_state_that_nothing_tells_is_refused_by_name_and_said_by_the_user():
    def call(block, hidden, context):
        return block(context, hidden) + 0.0

    with pytest.raises(ValueError, match=r"layer 'blocks.0' takes 2 and returns 1 tensors of one shape.*`state`"):
        energies(Run(call, After))
    for state in ("hidden", 1, ("hidden", 0), lambda value: value[1] if isinstance(value, tuple) else value):
        torch.testing.assert_close(energies(Run(call, After), state=state), RIGHT)


class Pair(Core):
    """Hands on a hidden and a residual tensor, whose sum is the state."""

    def forward(self, hidden, residual):
        residual = hidden + residual
        return self.linear(residual).tanh(), residual


class Pairs(Run):
    def forward(self, hidden):
        residual = torch.zeros_like(hidden)
        for block in self.blocks:
            hidden, residual = block(hidden, residual)
        return hidden + residual


def test_two_that_come_in_and_go_out_are_not_told_apart_by_chance():
    def call(block, hidden, context):
        return block(hidden, context)["hidden"]

    with pytest.raises(ValueError, match=r"takes 2 and returns 2 tensors of one shape"):
        energies(Run(call, Named))
    torch.testing.assert_close(energies(Run(call, Named), state=("hidden", "hidden")), RIGHT)


def test_hidden_and_residual_are_refused_or_summed():
    with pytest.raises(ValueError, match=r"takes 2 and returns 2 tensors of one shape.*state=\"sum\""):
        energies(Pairs(None, Pair))
    torch.testing.assert_close(energies(Pairs(None, Pair), state="sum"), RIGHT)


# What is written to afterwards.


def add_after(block, hidden, context):
    hidden = block(hidden)
    hidden += 1
    return hidden


def add_out_of_place(block, hidden, context):
    return block(hidden) + 1


class Overwrites(Core):
    def forward(self, hidden):
        return hidden.add_(self.linear(hidden).tanh())


def write_data_after(block, hidden, context):
    hidden = block(hidden)
    hidden.data.add_(1)
    return hidden


@pytest.mark.filterwarnings("ignore:Layers .* are not on one path")
def test_writes_that_torch_does_not_count_are_seen():
    torch.testing.assert_close(energies(Run(write_data_after)), energies(Run(add_out_of_place)))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.filterwarnings("ignore:Layers .* are not on one path")
def test_code_between_the_blocks_may_write_in_place(mode):
    with mode():
        torch.testing.assert_close(energies(Run(add_after)), energies(Run(add_out_of_place)))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_block_may_overwrite_its_input(mode):
    """The block's input is copied, batch after batch."""
    with mode():
        data = [batch.clone() for batch in DATA]
        model = Run(lambda block, hidden, context: block(hidden), Overwrites)
        read = measure_path(model, data, ["kinetic_energy"], layers="blocks.*")["kinetic_energy"]
    torch.testing.assert_close(read, RIGHT)
