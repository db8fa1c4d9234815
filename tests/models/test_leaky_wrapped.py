"""Leaky steps made and undone through what people put around models: wholly, or not at all."""

import warnings

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_leaky import StepSizeHook, make_leaky, measure_path, unmake_leaky
from lightning_leaky.models import LeakySteps
from lightning_leaky.paths.leaky_path import find_leaky_path, leaky_paths
from tests.blocks import Block as Tanh
from tests.blocks import Net

RHO = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)


class Block(Tanh):
    """h + W h: it can take a step-size into its weights."""

    def forward(self, hidden):
        return hidden + self.linear(hidden)


class Forwards(nn.Module):
    """Answers for the model inside."""

    def __init__(self, base_model):
        super().__init__()
        self.base_model = base_model

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_model"), name)

    def forward(self, *args):
        return self.base_model(*args)


def with_lora(model):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["head"]))


def compiled(model):
    torch._dynamo.reset()
    return torch.compile(model, backend="eager")


WRAPPERS = {
    "none": lambda model: model,
    "compiled": compiled,
    "data parallel": nn.DataParallel,
    "averaged": AveragedModel,
    "fabric": lambda model: Fabric(accelerator="cpu").setup(model),
    "lora": with_lora,
    "several": lambda model: nn.DataParallel(compiled(AveragedModel(model))),
    "forwards": Forwards,
}


@pytest.fixture
def inputs():
    return torch.randn(5, 6)


@pytest.mark.parametrize("is_before", [False, True])
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_steps_are_made_found_and_undone_through_wrappers(wrap, is_before, inputs):
    net, by_hand = Net(Block), inputs
    plain = net(inputs)
    for block, step in zip(net.encoder, RHO.tolist(), strict=True):
        by_hand = by_hand + 3 * step * block.linear(by_hand)
    expected = net.head(by_hand)
    if is_before:
        model = wrap(make_leaky(net, "encoder.*"))
    else:
        model = wrap(net)
        torch.testing.assert_close(model(inputs), plain)  # compiled code must notice the hooks that come later
        make_leaky(model, "base_model.encoder.*" if wrap is Forwards else "encoder.*")
    path = find_leaky_path(model)
    assert isinstance(path, LeakySteps)
    assert list(leaky_paths(model)) == ["base_model.leaky_steps" if wrap is Forwards and is_before else "leaky_steps"]
    path.step_sizes.copy_(RHO)
    torch.testing.assert_close(model(inputs), expected)
    assert len(measure_path(model, [inputs], ["kinetic_energy"])["kinetic_energy"]) == 3
    hook = StepSizeHook(model).attach(torch.optim.SGD(model.parameters(), 0.0))
    assert hook.path is path
    hook.detach()
    with pytest.raises(ValueError, match=r"must .* no leaky steps yet"):
        make_leaky(model, "base_model.encoder.*" if wrap is Forwards else "encoder.*")
    torch.testing.assert_close(model(inputs), expected)  # a refusal changes nothing

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert unmake_leaky(model) is model
    assert not leaky_paths(model)
    assert not any("step_sizes" in name for name in model.state_dict())
    torch.testing.assert_close(model(inputs), expected)


def hooks_of(model):
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


def test_a_warning_that_is_an_error_leaves_the_steps(inputs):
    model = Forwards(make_leaky(Net(Tanh), "encoder.*"))
    model.leaky_steps.step_sizes.copy_(RHO)
    leaky, state, hooks = model(inputs), model.state_dict(), hooks_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match=r"'base_model\.encoder\.0'.* cannot be folded"):
            unmake_leaky(model)
    assert torch.equal(model(inputs), leaky)
    assert model.state_dict().keys() == state.keys()
    assert hooks_of(model) == hooks


def test_weights_that_cannot_be_written_leave_the_steps(inputs):
    model = make_leaky(Net(Block), "encoder.*")
    with torch.inference_mode():
        model.encoder[1].linear.weight = nn.Parameter(torch.ones(6, 6))
    model.leaky_steps.step_sizes.copy_(torch.tensor([0.5, 0.25, 0.25]))
    with torch.no_grad():
        leaky = model(inputs)
        with pytest.raises(RuntimeError, match="inference"):
            unmake_leaky(model)
        assert torch.equal(model(inputs), leaky)


def test_with_several_steps_inside_nothing_is_undone(inputs):
    model = nn.Sequential(make_leaky(nn.Sequential(Block()), "*"), make_leaky(nn.Sequential(Block()), "*"))
    with pytest.raises(ValueError, match=r"leaky steps once to unmake, got \['0', '1'\]"):
        unmake_leaky(model)
    unmake_leaky(model[0])
    assert list(leaky_paths(model)) == ["1.leaky_steps"]


def test_the_steps_of_the_model_itself_come_first():
    model = make_leaky(nn.Sequential(Block(), make_leaky(nn.Sequential(Block()), "*")), "0")
    unmake_leaky(model)
    assert list(leaky_paths(model)) == ["1.leaky_steps"]


def test_a_block_is_a_leaky_step_once(inputs):
    model = make_leaky(Net(Block), "encoder.*", 0.5)
    leaky = model(inputs)
    with pytest.raises(ValueError, match=r"no leaky steps yet, but \['0\.encoder\.1'\] are"):
        make_leaky(nn.Sequential(model), "0.encoder.1")
    with pytest.raises(ValueError, match="got one of them twice"):
        LeakySteps([model.head, model.head])
    assert torch.equal(model(inputs), leaky)


def test_making_that_fails_half_way_leaves_no_hooks(inputs):
    class Refuses(Block):
        def register_forward_hook(self, *args, **kwargs):
            raise RuntimeError("no hooks here")

    net = nn.Sequential(Block(), Refuses())
    with pytest.raises(RuntimeError, match="no hooks here"):
        make_leaky(net, "*", 0.5)
    assert not any(hooks_of(net))
    assert list(net.state_dict()) == ["0.linear.weight", "0.linear.bias", "1.linear.weight", "1.linear.bias"]
