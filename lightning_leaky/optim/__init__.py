"""Hooks on optimizers."""

from lightning_leaky.optim.step_size_hook import StepSizeHook

__all__ = ["StepSizeHook"]
