"""Hooks on optimizers."""

from lightning_leaky.optim.settings import AdaptationSettings
from lightning_leaky.optim.step_size_hook import StepSizeHook

__all__ = ["AdaptationSettings", "StepSizeHook"]
