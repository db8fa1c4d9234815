"""Networks and rules are known by what they offer, also where `nn.Module.__getattr__` is what offers it."""

import pytest
from torch import nn

from lightning_leaky import LeakyResNet
from lightning_leaky.functional import resolve_rule
from lightning_leaky.paths.leaky_path import find_leaky_path
from lightning_leaky.refining.network import find_refinable_path


class Registered(nn.Module):
    """Keeps nothing in its class: attributes are submodules, buffers, and those of another module."""

    def __init__(self, network):
        super().__init__()
        self.layers = network.layers
        self.register_buffer("step_sizes", network.step_sizes)
        self.effective_depth = network.effective_depth
        self.__dict__["others"] = {"remesh": network.remesh}

    def __getattr__(self, name):
        others = self.__dict__.get("others", {})
        return others[name] if name in others else super().__getattr__(name)


class RegisteredRule(nn.Module):
    """A rule whose two methods are submodules."""

    def __init__(self):
        super().__init__()
        self.sums = nn.Identity()
        self.distances = nn.Identity()


@pytest.fixture
def registered(make_network):
    return Registered(make_network())


def test_a_path_of_registered_attributes_is_found(registered):
    assert find_leaky_path(nn.Sequential(registered)) is registered


@pytest.mark.parametrize("name", ["layers", "step_sizes", "effective_depth"])
def test_a_path_without_one_of_them_is_not(registered, name):
    delattr(registered, name)
    with pytest.raises(ValueError, match="must contain a module with step-sizes"):
        find_leaky_path(registered)


def test_a_refinable_path_of_registered_attributes_is_found(registered):
    assert find_refinable_path(nn.Sequential(registered)) is registered


def test_a_path_without_remesh_is_not_refinable(registered):
    registered.__dict__["others"].clear()
    with pytest.raises(ValueError, match="without `remesh`"):
        find_refinable_path(registered)


def test_a_rule_of_registered_attributes_is_a_rule():
    rule = RegisteredRule()
    assert resolve_rule(rule) is rule


@pytest.mark.parametrize("name", ["sums", "distances"])
def test_a_rule_without_one_of_them_is_none(name):
    rule = RegisteredRule()
    delattr(rule, name)
    with pytest.raises(ValueError, match="an object with `sums` and `distances`"):
        resolve_rule(rule)


def test_the_network_of_the_package_is_found():
    network = LeakyResNet(2, 2, width=3, num_layers=2, effective_depth=1.0)
    assert find_refinable_path(network) is network
