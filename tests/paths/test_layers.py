"""Choosing layers: five ways to the same modules, by the names they had before anybody wrapped them."""

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from lightning_leaky import LeakyResNet
from lightning_leaky.paths.block_path import BlockPath
from lightning_leaky.paths.layers import choose_layers, device_of, named_layers
from lightning_leaky.paths.leaky_path import find_leaky_path, knows_weights, leaky_paths
from lightning_leaky.utilities.wrappers import plain_name, unwrapped


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
        ("layers.*", r"Did you mean 'encoder\.layers\.\*'\? Names start at the module that is fitted"),
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
    assert plain_name("my_orig_mod_of.module.b") == "my_orig_mod_of.module.b"


def with_lora(model):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["linear"]))


WRAPPERS = {
    "compiled": torch.compile,
    "data parallel": nn.DataParallel,
    "averaged": AveragedModel,
    "fabric": Fabric(accelerator="cpu").setup,
    "fabric of compiled": lambda model: Fabric(accelerator="cpu").setup(torch.compile(model)),
    "lora": with_lora,
    "two": lambda model: nn.DataParallel(torch.compile(AveragedModel(model))),
}
every_wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


class Named(nn.Module):
    """A model whose own parts are called as wrappers call what is inside."""

    def __init__(self):
        super().__init__()
        self.module, self.base_model = nn.Sequential(Block(), Block()), nn.Sequential(Block())

    def forward(self, hidden):
        return self.base_model(self.module(hidden))


@every_wrapper
@pytest.mark.parametrize("is_inside", [False, True])
def test_names_are_those_inside_every_wrapper(wrap, is_inside):
    model = Named()
    wrapped = wrap(model)
    assert unwrapped(wrapped) is not wrapped
    if is_inside:
        wrapped = nn.ModuleDict({"net": wrapped})
    prefix = "net." if is_inside else ""
    assert list(choose_layers(wrapped, f"{prefix}module.*")) == [f"{prefix}module.0", f"{prefix}module.1"]
    assert list(choose_layers(wrapped, Block)) == [
        f"{prefix}{name}" for name in ("module.0", "module.1", "base_model.0")
    ]


@every_wrapper
def test_of_a_wrapped_block_the_wrapper_is_chosen(wrap):
    model = nn.Sequential(Block(), wrap(Block()))
    assert list(choose_layers(model, Block).values()) == [model[0], model[1]]
    assert type(unwrapped(model[1])) is Block


def test_a_module_of_ones_own_is_no_wrapper():
    """Though it forwards attributes, and calls its only part as DDP does."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = Block()

        def __getattr__(self, name):
            return super().__getattr__(name) if name == "module" else getattr(self.module, name)

    model = nn.Sequential(Own())
    assert unwrapped(model[0]) is model[0]
    assert list(named_layers(model)) == ["0", "0.module", "0.module.linear"]


def test_parameters_that_are_not_there_yet_are_not_looked_at():
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyLinear(4))
    assert list(named_layers(model)) == ["0", "1"]
    assert device_of(model) == torch.device("cpu")
    assert not knows_weights(BlockPath(model))


# The leaky path of a wrapped model.


class Forwards(nn.Module):
    """Answers for the module inside, as many wrappers do."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def __getattr__(self, name):
        return super().__getattr__(name) if name == "inner" else getattr(self.inner, name)


@pytest.mark.parametrize("is_inside", [False, True])
@pytest.mark.parametrize("wrap", [*WRAPPERS.values(), Forwards], ids=[*WRAPPERS, "forwards"])
def test_a_path_is_found_once_in_every_wrapper(wrap, is_inside, make_network):
    network = make_network()
    network.input_map = nn.ModuleDict({"linear": network.input_map})  # something for LoRA
    model = wrap(nn.Sequential(network)) if is_inside else wrap(network)
    path = find_leaky_path(model)
    assert type(path) is LeakyResNet
    assert list(path.layers) == list(path.layers.children())
    assert knows_weights(path)
    assert (path is network) == (wrap is not AveragedModel and "AveragedModel" not in repr(model))


def test_two_paths_are_still_two(make_network):
    model = nn.ModuleDict({"one": make_network(), "two": Forwards(make_network())})
    assert list(leaky_paths(model)) == ["one", "two.inner"]
