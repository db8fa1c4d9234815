"""Wrong calls, each with the error that mypy must find: a package that is not typed would let them all pass."""

import torch

from lightning_leaky import EnergyMonitor, LeakyResNetModule, StepSizeAdapter, cost_of_identity, measure_path

LeakyResNetModule(in_features="30", out_features=30)  # wrong: arg-type
LeakyResNetModule(30, 30, task="clustering")  # wrong: arg-type
EnergyMonitor(every_n_step=5)  # wrong: call-arg
StepSizeAdapter(damping="half")  # wrong: arg-type
label: str = cost_of_identity(torch.eye(3))  # wrong: assignment
energy = EnergyMonitor().readings["train"].energy  # wrong: attr-defined
measure_path(torch.eye(3), [])  # wrong: arg-type
