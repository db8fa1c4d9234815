"""Choosing layers: five ways to the same modules, by the names they had before anybody wrapped them."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from lightning_leaky.paths.layers import choose_layers, named_layers, plain_name


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden):
        return hidden + self.linear(hidden)


class Wide(Block):
    pass


def is_first(name, module):
    return name.endswith("layers.0")


@pytest.fixture
def model():
    blocks = nn.ModuleList([Block(), Wide(), Block()])
    return nn.ModuleDict({"encoder": nn.ModuleDict({"layers": blocks}), "head": nn.Linear(4, 2)})


NAMES = ["encoder.layers.0", "encoder.layers.1", "encoder.layers.2"]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("encoder.layers.*", NAMES),
        ("*.layers.[02]", [NAMES[0], NAMES[2]]),
        ("encoder.layers.1", [NAMES[1]]),
        (r"re:encoder\.layers\.\d+", NAMES),
        (r"re:.*[12]", NAMES[1:]),
        (Block, NAMES),
        (Wide, [NAMES[1]]),
        ("tests.paths.test_layers.Wide", [NAMES[1]]),
        ("tests.paths.test_layers.is_first", [NAMES[0]]),
        (nn.Linear, [*(f"{name}.linear" for name in NAMES), "head"]),
        (lambda name, module: type(module) is Block and name.endswith("2"), [NAMES[2]]),
    ],
)
def test_each_way_chooses(model, layers, expected):
    chosen = choose_layers(model, layers)
    assert list(chosen) == expected
    assert all(module is model.get_submodule(name) for name, module in chosen.items())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("blocks.*", r"`layers`.*'blocks\.\*' matches none.*'encoder\.layers\.0'"),
        ("layers.*", r"Did you mean 'encoder\.layers\.0'\? Names start at the module that is fitted"),
        ("encoder.layer.*", r"Did you mean 'encoder\.layers"),
        ("no.such.thing", "matches none"),
        ("re:layers", "matches none"),
        ("re:(", r"`layers` must be a regular expression.*'re:\('"),
        (nn.Conv2d, "matches none"),
        (lambda name, module: False, "matches none"),
        ("encoder.*", None),
        (r"re:encoder\.layers\.0.*", r"'encoder\.layers\.0' contains 'encoder\.layers\.0\.linear'"),
        (nn.Module, "contains"),
        (int, "`layers` must be a type of nn.Module, got <class 'int'>"),
        (3, "`layers` must be a string, a type of module or a function, got 3"),
    ],
)
def test_what_cannot_be_a_path_is_refused(model, layers, message):
    if message is None:
        assert list(choose_layers(model, layers)) == ["encoder.layers"]
        return
    with pytest.raises(ValueError, match=message):
        choose_layers(model, layers)


def test_names_are_those_before_compiling_and_checkpointing():
    model = nn.Sequential(Block(), checkpoint_wrapper(Block()), torch.compile(Block()))
    assert list(choose_layers(torch.compile(model), Block)) == ["0", "1", "2"]
    assert list(choose_layers(model, "*")) == ["0", "1", "2"]
    assert "1.linear" in named_layers(model)


def test_plain_names_keep_what_only_looks_like_a_wrapper():
    assert plain_name("_orig_mod.a._fsdp_wrapped_module.b._checkpoint_wrapped_module") == "a.b"
    assert plain_name("my_orig_mod_of.b") == "my_orig_mod_of.b"
