"""Four runs to learn the charts from: a healthy one, a collapsed one, an over-regularised one, and idle layers.

    python examples/gallery.py          (three minutes on two cores)
    tensorboard --logdir runs/gallery

The healthy one is trained four times as long as the others, until its Hamiltonian can be trusted. Each leaves
TensorBoard logs, and what its readings mean is printed. With ``--pictures FOLDER`` the last figures of each run are
saved side by side, as the documentation shows them.
"""

import io
from argparse import ArgumentParser, Namespace
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib import image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from lightning_leaky import (
    EnergyMonitor,
    LeakyResNetModule,
    PathFigures,
    StepSizeAdapter,
    TeacherDataModule,
    diagnose,
)

RUNS = ("healthy", "collapsed", "over_regularised", "idle_layers")
SHOWN = ("layers/energies", "layers/singular_values_of_A", "layers/cost_of_identity")


class Block(nn.Module):
    """A residual block that adds ``W₂ relu(W₁ h)`` and begins as the identity: W₂ = 0, as is usual in deep nets."""

    def __init__(self, width: int) -> None:
        super().__init__()
        last = nn.Linear(width, width, bias=False)
        nn.init.zeros_(last.weight)
        self.branch = nn.Sequential(nn.Linear(width, width), nn.ReLU(), last)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the next representation."""
        following: Tensor = hidden + self.branch(hidden)
        return following


class ResidualNet(L.LightningModule):
    """A plain residual net of twelve blocks, none of them ours; blocks 5 to 8 were forgotten in the optimizer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Linear(30, width), *(Block(width) for _ in range(12)))
        self.head = nn.Linear(width, 30)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs."""
        outputs: Tensor = self.head(self.blocks(inputs))
        return outputs

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the mean squared error."""
        inputs, targets = batch
        loss: Tensor = (self(inputs) - targets).square().sum(-1).mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, for most of the parameters."""
        parts = nn.ModuleList([*list(self.blocks)[:5], *list(self.blocks)[9:], self.head])
        return torch.optim.AdamW(parts.parameters(), lr=2e-3)


def module_of(name: str, width: int) -> L.LightningModule:
    """The module of a run."""
    if name == "idle_layers":
        return ResidualNet(width)
    return LeakyResNetModule(
        in_features=30,
        out_features=30,
        width=width,
        num_layers=12,
        effective_depth=7.0,
        weight_decay=2.0 if name == "over_regularised" else 0.3,
        # Small random weights: the signal decays like exp(−L̃), and no gradient brings it back.
        init="plain" if name == "collapsed" else "identity",
    )


def train(name: str, args: Namespace) -> EventAccumulator:
    """Train, print what the readings mean, and return what was logged."""
    L.seed_everything(args.seed, verbose=False)
    module, logger = module_of(name, args.width), TensorBoardLogger(args.root, name=name)
    monitor = EnergyMonitor("blocks.*" if name == "idle_layers" else None, every_n_steps=10)
    adapters = [] if name == "idle_layers" else [StepSizeAdapter()]
    max_epochs = args.max_epochs * (4 if name == "healthy" else 1)
    trainer = L.Trainer(
        max_epochs=max_epochs,
        callbacks=[monitor, *adapters, PathFigures(every_n_steps=max(1, max_epochs // 4))],
        logger=logger,
        accelerator="cpu",
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    trainer.fit(module, datamodule=TeacherDataModule(dims=(30, 3, 30), seed=args.seed))
    print(f"\n{name}", *diagnose(monitor.readings["train"])[0].sentences, "", sep="\n")
    return EventAccumulator(logger.log_dir, size_guidance={"images": 0}).Reload()


def save_picture(events: EventAccumulator, file: Path) -> None:
    """Save the last of the shown figures side by side."""
    pictures = [image.imread(io.BytesIO(events.Images(key)[-1].encoded_image_string)) for key in SHOWN]
    file.parent.mkdir(parents=True, exist_ok=True)
    image.imsave(file, torch.cat([torch.from_numpy(picture) for picture in pictures], dim=1).numpy())


def main(args: Namespace) -> None:
    """Train the four."""
    for name in RUNS:
        events = train(name, args)
        if args.pictures is not None:
            save_picture(events, args.pictures / f"{name}.png")
    print(f"To see them:  tensorboard --logdir {args.root}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-epochs", type=int, default=1500)
    parser.add_argument("--width", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", type=Path, default=Path("runs/gallery"))
    parser.add_argument("--pictures", type=Path)
    main(parser.parse_args())
