"""Quantities as records, and their readers: exact over batches and processes, on torchmetrics."""

from lightning_leaky.metrics.base import SampleMean
from lightning_leaky.metrics.path_reader import PathReader
from lightning_leaky.metrics.quantity import Quantity, Summary, Sums
from lightning_leaky.metrics.readings import Readings
from lightning_leaky.metrics.recipe import Recipe
from lightning_leaky.metrics.records import QUANTITIES
from lightning_leaky.metrics.single import CostOfIdentity, Hamiltonian, KineticEnergy, StableRank

__all__ = [
    "QUANTITIES",
    "CostOfIdentity",
    "Hamiltonian",
    "KineticEnergy",
    "PathReader",
    "Quantity",
    "Readings",
    "Recipe",
    "SampleMean",
    "StableRank",
    "Summary",
    "Sums",
]
