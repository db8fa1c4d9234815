"""Lightning callbacks; the mathematics is elsewhere."""

from lightning_leaky.callbacks.ablation_monitor import AblationMonitor
from lightning_leaky.callbacks.energy_monitor import EnergyMonitor
from lightning_leaky.callbacks.layer_alert import LayerAlert
from lightning_leaky.callbacks.path_figures import PathFigures
from lightning_leaky.callbacks.reading_guide import ReadingGuide
from lightning_leaky.callbacks.step_size_adapter import StepSizeAdapter
from lightning_leaky.callbacks.strategies import StrategySupport

__all__ = [
    "AblationMonitor",
    "EnergyMonitor",
    "LayerAlert",
    "PathFigures",
    "ReadingGuide",
    "StepSizeAdapter",
    "StrategySupport",
]
