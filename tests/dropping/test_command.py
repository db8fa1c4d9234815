"""`lightning-leaky drop`: a smaller checkpoint, and what it bought."""

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_leaky.cli import main
from tests.dropping.test_lightning import Plain


class Data(LightningDataModule):
    def __init__(self, num: int = 12):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.rows = [(torch.randn(6, generator=generator), torch.randn(4, generator=generator)) for _ in range(num)]

    def train_dataloader(self):
        return DataLoader(self.rows, 4)

    def val_dataloader(self):
        return DataLoader(self.rows, 4)


class Validated(Plain):
    def training_step(self, batch, batch_idx):
        return F.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/mse", F.mse_loss(self(batch[0]), batch[1]))


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=1, enable_checkpointing=False, default_root_dir=tmp_path, **quiet)
    trainer.fit(Validated(), Data())
    trainer.save_checkpoint(tmp_path / "full.ckpt")
    return tmp_path / "full.ckpt"


def drop(checkpoint, *layers):
    smaller = checkpoint.with_name("smaller.ckpt")
    names = [f"{Validated.__module__}.Validated", f"{Data.__module__}.Data"]
    main(
        [
            "drop",
            str(checkpoint),
            "--model",
            names[0],
            "--data",
            names[1],
            "--output",
            str(smaller),
            "--layers",
            *layers,
        ]
    )
    return smaller


def test_the_smaller_checkpoint_loads_and_the_lines_are_true(checkpoint, capsys):
    whole, smaller = Validated.load_from_checkpoint(checkpoint), drop(checkpoint, "encoder.1", "encoder.3")
    found = Validated.load_from_checkpoint(smaller)
    assert (len(found.encoder), found.hparams.num_layers) == (2, 2)
    batch = torch.stack([inputs for inputs, _ in Data().rows])
    targets = torch.stack([targets for _, targets in Data().rows])
    expected = whole.head(whole.encoder[2](whole.encoder[0](batch)))
    assert torch.equal(found(batch), expected)
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    sizes = [sum(one.numel() for one in module.parameters()) for module in (whole, found)]
    assert f"{sizes[0]:,} → {sizes[1]:,} (−" in lines["parameters"]
    errors = [float(F.mse_loss(module(batch), targets)) for module in (whole, found)]
    assert f"{errors[0]:.4g} → {errors[1]:.4g}" in lines["val/mse"]
    assert lines["Checkpoint:"].endswith("smaller.ckpt")


def test_what_cannot_go_is_one_line(checkpoint):
    with pytest.raises((SystemExit, ValueError), match="`layers` must choose blocks that can be dropped, but 'head'"):
        drop(checkpoint, "head")
    assert not checkpoint.with_name("smaller.ckpt").exists()
