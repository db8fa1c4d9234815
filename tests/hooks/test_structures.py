"""Blocks that take and return tuples, dictionaries and dataclasses."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from lightning_leaky.hooks.state import StatePlace, state_candidates
from lightning_leaky.hooks.structures import replaced, same_shape, tensors_of, without_nesting


@dataclass
class Output:
    weights: Tensor | None
    hidden: Tensor


class Named(NamedTuple):
    hidden: Tensor
    cache: object


HIDDEN, OTHER = torch.zeros(2, 3), torch.ones(4)


def paired_tensors(inputs, outputs):
    """What a block maps, where that is certain; nothing where either side has no tensor."""
    befores, afters = state_candidates(StatePlace(), (inputs,), {}, outputs)
    assert max(len(befores), len(afters)) <= 1
    return (befores[0], afters[0]) if befores and afters else None


STRUCTURES = {
    "tensor": lambda hidden: hidden,
    "tuple": lambda hidden: (hidden, OTHER),
    "later in a tuple": lambda hidden: (OTHER, hidden),
    "list": lambda hidden: [None, hidden],
    "dict": lambda hidden: {"weights": OTHER, "hidden": hidden},
    "ordered dict": lambda hidden: OrderedDict(hidden=hidden, past=None),
    "dataclass": lambda hidden: Output(OTHER, hidden),
    "named tuple": lambda hidden: Named(hidden, object),
    "model output": lambda hidden: BaseModelOutput(last_hidden_state=hidden, attentions=(OTHER,)),
    "nested": lambda hidden: ({"states": [OTHER, (hidden,)]}, 3),
}


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
def test_the_hidden_state_is_found_by_its_shape_and_replaced(structure):
    new = HIDDEN + 1
    outputs = structure(new)
    before, after = paired_tensors(((torch.ones(5),), {"hidden": HIDDEN}), outputs)
    assert before is HIDDEN
    assert after is new
    newer = HIDDEN + 2
    changed = replaced(outputs, new, newer)
    assert type(changed) is type(outputs)
    assert [one is newer for one in tensors_of(changed)] == [one is new for one in tensors_of(outputs)]
    assert paired_tensors(HIDDEN, outputs)[1] is new  # what was given has not changed


def test_a_block_that_changes_the_shape_pairs_the_first_of_each():
    before, after = paired_tensors(((HIDDEN, OTHER), {}), (torch.ones(2, 5), torch.ones(7)))
    assert before is HIDDEN
    assert after.shape == (2, 5)


@pytest.mark.parametrize("outputs", [None, 3, "text", torch.ones(2, 3, dtype=torch.int64), (), {"a": None}])
def test_without_a_floating_tensor_there_is_no_pair(outputs):
    assert paired_tensors(HIDDEN, outputs) is None
    assert paired_tensors(outputs, HIDDEN) is None


def nested(*lengths):
    return torch.nested.nested_tensor([torch.ones(length, 3) for length in lengths])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_have_the_shapes_of_their_parts():
    before, after = nested(2, 1), nested(2, 1) + 1
    assert paired_tensors((HIDDEN, before), after)[0] is before
    assert same_shape(before, after)
    assert not same_shape(before, nested(1, 2))
    assert not same_shape(before, HIDDEN)
    padded, real = without_nesting(nested(2, 0, 1))
    assert torch.equal(real, torch.tensor([[True, True], [False, False], [True, False]]))
    assert torch.equal(padded, real[..., None].expand(3, 2, 3).float())
