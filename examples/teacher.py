"""Reproduce the bottleneck of the paper's teacher task: L̃ = 7, 20 layers, a task of rank 3.

    python examples/teacher.py                  (two to three minutes on one idle core)
    python examples/teacher.py --scheme adaptive

Prints one line per layer, measured over the training set, and the bottleneck-rank estimate -2H/L̃.
"""

from argparse import ArgumentParser, Namespace
from dataclasses import replace

import lightning as L
import torch

from lightning_leaky import EnergyMonitor, LeakyResNetModule, StepSizeAdapter, TeacherDataModule, measure_path
from lightning_leaky.functional import bottleneck_rank

COLUMNS = (
    "cost_of_identity",
    "kinetic_energy",
    "potential_energy",
    "stable_rank",
    "hamiltonian",
    "rank_estimate",
    "criticality_residual",
)


def main(args: Namespace) -> None:
    """Train, measure, print."""
    L.seed_everything(args.seed)
    module = LeakyResNetModule(
        in_features=30, out_features=30, width=100, num_layers=20, effective_depth=7.0, weight_decay=0.3
    )
    adapter = StepSizeAdapter(stop_step=max(1, int(0.7 * args.max_epochs)))
    trainer = L.Trainer(
        max_epochs=args.max_epochs,
        callbacks=[EnergyMonitor(), *([adapter] if args.scheme == "adaptive" else [])],
        logger=False,
        enable_checkpointing=False,
        accelerator="cpu",
        check_val_every_n_epoch=max(1, args.max_epochs // 10),
    )
    data = TeacherDataModule(dims=(30, 3, 30), seed=args.seed)
    trainer.fit(module, datamodule=data)

    readings = measure_path(module, data.train_dataloader(), cost=module.cost, weight_decay=module.weight_decay)
    estimates = bottleneck_rank(readings["hamiltonian"], readings.effective_depth)
    readings = replace(readings, quantities=readings.quantities | {"rank_estimate": estimates})
    print(readings.table(COLUMNS))
    costs = readings["cost_of_identity"]
    bulk = costs <= 1.1 * costs.min()
    layers = (torch.nonzero(bulk)[:, 0] + 1).tolist()
    print(f"\nBulk (cost of identity within 10 % of its minimum): layers {layers}")
    print(f"-2H/L~ there: {estimates[bulk].min():.2f} to {estimates[bulk].max():.2f}; rank of the task: {data.rank}")
    print(f"Validation error (mean square, variance 1): {trainer.callback_metrics['val/mse']:.4f}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-epochs", type=int, default=4000)
    parser.add_argument("--scheme", choices=("equidistant", "adaptive"), default="equidistant")
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args())
