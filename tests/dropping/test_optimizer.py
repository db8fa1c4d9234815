"""An optimizer forgets what goes, and keeps the state of what stays."""

import copy

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from lightning_leaky.dropping import drop_layers
from tests.blocks import Block, Net
from tests.dropping.helpers import Looped


def step(model, optimizer, inputs):
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    optimizer.step()


OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adamw, fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("named", [False, True])
def test_a_further_step_is_that_of_an_optimizer_made_for_the_smaller_model(make, named):
    parameters_of = Looped.named_parameters if named else Looped.parameters
    model, inputs = Looped(Block), torch.randn(8, 6)
    optimizer = make(parameters_of(model))
    for _ in range(3):
        step(model, optimizer, inputs)
    drop_layers(model, ["layers.0", "layers.2"], inputs, optimizer)
    other = Looped(Block, num_layers=2)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    fresh = make(parameters_of(other))
    state = copy.deepcopy(optimizer.state_dict())
    if named:
        for group in state["param_groups"]:
            assert len(group.pop("param_names")) == len(group["params"])
        fresh.param_groups[0].pop("param_names")
    fresh.load_state_dict(state)
    assert len(optimizer.state) == len(list(model.parameters()))
    step(model, optimizer, inputs)
    step(other, fresh, inputs)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_names_follow():
    model = Looped(Block)
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    drop_layers(model, "layers.0", torch.randn(2, 6), optimizer)
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in Looped(Block).named_parameters()][2:]


def test_groups_that_are_empty_stay_and_schedulers_go_on():
    model, inputs = Net(), torch.randn(8, 6)
    groups = [{"params": list(block.parameters()), "lr": 0.1 * (n + 1)} for n, block in enumerate(model.encoder)]
    optimizer = torch.optim.SGD([*groups, {"params": list(model.head.parameters())}], lr=1.0)
    scheduler = LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    drop_layers(model, "encoder.1", inputs, optimizer)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 0, 2, 2]
    step(model, optimizer, inputs)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.1, 0.15, 0.5])


def test_several_optimizers():
    model = Net()
    optimizers = [torch.optim.SGD(block.parameters(), lr=0.1) for block in model.encoder]
    drop_layers(model, "encoder.0", torch.randn(2, 6), optimizers)
    assert [len(optimizer.param_groups[0]["params"]) for optimizer in optimizers] == [0, 2, 2]


def test_parameters_shared_among_what_goes_and_nothing_else_are_forgotten_once():
    model = Net()
    model.encoder[1].linear.weight = model.encoder[0].linear.weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    drop_layers(model, ["encoder.0", "encoder.1"], torch.randn(2, 6), optimizer)
    assert {*map(id, optimizer.param_groups[0]["params"])} == {*map(id, model.parameters())}


def test_a_history_of_all_parameters_together_is_refused():
    model = Net()
    optimizer = torch.optim.LBFGS(model.parameters())
    with pytest.raises(ValueError, match="`optimizer` must keep its state parameter by parameter, got LBFGS"):
        drop_layers(model, "encoder.0", torch.randn(2, 6), optimizer)
    assert len(model.encoder) == 3
