"""Which tensor of a block is its state: what may be it, and what the user says."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from lightning_leaky.hooks.state import certain_choice, state_candidates, state_place


class Pair(NamedTuple):
    hidden: Tensor
    residual: Tensor


@dataclass
class Output:
    hidden: Tensor
    aux: Tensor


class Block(nn.Module):
    def forward(self, context, hidden, *, mask=None):
        raise NotImplementedError


class Anything(nn.Module):
    def forward(self, *args, **kwargs):
        raise NotImplementedError


CONTEXT, HIDDEN, MASK, NEW, AUX = (torch.randn(shape) for shape in [(2, 3), (2, 3), (2, 2), (2, 3), (2, 3)])
CACHE = torch.zeros(2, 3).to(torch.float8_e4m3fn)


def candidates(state=None, args=(CONTEXT, HIDDEN), output=NEW, block=None, **kwargs):
    found = state_candidates(state_place(Block() if block is None else block, state), args, kwargs, output)
    names = {id(CONTEXT): "context", id(HIDDEN): "hidden", id(MASK): "mask", id(NEW): "new", id(AUX): "aux"}
    return tuple([names.get(id(tensor)) for tensor in side] for side in found)


@pytest.mark.parametrize(
    ("call", "befores", "afters"),
    [
        ({}, ["context", "hidden"], ["new"]),
        ({"args": (MASK, HIDDEN)}, ["hidden"], ["new"]),
        ({"args": (HIDDEN, HIDDEN), "key": HIDDEN}, ["hidden"], ["new"]),
        ({"args": (HIDDEN,), "output": (NEW, AUX)}, ["hidden"], ["new", "aux"]),
        ({"args": (HIDDEN,), "output": {"mask": MASK, "hidden": NEW}}, ["hidden"], ["new"]),
        ({"args": (HIDDEN,), "output": (NEW, {"again": NEW})}, ["hidden"], ["new"]),
        ({"args": (HIDDEN, CACHE), "output": (NEW, CACHE)}, ["hidden"], ["new"]),
        ({"args": (MASK, HIDDEN), "output": torch.ones(5)}, ["mask"], [None]),
        ({"args": (), "output": None}, [], []),
        ({"state": "hidden"}, ["hidden"], ["new"]),
        ({"state": 1}, ["hidden"], ["new"]),
        ({"state": 1, "args": (CONTEXT,), "hidden": HIDDEN}, ["hidden"], ["new"]),
        ({"state": "hidden", "args": (), "hidden": HIDDEN, "context": CONTEXT}, ["hidden"], ["new"]),
        ({"state": "mask", "mask": MASK}, ["mask"], ["new"]),
        ({"state": "mask"}, [], ["new"]),
        ({"state": "hidden", "output": (NEW, AUX)}, ["hidden"], ["new", "aux"]),
        ({"state": ("hidden", 1), "output": (NEW, AUX)}, ["hidden"], ["aux"]),
        ({"state": ["hidden", 1], "output": (NEW, AUX)}, ["hidden"], ["aux"]),
        ({"state": (1, "aux"), "output": {"hidden": NEW, "aux": AUX}}, ["hidden"], ["aux"]),
        ({"state": (1, "aux"), "output": Output(NEW, AUX)}, ["hidden"], ["aux"]),
        ({"state": (1, "residual"), "output": Pair(NEW, AUX)}, ["hidden"], ["aux"]),
        ({"state": (1, 1), "output": Output(NEW, AUX)}, ["hidden"], ["aux"]),
        ({"state": (1, 0)}, ["hidden"], ["new"]),
        ({"state": (1, 7)}, ["hidden"], []),
        ({"state": 5, "block": Anything(), "args": (MASK,) * 5 + (HIDDEN,)}, ["hidden"], ["new"]),
        ({"state": "any", "block": Anything(), "any": HIDDEN}, ["hidden"], ["new"]),
        ({"state": lambda side: side[1] if isinstance(side, tuple) else side}, ["hidden"], ["new"]),
    ],
)
def test_what_may_be_the_state(call, befores, afters):
    assert candidates(**call) == (befores, afters)


@pytest.mark.parametrize("state", ["other", 2, -1, True, 0.5, ("hidden",), (1, 1, 1), ("other", 0)])
def test_what_no_block_takes_is_refused(state):
    with pytest.raises(ValueError, match=r"`state` must be.*Block takes \['context', 'hidden', 'mask'\]"):
        state_place(Block(), state)


def test_a_block_without_a_signature_takes_anything():
    traced = torch.jit.trace(nn.Linear(3, 3), HIDDEN)
    assert state_candidates(state_place(traced, 0), (HIDDEN,), {}, NEW) == ([HIDDEN], [NEW])


@pytest.mark.parametrize("wrap", [checkpoint_wrapper, partial(torch.compile, backend="eager")])
def test_a_block_inside_a_wrapper_is_asked_for_its_arguments(wrap):
    """The wrapper itself takes anything, and hands it on by position or name."""
    wrapped = wrap(checkpoint_wrapper(Block()))
    assert candidates("hidden", block=wrapped) == (["hidden"], ["new"])
    with pytest.raises(ValueError, match=r"Block takes \['context', 'hidden', 'mask'\]"):
        state_place(wrapped, "other")


def test_a_sum_is_of_all_that_are_handed_on():
    """Also of one tensor that is both of them."""
    place = state_place(Block(), "sum")
    for args in ((CONTEXT, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, None)):
        (before,), (after,) = state_candidates(place, args, {"mask": MASK}, (NEW, AUX))
        torch.testing.assert_close(before, sum(part for part in args if part is not None))
        torch.testing.assert_close(after, NEW + AUX)
    befores, afters = state_candidates(place, (CONTEXT, HIDDEN), {}, NEW)
    assert len(befores) == 2, "something that is not handed on belongs to no sum"
    assert len(afters) == 1


@pytest.mark.parametrize(
    ("args", "kwargs", "output", "choice"),
    [
        ((MASK, HIDDEN), {}, NEW, (1, 0)),
        ((MASK,), {"hidden": HIDDEN}, (MASK, NEW), ("hidden", 1)),
        ((HIDDEN,), {}, {"mask": MASK, "hidden": NEW}, (0, 1)),
        ((HIDDEN, HIDDEN), {}, NEW, None),
        (([HIDDEN],), {}, NEW, None),
        ((HIDDEN,), {}, [[NEW]], None),
    ],
)
def test_what_was_certain_once_is_a_choice_for_later(args, kwargs, output, choice):
    assert certain_choice(args, kwargs, output, HIDDEN, NEW) == choice
    if choice is not None:
        later = state_candidates(state_place(Block(), choice), args, kwargs, output)
        assert later == ([HIDDEN], [NEW])


@pytest.mark.parametrize("state", [None, "sum", 1, ("hidden", 1)])
def test_compiled_code_finds_the_same(state):
    torch._dynamo.reset()
    place = state_place(Block(), state)

    def found(context, hidden):
        return state_candidates(place, (context,), {"hidden": hidden}, (context * 2, hidden * 3))

    expected = found(CONTEXT, HIDDEN)
    compiled = torch.compile(found, backend="eager", fullgraph=True)(CONTEXT, HIDDEN)
    for one, other in zip(expected, compiled, strict=True):
        torch.testing.assert_close(one, other)
