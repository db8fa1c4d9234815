"""Leaky ResNets for PyTorch Lightning: the model, its energies layer by layer, and adaptive layer step-sizes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_leaky.callbacks import (
    AblationMonitor,
    EnergyMonitor,
    LayerAlert,
    PathFigures,
    ReadingGuide,
    StepSizeAdapter,
    StrategySupport,
)
from lightning_leaky.data import DigitsDataModule, TeacherDataModule
from lightning_leaky.explain.console import print_layers
from lightning_leaky.explain.diagnosis import Diagnosis, diagnose
from lightning_leaky.functional import (
    KNorm,
    StepSizeRule,
    adaptive_step_sizes,
    cost_of_identity,
    equidistant_step_sizes,
    hamiltonian,
    irregular_step_sizes,
    kinetic_energy,
    potential_energy,
    stable_rank,
)
from lightning_leaky.metrics import Quantity, Readings, Summary
from lightning_leaky.models import LeakyResidual, LeakyResNet, make_leaky, unmake_leaky
from lightning_leaky.module import LeakyResNetModule
from lightning_leaky.optim import StepSizeHook
from lightning_leaky.paths.leaky_path import LeakyPath, find_leaky_path
from lightning_leaky.reading.ablate import Ablation, ablate_path
from lightning_leaky.reading.layout import Layout
from lightning_leaky.reading.measure import measure_path, sample_path
from lightning_leaky.reading.path_monitor import PathMonitor
from lightning_leaky.reading.sample import PathSample
from lightning_leaky.reading.settings import ReadingSettings
from lightning_leaky.utilities.data_parallel import DataParallelRank

if TYPE_CHECKING:
    from lightning_leaky.callbacks.layer_refiner import LayerRefiner
    from lightning_leaky.dropping import drop_layers
    from lightning_leaky.refining import RefinementHook, discretisation_errors, refined_step_sizes

__version__ = "0.1.0"

__all__ = [
    "Ablation",
    "AblationMonitor",
    "DataParallelRank",
    "Diagnosis",
    "DigitsDataModule",
    "EnergyMonitor",
    "KNorm",
    "LayerAlert",
    "LayerRefiner",
    "Layout",
    "LeakyPath",
    "LeakyResNet",
    "LeakyResNetModule",
    "LeakyResidual",
    "PathFigures",
    "PathMonitor",
    "PathSample",
    "Quantity",
    "ReadingGuide",
    "ReadingSettings",
    "Readings",
    "RefinementHook",
    "StepSizeAdapter",
    "StepSizeHook",
    "StepSizeRule",
    "StrategySupport",
    "Summary",
    "TeacherDataModule",
    "ablate_path",
    "adaptive_step_sizes",
    "cost_of_identity",
    "diagnose",
    "discretisation_errors",
    "drop_layers",
    "equidistant_step_sizes",
    "find_leaky_path",
    "hamiltonian",
    "irregular_step_sizes",
    "kinetic_energy",
    "make_leaky",
    "measure_path",
    "potential_energy",
    "print_layers",
    "refined_step_sizes",
    "sample_path",
    "stable_rank",
    "unmake_leaky",
]

# Most networks keep their layers: what changes their number is loaded where somebody asks for it.
_LAZY = {
    "LayerRefiner": "lightning_leaky.callbacks.layer_refiner",
    "RefinementHook": "lightning_leaky.refining",
    "discretisation_errors": "lightning_leaky.refining",
    "drop_layers": "lightning_leaky.dropping",
    "refined_step_sizes": "lightning_leaky.refining",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
