"""Leaky ResNets for PyTorch Lightning: the model, its energies layer by layer, and adaptive layer step-sizes."""

from lightning_leaky.callbacks import EnergyMonitor, LayerRefiner, PathFigures, StepSizeAdapter
from lightning_leaky.data import DigitsDataModule, TeacherDataModule
from lightning_leaky.functional import (
    KNorm,
    adaptive_step_sizes,
    cost_of_identity,
    equidistant_step_sizes,
    hamiltonian,
    irregular_step_sizes,
    kinetic_energy,
    potential_energy,
    stable_rank,
)
from lightning_leaky.layout import Layout
from lightning_leaky.measure import measure_path
from lightning_leaky.metrics import Readings
from lightning_leaky.models import LeakyResidual, LeakyResNet, make_leaky, unmake_leaky
from lightning_leaky.module import LeakyResNetModule
from lightning_leaky.optim import StepSizeHook

__version__ = "0.1.0"

__all__ = [
    "DigitsDataModule",
    "EnergyMonitor",
    "KNorm",
    "LayerRefiner",
    "Layout",
    "LeakyResNet",
    "LeakyResNetModule",
    "LeakyResidual",
    "PathFigures",
    "Readings",
    "StepSizeAdapter",
    "StepSizeHook",
    "TeacherDataModule",
    "adaptive_step_sizes",
    "cost_of_identity",
    "equidistant_step_sizes",
    "hamiltonian",
    "irregular_step_sizes",
    "kinetic_energy",
    "make_leaky",
    "measure_path",
    "potential_energy",
    "stable_rank",
    "unmake_leaky",
]
