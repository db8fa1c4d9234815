"""A configuration and a checkpoint that were written before the package had rooms still load."""

import csv
from pathlib import Path

import torch

from lightning_leaky import LeakyResNetModule, StepSizeAdapter, cli

DATA = Path(__file__).parent / "data"
CONFIG, CHECKPOINT = DATA / "written_by_flat_package.yaml", DATA / "written_by_flat_package.pt"
READ = {"cost_of_identity", "hamiltonian", "stable_rank", "step_size"}


def run(folder: Path, *arguments: str) -> list[dict[str, str]]:
    """Fit as the configuration says, and return the rows that were logged."""
    where = f"--trainer.logger.init_args.save_dir={folder}"
    cli.main(["fit", "--config", str(CONFIG), where, f"--trainer.default_root_dir={folder}", *arguments])
    (file,) = folder.rglob("metrics.csv")
    with file.open(newline="") as lines:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(lines)]


def test_a_configuration_runs_as_it_did(tmp_path):
    rows = run(tmp_path)
    read = {key.split("/")[0] for row in rows for key in row if "/layer_" in key and not key.startswith("val_")}
    assert read == READ
    assert any("val_stable_rank/layer_03" in row for row in rows)


def test_a_fit_goes_on_from_a_checkpoint(tmp_path):
    """The optimizer, the step-sizes and the callbacks with it: the network has grown to five layers since its start."""
    saved = torch.load(CHECKPOINT, weights_only=True)
    rows = run(tmp_path, f"--ckpt_path={CHECKPOINT}", "--trainer.max_steps=8")
    assert {row["num_layers"] for row in rows if "num_layers" in row} == {"5.0"}
    state = saved["callbacks"]["StepSizeAdapter{'optimizer_index': None}"]
    assert StepSizeAdapter().state_key in saved["callbacks"]
    assert state["num_steps"] == saved["global_step"] == 6
    assert min(int(row["step"]) for row in rows) >= 6


def test_a_module_comes_back_with_its_step_sizes():
    module = LeakyResNetModule.load_from_checkpoint(CHECKPOINT, weights_only=True)
    saved = torch.load(CHECKPOINT, weights_only=True)
    assert torch.equal(module.network.step_sizes, saved["state_dict"]["network.step_sizes"])
    assert len(module.network.layers) == 5
