"""Subclass the module: a plain fully-connected net as a baseline, and a cost of one's own.

    python examples/subclass.py --learning-rate 0.003

Trains, on the digits of ``examples/digits.py``, a fully-connected ReLU net of the same width, depth and weight decay:
only the network is replaced, while loss, metrics, optimizer and data stay. Then a Leaky ResNet whose cost smooths the
labels: only one method is replaced.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable

import lightning as L
import torch
from torch import Tensor, nn

from lightning_leaky import DigitsDataModule, LeakyResNetModule, StepSizeAdapter


class FullyConnected(nn.Sequential):
    """ReLU net with L hidden matrices between two linear maps, and the L2 term that L̃ → ∞ leaves of the leaky one."""

    def __init__(self, in_features: int, out_features: int, width: int, num_layers: int) -> None:
        hidden = [module for _ in range(num_layers) for module in (nn.ReLU(), nn.Linear(width, width))]
        super().__init__(nn.Linear(in_features, width, bias=False), *hidden, nn.Linear(width, out_features, bias=False))
        for module in self:
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def regularizer(self) -> Tensor:
        """Half the squared norm of all parameters."""
        return 0.5 * torch.stack([parameter.square().sum() for parameter in self.parameters()]).sum()


class FullyConnectedModule(LeakyResNetModule):
    """The module with another network in it."""

    def configure_network(self) -> FullyConnected:
        """Return the fully-connected net of the same sizes."""
        return FullyConnected(
            **{name: self.network_arguments[name] for name in ("in_features", "out_features", "width", "num_layers")}
        )


class SmoothedModule(LeakyResNetModule):
    """The module with another cost; the monitor's momenta follow it by themselves."""

    def cost(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy with smoothed labels."""
        return nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1)


def validation_accuracy(make: Callable[[], LeakyResNetModule], args: Namespace, callbacks: list[L.Callback]) -> float:
    """Train a module and return its accuracy on the validation digits."""
    L.seed_everything(args.seed)
    trainer = L.Trainer(
        max_epochs=args.max_epochs,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        accelerator="cpu",
        check_val_every_n_epoch=args.max_epochs,
    )
    trainer.fit(make(), datamodule=DigitsDataModule(batch_size=500))
    return float(trainer.callback_metrics["val/accuracy"])


def main(args: Namespace) -> None:
    """Train both and print their accuracies."""
    settings = {
        "in_features": 784,
        "out_features": 10,
        "width": args.width,
        "num_layers": args.num_layers,
        "weight_decay": args.weight_decay,
        "task": "classification",
    }
    plain = validation_accuracy(
        lambda: FullyConnectedModule(**settings, learning_rate=args.learning_rate), args, callbacks=[]
    )
    smoothed = validation_accuracy(lambda: SmoothedModule(**settings), args, callbacks=[StepSizeAdapter()])
    print(f"Validation accuracy, fully-connected: {plain:.3f}")
    print(f"Validation accuracy, Leaky ResNet with smoothed labels: {smoothed:.3f}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-epochs", type=int, default=400)
    parser.add_argument("--width", type=int, default=100)
    parser.add_argument("--num-layers", type=int, default=20)
    parser.add_argument("--weight-decay", type=float, default=0.003)
    parser.add_argument("--learning-rate", type=float, default=0.003, help="of the fully-connected net")
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args())
