"""Every command that README and docs show: run with small sizes, or, where it takes long, held to what there is."""

import json
import re
import runpy
import shlex
import shutil
import tomllib
from argparse import ArgumentParser
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_leaky import EnergyMonitor, TeacherDataModule, cli
from tests.pages import PAGES, ROOT, blocks

MODULE_OF_ONES_OWN = """
import lightning as L
import torch
from lightning_leaky import TeacherDataModule


class Net(L.LightningModule):
    def __init__(self, width: int = 3):
        super().__init__()
        self.save_hyperparameters()
        self.encoder = torch.nn.Module()
        self.encoder.layers = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(3)))

    def forward(self, inputs):
        return self.encoder.layers(inputs)

    def training_step(self, batch):
        return self(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(TeacherDataModule):
    def __init__(self):
        super().__init__(dims=(3, 1, 2), num_train=24, num_val=10, num_test=7, hidden=5)


def real_positions(batch):
    return torch.ones(len(batch[0]))
"""


def commands(pattern: str) -> list[str]:
    """Commands of all pages that match, without their comments, once each and in order."""
    lines = [line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()]
    found = [re.split(r"\s#", line)[0].strip() for line in lines]
    return list(dict.fromkeys(command for command in found if re.fullmatch(pattern, command)))


MAKE, INSTALL, PYTHON, OURS = r"make (\S+)", r"pip install (\S+)", r"(?:\S*/)?python (.+)", r"lightning-leaky (.+)"


def test_no_command_is_of_a_kind_that_is_not_tried():
    assert set(commands(".+")) == {command for kind in (MAKE, INSTALL, PYTHON, OURS) for command in commands(kind)}


@pytest.mark.parametrize("command", commands(MAKE))
def test_make_knows_the_target(command):
    (target,) = re.fullmatch(MAKE, command).groups()
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("command", commands(INSTALL))
def test_the_package_has_the_extra(command):
    """That it installs is tried by `make package`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    folder, extras = re.fullmatch(r'"?([^\["]+)(?:\[(.*)\])?"?', re.fullmatch(INSTALL, command)[1]).groups()
    assert folder == "."
    assert set((extras or "").split(",")) - {""} <= set(project["optional-dependencies"])


class ParsedError(Exception):
    """A script has read its arguments."""


@pytest.mark.parametrize(
    "command",
    # The studies need more than the extra `test`.
    [pytest.param(one, marks=[pytest.mark.slow] * ("examples.paper" in one)) for one in commands(PYTHON)],
)
def test_a_script_takes_the_arguments(command, monkeypatch):
    """That it runs is tried by `make examples` and `make bench-quick`."""

    def parse(parser, given=None, namespace=None):
        options, unknown = parser.parse_known_args(given, namespace)
        assert not unknown
        raise ParsedError(options)

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(ArgumentParser, "parse_args", parse)
    name, *arguments = shlex.split(re.fullmatch(PYTHON, command)[1])
    if name == "-m":
        name, *arguments = arguments
    monkeypatch.setattr("sys.argv", [name, *arguments])
    with pytest.raises(ParsedError):
        (runpy.run_path if name.endswith(".py") else runpy.run_module)(name, run_name="__main__")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where somebody works who has a checkout's examples and a module of their own."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("paper", "__pycache__"))
    (tmp_path / "my_module.py").write_text(MODULE_OF_ONES_OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-leaky"])
    return tmp_path


def call(command: str, *more: str) -> None:
    cli.main([*shlex.split(command)[1:], *more])


@pytest.mark.slow
def test_the_command_line_of_the_first_page(folder, capsys):
    """One command after another, as a reader would."""
    story = [line for block in blocks(ROOT / "docs" / "start.md", "bash") for line in block.splitlines()]
    story = [line for line in story if line.startswith("lightning-leaky")]
    assert [line.split()[1] for line in story] == ["fit", "fit", "test", "report", "compare"]
    digits, teacher, test, report, compare = story
    short = ["--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1", "--trainer.log_every_n_steps", "1"]
    for fit in (digits, teacher):
        call(fit, *short, "--trainer.enable_progress_bar", "false")
    (checkpoint,) = (folder / "runs" / "lightning_logs" / "version_0").rglob("*.ckpt")
    call(test.replace("CHECKPOINT", str(checkpoint)), "--trainer.enable_progress_bar", "false")
    call(report.replace("CHECKPOINT", str(checkpoint)))
    assert "Bottleneck:" in capsys.readouterr().out
    assert (folder / "report" / "index.html").stat().st_size > 10_000
    call(compare)
    assert "cost_of_identity/min" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_line_of_the_page_on_charts(folder, capsys, make_module, make_trainer):
    (block,) = blocks(ROOT / "docs" / "charts.md", "bash")
    own, theirs, compare = block.splitlines()
    from my_module import Data, Net

    for name, module, data in (
        ("own", make_module(in_features=30, out_features=30), TeacherDataModule(dims=(30, 3, 30))),
        ("theirs", Net(), Data()),
    ):
        trainer = make_trainer(EnergyMonitor(), max_epochs=1, logger=TensorBoardLogger("."), limit_val_batches=0)
        trainer.fit(module, datamodule=data)
        trainer.save_checkpoint(f"{name}.ckpt")
    call(theirs.replace("CHECKPOINT", "theirs.ckpt"))
    names = json.loads(Path("report/report.json").read_text())["layers"]["name"]
    assert names == [f"encoder.layers.{index}" for index in range(3)]
    call(own.replace("CHECKPOINT", "own.ckpt"))
    assert "hamiltonian" in json.loads(Path("report/report.json").read_text())["layers"]
    call(compare)
    assert "kinetic" in Path("comparison/index.html").read_text()


def test_the_yaml_of_the_page_on_attaching_is_taken(folder, capsys):
    (text,) = blocks(ROOT / "docs" / "attach.md", "yaml")
    Path("run.yaml").write_text(text)
    with pytest.raises(SystemExit) as ended:
        call("lightning-leaky fit --config run.yaml --model my_module.Net --data my_module.Data --print_config")
    assert not ended.value.code
    (callback,) = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
    assert callback["init_args"]["layout"]["axes"] == "tnc"
