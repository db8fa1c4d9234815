"""A transformer made leaky, with equidistant and with adaptive step-sizes.

    python examples/leaky_transformer.py --effective-depth 1

A small pre-norm transformer reads each digit as the sequence of its 28 rows. One call, ``make_leaky``, turns its blocks
into leaky steps ``h ← (1 − ρ_l L̃) h + ρ_l L f_l(h)``. It is trained twice from one seed: with equidistant steps, and
with a `StepSizeAdapter`. One seed is no evidence that either is better.
"""

from argparse import ArgumentParser, Namespace

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_leaky import DigitsDataModule, EnergyMonitor, StepSizeAdapter, make_leaky


class LeakyTransformer(L.LightningModule):
    """Classifies 28 × 28 grey values: a linear map of each row, learned positions, blocks, and the mean over the rows.

    Args:
        width: w, of the tokens.
        num_layers: L.
        effective_depth: L̃ ≥ 0; at 0 the transformer is a plain one until the step-sizes move.
        learning_rate: Adam's.
    """

    def __init__(
        self, width: int = 64, num_layers: int = 6, effective_depth: float = 1.0, learning_rate: float = 1e-3
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        block = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.rows = nn.Linear(28, width)
        self.positions = nn.Parameter(torch.randn(28, width))
        self.encoder = nn.TransformerEncoder(block, num_layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.classes = nn.Linear(width, 10)
        make_leaky(self, "encoder.layers.*", effective_depth)
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores of the classes, shape (N, 10)."""
        tokens = self.rows(images.reshape(-1, 28, 28)) + self.positions
        scores: Tensor = self.classes(self.encoder(tokens).mean(1))
        return scores

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        images, classes = batch
        loss = nn.functional.cross_entropy(self(images), classes)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the accuracy."""
        images, classes = batch
        self.accuracy(self(images), classes)
        self.log("val/accuracy", self.accuracy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


def train(name: str, callbacks: list[L.Callback], args: Namespace) -> str:
    """Train one transformer and return its line of the table."""
    L.seed_everything(args.seed)
    module = LeakyTransformer(args.width, args.num_layers, args.effective_depth)
    trainer = L.Trainer(
        max_epochs=args.max_epochs,
        callbacks=callbacks,
        logger=TensorBoardLogger(args.root, name=name),
        accelerator="cpu",
        log_every_n_steps=10,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=DigitsDataModule(args.num_train, seed=args.seed))
    accuracy = float(trainer.callback_metrics["val/accuracy"])
    step_sizes = " ".join(f"{rho:.3f}" for rho in module.get_buffer("leaky_steps.step_sizes").tolist())
    return f"{name:<12}  {accuracy:>8.3f}  {step_sizes}"


def main(args: Namespace) -> None:
    """Train both and print the table."""
    lines = [
        train("equidistant", [EnergyMonitor()], args),
        train("adaptive", [EnergyMonitor(), StepSizeAdapter()], args),
    ]
    print(f"\nEffective depth {args.effective_depth:g}, {args.max_epochs} epochs, validation digits, one seed:\n")
    print("\n".join([f"{'step-sizes':<12}  accuracy  at the end", *lines]))
    print(f"\nTo see both runs, layer by layer:  tensorboard --logdir {args.root}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-epochs", type=int, default=8)
    parser.add_argument("--num-train", type=int, default=3000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--num-layers", type=int, default=6)
    parser.add_argument("--effective-depth", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", default="runs/leaky_transformer")
    main(parser.parse_args())
