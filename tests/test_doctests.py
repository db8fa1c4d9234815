"""Every example in a docstring runs and prints what it says; every public name has one."""

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch

import lightning_leaky
import lightning_leaky.functional
import lightning_leaky.metrics

MODULES = [module.name for module in pkgutil.walk_packages(lightning_leaky.__path__, "lightning_leaky.")]
FUNCTIONS = {name: getattr(lightning_leaky.functional, name) for name in lightning_leaky.functional.__all__}
PUBLIC = [
    getattr(package, name)
    for package in (lightning_leaky, lightning_leaky.functional, lightning_leaky.metrics)
    for name in package.__all__
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name: str) -> None:
    """The names of `lightning_leaky.functional` and torch are at hand in every example."""
    torch.manual_seed(0)
    results = doctest.testmod(
        importlib.import_module(name), extraglobs={"torch": torch, **FUNCTIONS}, optionflags=doctest.ELLIPSIS
    )
    assert results.failed == 0


@pytest.mark.parametrize("thing", [thing for thing in PUBLIC if inspect.isfunction(thing) or inspect.isclass(thing)])
def test_public_names_have_an_example(thing: type) -> None:
    is_record = issubclass(thing, tuple) if inspect.isclass(thing) else False
    assert is_record or ">>>" in (inspect.getdoc(thing) or "")
