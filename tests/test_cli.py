"""The command line: every argument of the public classes can be set from YAML and by flags; runs end where they say."""

import inspect
import json
import sys
from dataclasses import is_dataclass
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from lightning_leaky import (
    DigitsDataModule,
    EnergyMonitor,
    LeakyResNetModule,
    PathFigures,
    ReadingSettings,
    StepSizeAdapter,
    TeacherDataModule,
    cli,
)
from lightning_leaky.models import NetworkSettings
from lightning_leaky.optim import AdaptationSettings

# A value for every argument, none of them its default.
MODULE = {
    "in_features": 4,
    "out_features": 3,
    "width": 5,
    "num_layers": 3,
    "effective_depth": 1.5,
    "weight_decay": 0.2,
    "task": "classification",
    "learning_rate": 0.01,
    "activation": "tanh",
    "constant_column": False,
    "step_sizes": [0.5, 0.25, 0.25],
    "input_map": "fixed",
    "output_map": "fixed",
    "init": "plain",
    "init_noise": 0.1,
}
MONITOR = {
    "layers": "network.layers.*",
    "quantities": ["cost_of_identity", "hamiltonian"],
    "every_n_steps": 3,
    "on_validation": False,
    "gamma": 0.5,
    "gamma_rel": 0.01,
    "rtol": 1e-4,
    "features": "crelu",
    "constant_column": False,
    "weight_decay": 0.3,
    "effective_depth": 2.5,
    "loss_reduction": "sum",
    "layout": {"axes": "nc"},
    "padding_mask": "mask",
    "precision": "high",
    "exact": True,
    "max_rows": 100,
    "state": "representation",
    "halves": True,
    "branches": [],
    "form": "samples",
    "print_layers": True,
    "prefix": "net/",
    "allow_untested": True,
    "pool_loaders": True,
}
ADAPTER = {
    "every_n_steps": 4,
    "damping": 0.5,
    "start_step": 2,
    "stop_step": 9,
    "max_leak": 0.9,
    "optimizer_index": 0,
    "rule": "switches",
    "move_weights": True,
    "scale_gradients": True,
    "layout": {"axes": "nc"},
    "padding_mask": "mask",
    "path": "net*",
    "prefix": "net/",
    "allow_untested": True,
}
TEACHER = {
    "dims": [4, 2, 3],
    "kind": "resnet",
    "num_train": 12,
    "num_val": 5,
    "num_test": 4,
    "hidden": 6,
    "batch_size": 6,
    "seed": 7,
}
DIGITS = {"num_train": 40, "num_val": 20, "batch_size": 20, "seed": 5}
FIGURES = {"every_n_steps": 3, "num_samples": 7}
SETTINGS = {
    LeakyResNetModule: MODULE,
    EnergyMonitor: MONITOR,
    StepSizeAdapter: ADAPTER,
    PathFigures: FIGURES,
    TeacherDataModule: TEACHER,
    DigitsDataModule: DIGITS,
}

# Those whose further arguments are the fields of an object.
OBJECTS = {
    LeakyResNetModule: NetworkSettings,
    EnergyMonitor: ReadingSettings,
    StepSizeAdapter: AdaptationSettings,
}


class Witness(Callback):
    """Keeps the last run's parts, which the command line does not return."""

    trainer = None

    def setup(self, trainer, pl_module, stage):
        Witness.trainer = trainer


@pytest.fixture
def run(monkeypatch):
    """Call the command line as a shell would and return the trainer it has used."""
    monkeypatch.setattr(sys, "argv", ["lightning-leaky"])

    def call(*args) -> object:
        Witness.trainer = None
        cli.main([str(arg) for arg in args])
        return Witness.trainer

    return call


def written(thing) -> dict:
    """What an object was told, by the names of its arguments."""
    settings = getattr(thing, "settings", {})
    told = vars(settings) if is_dataclass(settings) else settings
    return {**(getattr(thing, "hparams", None) or vars(thing)), **told}


def assert_told(thing, settings):
    told = written(thing)
    for name, value in settings.items():
        found = list(told[name]) if isinstance(value, list) else told[name]
        assert vars(found) | value == vars(found) if isinstance(value, dict) else found == value, name


def the_callback(trainer, cls):
    (found,) = (one for one in trainer.callbacks if isinstance(one, cls))
    return found


def quiet(tmp_path: Path) -> dict:
    """A trainer of one epoch that writes into a folder of the test."""
    return {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(tmp_path),
        "limit_val_batches": 1,
    }


def config(tmp_path: Path, module: dict, data: type, data_settings: dict, callbacks: dict) -> Path:
    """Write a configuration and return its path."""

    def part(cls, settings):
        return {"class_path": f"lightning_leaky.{cls.__name__}", "init_args": settings}

    listed = [part(cls, settings) for cls, settings in callbacks.items()]
    tree = {
        "seed_everything": 1,
        "model": part(LeakyResNetModule, module),
        "data": part(data, data_settings),
        "trainer": quiet(tmp_path) | {"callbacks": [*listed, {"class_path": "tests.test_cli.Witness"}]},
    }
    path = tmp_path / "run.yaml"  # the command line itself writes config.yaml
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.parametrize("cls", SETTINGS, ids=lambda cls: cls.__name__)
def test_these_settings_are_all_there_are(cls):
    handed_on = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    own = {name: one for name, one in inspect.signature(cls).parameters.items() if one.kind not in handed_on}
    parameters = {**(inspect.signature(OBJECTS[cls]).parameters if cls in OBJECTS else {}), **own}
    assert set(parameters) == set(SETTINGS[cls])
    defaults = {name for name, value in SETTINGS[cls].items() if parameters[name].default == value}
    assert defaults <= {"optimizer_index"}


