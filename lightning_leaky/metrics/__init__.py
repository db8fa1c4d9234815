"""torchmetrics twins of `lightning_leaky.functional`: the same quantities, exact over batches and processes."""

from lightning_leaky.metrics.energies import (
    CostOfIdentity,
    CrossTerm,
    EnergyHamiltonian,
    KineticEnergy,
    Lagrangian,
    PathEnergies,
    PathLength,
    PotentialEnergy,
)
from lightning_leaky.metrics.mean import SampleMean
from lightning_leaky.metrics.momenta import CriticalityResidual, Hamiltonian, PathMomenta
from lightning_leaky.metrics.path_reader import PathReader, Readings
from lightning_leaky.metrics.spectrum import SingularValues, StableRank

__all__ = [
    "CostOfIdentity",
    "CriticalityResidual",
    "CrossTerm",
    "EnergyHamiltonian",
    "Hamiltonian",
    "KineticEnergy",
    "Lagrangian",
    "PathEnergies",
    "PathLength",
    "PathMomenta",
    "PathReader",
    "PotentialEnergy",
    "Readings",
    "SampleMean",
    "SingularValues",
    "StableRank",
]
