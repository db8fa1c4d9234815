"""Shared by all tests: small models, small data, a quiet trainer; every test starts from the same random state."""

import logging
from collections.abc import Callable

import hypothesis
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_leaky import LeakyResNet, LeakyResNetModule, TeacherDataModule

# `make test-all` draws a hundred examples of each property: --hypothesis-profile=thorough.
for _name, _max_examples in {"quick": 20, "thorough": 100}.items():
    hypothesis.settings.register_profile(
        _name, max_examples=_max_examples, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
hypothesis.settings.load_profile("quick")


@pytest.fixture(scope="session", autouse=True)
def _one_quiet_thread():
    """Small tensors gain nothing from threads, and Lightning's banner says nothing about a test."""
    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def make_network() -> Callable[..., LeakyResNet]:
    """A network of four layers of width 6 between 3 inputs and 2 outputs, unless told otherwise."""

    def make(seed: int = 0, **changes) -> LeakyResNet:
        torch.manual_seed(seed)
        sizes = {"in_features": 3, "out_features": 2, "width": 6, "num_layers": 4, "effective_depth": 2.0}
        return LeakyResNet(**(sizes | changes))

    return make


@pytest.fixture
def make_module() -> Callable[..., LeakyResNetModule]:
    """The Lightning module of such a network, with λ = 0.1."""

    def make(cls: type[LeakyResNetModule] = LeakyResNetModule, seed: int = 0, **changes) -> LeakyResNetModule:
        torch.manual_seed(seed)
        sizes = {"in_features": 3, "out_features": 2, "width": 6, "num_layers": 4, "effective_depth": 2.0}
        return cls(**(sizes | {"weight_decay": 0.1} | changes))

    return make


@pytest.fixture
def make_data() -> Callable[..., TeacherDataModule]:
    """Inputs of 3 and targets of 2 dimensions: 24 points to train on, 10 to validate, 7 to test."""

    def make(**changes) -> TeacherDataModule:
        sizes = {"dims": (3, 1, 2), "num_train": 24, "num_val": 10, "num_test": 7, "hidden": 5}
        return TeacherDataModule(**(sizes | changes))

    return make


@pytest.fixture
def make_trainer(tmp_path) -> Callable[..., Trainer]:
    """A CPU trainer of two epochs that writes nothing unless told otherwise, and logs every optimizer step."""

    def make(*callbacks, **changes) -> Trainer:
        settings = {
            "max_epochs": 2,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "default_root_dir": tmp_path,
        }
        return Trainer(callbacks=list(callbacks), **(settings | changes))

    return make


@pytest.fixture
def hooks_of() -> Callable[[nn.Module], int]:
    """How many forward and backward hooks a module and its descendants carry."""

    def count(model: nn.Module) -> int:
        return sum(
            len(hooks)
            for module in model.modules()
            for hooks in (
                module._forward_hooks,
                module._forward_pre_hooks,
                module._backward_hooks,
                module._backward_pre_hooks,
            )
        )

    return count