def test_everything_can_be_set_from_yaml(run, tmp_path):
    regression = MODULE | {"task": "regression"}
    callbacks = {EnergyMonitor: MONITOR, StepSizeAdapter: ADAPTER, PathFigures: FIGURES}
    trainer = run("fit", "--config", config(tmp_path, regression, TeacherDataModule, TEACHER, callbacks))
    assert trainer.global_step == 2
    assert_told(trainer.lightning_module, regression)
    assert_told(trainer.datamodule, TEACHER)
    assert_told(the_callback(trainer, EnergyMonitor), MONITOR)
    assert_told(the_callback(trainer, StepSizeAdapter), ADAPTER)
    assert_told(the_callback(trainer, PathFigures), FIGURES)


def is_layer(name, module):
    """A predicate that YAML names by its import path."""
    return name.startswith("network.layers.") and name.count(".") == 2


def every_second(batch):
    """A mask that YAML names by its import path."""
    return torch.arange(len(batch[0])) % 2


@pytest.mark.parametrize(
    "layers",
    [
        "network.layers.*",
        r"re:network\.layers\.\d",
        "lightning_leaky.models.LeakyLayer",
        "tests.test_cli.is_layer",
        None,
    ],
)
def test_the_configuration_that_a_run_saves_runs_again(run, tmp_path, layers):
    """Whatever kind of choice the layers are."""
    monitor = {EnergyMonitor: {"layers": layers, "padding_mask": "tests.test_cli.every_second"}}
    path = config(tmp_path, MODULE | {"task": "regression"}, TeacherDataModule, TEACHER, monitor)
    readings = []
    for _ in range(2):
        trainer = run("fit", "--config", path)
        readings.append(the_callback(trainer, EnergyMonitor).readings["validate"])
        assert readings[-1].names == ("network.layers.0", "network.layers.1", "network.layers.2")
        path = tmp_path / "config.yaml"
        assert "Unable" not in path.read_text()
    torch.testing.assert_close(readings[0].quantities, readings[1].quantities, rtol=0, atol=0)
    plain = {EnergyMonitor: {"layers": layers}}
    unmasked = run(
        "fit", "--config", config(tmp_path, MODULE | {"task": "regression"}, TeacherDataModule, TEACHER, plain)
    )
    assert not torch.equal(
        the_callback(unmasked, EnergyMonitor).readings["validate"]["cost_of_identity"], readings[0]["cost_of_identity"]
    )


def test_digits_can_be_set_from_yaml(run, tmp_path):
    module = MODULE | {"in_features": 784, "out_features": 10}
    trainer = run("fit", "--config", config(tmp_path, module, DigitsDataModule, DIGITS, {}))
    assert_told(trainer.lightning_module, module)
    assert_told(trainer.datamodule, DIGITS)
    assert "val/accuracy" in trainer.callback_metrics


def test_everything_can_be_set_by_flags(run, tmp_path):
    regression = MODULE | {"task": "regression"}

    def flags(prefix, settings):
        values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()}
        return [f"--{prefix}.{name}={value}" for name, value in values.items()]

    trainer = run(
        "fit",
        *flags("trainer", quiet(tmp_path)),
        "--model=LeakyResNetModule",
        *flags("model", regression),
        "--data=TeacherDataModule",
        *flags("data", TEACHER),
        "--trainer.callbacks+=EnergyMonitor",
        *flags("trainer.callbacks", MONITOR),
        "--trainer.callbacks+=StepSizeAdapter",
        *flags("trainer.callbacks", ADAPTER),
        "--trainer.callbacks+=tests.test_cli.Witness",
    )
    assert_told(trainer.lightning_module, regression)
    assert_told(trainer.datamodule, TEACHER)
    assert_told(the_callback(trainer, EnergyMonitor), MONITOR)
    assert_told(the_callback(trainer, StepSizeAdapter), ADAPTER)


def test_a_checkpoint_is_validated_tested_and_predicted(run, tmp_path):
    """The network of the checkpoint runs, not the fresh one of the configuration."""
    callbacks = {EnergyMonitor: {}, StepSizeAdapter: {"every_n_steps": 1, "damping": 1.0}}
    path = config(tmp_path, MODULE | {"task": "regression"}, TeacherDataModule, TEACHER, callbacks)
    fitted = run("fit", "--config", path)
    checkpoint = tmp_path / "last.ckpt"
    fitted.save_checkpoint(checkpoint)
    network, data = fitted.lightning_module.network, fitted.datamodule
    for command, split, key in (("validate", "val", "val/cost"), ("test", "test", "test/cost")):
        trainer = run(command, "--config", path, "--ckpt_path", checkpoint)
        inputs, targets = data.splits[split].tensors
        cost = fitted.lightning_module.cost(network(inputs), targets)
        assert float(trainer.callback_metrics[key]) == pytest.approx(float(cost.detach()), rel=1e-5)
        assert torch.equal(trainer.lightning_module.network.step_sizes, network.step_sizes)
    assert run("predict", "--config", path, "--ckpt_path", checkpoint).state.finished


def test_wrong_arguments_end_with_a_message(run, tmp_path, capsys):
    path = config(tmp_path, MODULE | {"widht": 3}, TeacherDataModule, TEACHER, {})
    with pytest.raises(SystemExit):
        run("fit", "--config", path)
    assert "widht" in capsys.readouterr().err


def test_help_names_every_command(monkeypatch, capsys, recwarn):
    monkeypatch.setattr("sys.argv", ["lightning-leaky", "--help"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().out
    assert not ended.value.code
    assert all(command in said for command in ("fit", "validate", "test", "predict", "report", "compare"))
    assert not [warning for warning in recwarn if "args" in str(warning.message)]
