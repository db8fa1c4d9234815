"""One fit with both callbacks, in one process or, run as a script, in two: `python -m tests.distributed.fit FOLDER`."""

import sys
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from lightning_leaky import EnergyMonitor, LeakyResNetModule, StepSizeAdapter, TeacherDataModule


def fit(folder: Path, **parallel) -> dict:
    """Train on full batches and return what each process ends with."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    module = LeakyResNetModule(3, 2, width=6, num_layers=4, effective_depth=2.0, weight_decay=0.1)
    monitor = EnergyMonitor()
    trainer = Trainer(
        accelerator="cpu",
        precision="64-true",
        max_epochs=6,
        logger=CSVLogger(folder),
        callbacks=[monitor, StepSizeAdapter(every_n_steps=2, damping=0.5)],
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **parallel,
    )
    data = TeacherDataModule(dims=(3, 1, 2), num_train=24, num_val=10, num_test=2, hidden=5)
    trainer.fit(module, datamodule=data)
    readings = {stage: found.quantities for stage, found in monitor.readings.items()}
    return {"rank": trainer.global_rank, "step_sizes": module.network.step_sizes, "readings": readings}


if __name__ == "__main__":
    root = Path(sys.argv[1])
    found = fit(root, strategy="ddp", devices=2)
    torch.save(found, root / f"rank_{found['rank']}.pt")
