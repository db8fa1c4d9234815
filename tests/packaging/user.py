"""What somebody writes who has installed the package: run in an empty environment, and type-checked as strictly."""

import math
from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn

from lightning_leaky import (
    EnergyMonitor,
    KNorm,
    LeakyResNet,
    LeakyResNetModule,
    Readings,
    StepSizeAdapter,
    StepSizeHook,
    TeacherDataModule,
    cost_of_identity,
    make_leaky,
    measure_path,
)


class Mine(LeakyResNetModule):
    """Another cost than that of the package."""

    def cost(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Absolute errors, summed over outputs and averaged over samples."""
        return (outputs - targets).abs().sum(1).mean()


def fitted() -> tuple[list[float], EnergyMonitor]:
    """Step-sizes and readings of a small network after a few epochs on a CPU, with the default logger."""
    L.seed_everything(0)
    module = Mine(3, 2, width=6, num_layers=4, effective_depth=2.0, weight_decay=0.1)
    monitor = EnergyMonitor(every_n_steps=1)
    trainer = L.Trainer(
        max_epochs=4,
        accelerator="cpu",
        log_every_n_steps=1,
        callbacks=[monitor, StepSizeAdapter(every_n_steps=1)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=TeacherDataModule(dims=(3, 1, 2), num_train=20, num_val=20, num_test=20))
    if not isinstance(module.network, LeakyResNet):
        raise TypeError("the network can be another one, but is not here")
    return step_sizes_of(module.network), monitor


def adapted() -> list[float]:
    """Step-sizes of a network in plain PyTorch after one step."""
    network = LeakyResNet(3, 2, width=6, num_layers=4, effective_depth=2.0)
    optimizer = torch.optim.Adam(network.parameters())
    StepSizeHook(network, every_n_steps=1).attach(optimizer)
    network(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    return step_sizes_of(network)


def step_sizes_of(network: LeakyResNet) -> list[float]:
    """The step-sizes as numbers."""
    sizes: Tensor = network.step_sizes
    return [float(size) for size in sizes]


def of_a_stack() -> Readings:
    """Readings of somebody's blocks as leaky steps."""
    model = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(3)))
    leaky: nn.Sequential = make_leaky(model, "*", effective_depth=1.0)
    return measure_path(leaky, [torch.randn(5, 6)])


def checks() -> dict[str, bool]:
    """Whether each feature does what it should."""
    sizes, monitor = fitted()
    train = monitor.readings["train"].quantities
    identity: Tensor = cost_of_identity(torch.eye(3), KNorm(gamma=0.0), features=torch.eye(3))
    return {
        "training readings": "cost_of_identity" in train and bool(train["hamiltonian"].isfinite().all()),
        "validation readings": "validate" in monitor.readings,
        "log": any(Path("lightning_logs").rglob("events.out.*")),
        "step-sizes": len(set(sizes)) > 1 and math.isclose(sum(sizes), 1.0, rel_tol=1e-6),
        "step-sizes in plain PyTorch": len(set(adapted())) > 1,
        "a stack of blocks": len(of_a_stack().names) == 3,
        "a function": math.isclose(float(identity), 3.0, rel_tol=1e-6),
    }


if __name__ == "__main__":
    if wrong := [name for name, is_right in checks().items() if not is_right]:
        raise SystemExit(f"Not as it should be: {', '.join(wrong)}.")
