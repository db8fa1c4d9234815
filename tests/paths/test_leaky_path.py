"""Which of several leaky paths is meant: the one that is named, else the one that is trained."""

import copy
import re

import pytest
import torch
from torch import nn

from lightning_leaky import LeakyResNet, find_leaky_path, make_leaky
from lightning_leaky.paths.layers import choose_layers
from lightning_leaky.utilities.optimizer_steps import held_parameters


def network(num_layers=3):
    return LeakyResNet(2, 2, width=4, num_layers=num_layers, effective_depth=1.0)


def pair(**networks):
    return nn.ModuleDict({"student": network(), "teacher": network(5)} | networks)


def test_a_frozen_one_steps_aside_though_it_is_longer():
    model = pair()
    model["teacher"].requires_grad_(False)
    assert find_leaky_path(model) is model["student"]
    model["student"].requires_grad_(False)
    assert find_leaky_path(model["teacher"]) is model["teacher"]
    with pytest.raises(ValueError, match="`path` must say which"):
        find_leaky_path(model)


def test_of_several_with_gradients_the_one_that_an_optimizer_trains():
    """A momentum encoder is in none; a frozen one may be in all."""
    model = pair()
    optimizer = torch.optim.SGD(model["student"].parameters())
    assert find_leaky_path(model, held=held_parameters(optimizer)) is model["student"]
    other = torch.optim.SGD(model["teacher"].layers[1].parameters())
    assert find_leaky_path(model, held=held_parameters(other)) is model["teacher"]
    with pytest.raises(ValueError, match="`path` must say which"):
        find_leaky_path(model, held=held_parameters(optimizer, other))
    model["teacher"].requires_grad_(False)
    assert find_leaky_path(model, held=held_parameters(torch.optim.SGD(model.parameters()))) is model["student"]


def test_of_optimizers_that_hold_copies_nothing_is_concluded():
    model = pair()
    model["teacher"].requires_grad_(False)
    masters = torch.optim.SGD([parameter.detach().clone() for parameter in model.parameters()])
    assert find_leaky_path(model, held=held_parameters(masters)) is model["student"]


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.body = nn.Linear(2, 2), network()


@pytest.mark.parametrize("choice", ["student", "student.body", "stu*", "*.body", "stud*.b*"])
def test_a_name_or_glob_says_which(choice):
    model = pair(student=Around())
    assert find_leaky_path(model, choice) is model["student"].body
    assert find_leaky_path(torch.compile(model), choice) is model["student"].body


def test_a_module_says_which():
    model = pair(student=Around())
    for choice in (model["student"], model["student"].body):
        assert find_leaky_path(model, choice) is model["student"].body
    with pytest.raises(ValueError, match=r"`path` must name .*got 'LeakyResNet'"):
        find_leaky_path(model, network())


def test_an_outer_path_is_taken_before_one_inside_it():
    class Nested(LeakyResNet):
        pass

    model = Nested(2, 2, width=4, num_layers=3, effective_depth=1.0)
    model.teacher = network()
    assert find_leaky_path(model, "") is model
    assert find_leaky_path(model, "teacher") is model.teacher
    assert find_leaky_path(nn.Sequential(model), "0") is model


def test_a_glob_that_several_match_leaves_those_that_are_trained():
    model = pair()
    model["teacher"].requires_grad_(False)
    assert find_leaky_path(model, "*") is model["student"]


def test_blocks_made_leaky_are_found_by_the_name_of_their_model():
    blocks = nn.ModuleDict({"a": make_leaky(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "*")})
    blocks["b"] = copy.deepcopy(nn.Sequential(network()))
    assert find_leaky_path(blocks, "a") is blocks["a"].leaky_steps


@pytest.mark.parametrize("choice", ["pupil", "student.layers", "student.*.body"])
def test_a_name_of_nothing_is_told_what_there_is(choice):
    with pytest.raises(ValueError, match=rf"`path` must name .*'{re.escape(choice)}'; .*\['student', 'teacher'\]"):
        find_leaky_path(pair(), choice)


@pytest.mark.parametrize(
    "make", [pair, lambda: pair(student=Around(), teacher=make_leaky(nn.Sequential(Around()), "0.head"))]
)
def test_what_the_error_offers_can_be_done(make):
    """The value of `path`, and that of `layers` for what takes those."""
    model = make()
    with pytest.raises(ValueError, match="`path` must say which") as caught:
        find_leaky_path(model)
    path, layers = (re.search(rf"{name}='([^']+)'", str(caught.value))[1] for name in ("path", "layers"))
    chosen = find_leaky_path(model, path)
    assert list(choose_layers(model, layers).values()) == list(chosen.layers)
