"""Weight decay of optimizers."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_leaky.utilities.optimizer_steps import groups_of, heard_optimizer

_DECAY_BY_GRADIENT = ("SGD", "ASGD", "Adam", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop")


def optimizer_weight_decay(optimizers: Iterable[Optimizer], layers: nn.Module) -> float | None:
    """Return the weight decay > 0 that all matrices of some layers share, if any; frozen ones have 0."""
    decays = {
        id(parameter): float(group.get("weight_decay", 0.0))
        for optimizer in optimizers
        for group, parameters in groups_of(optimizer)
        for parameter in parameters
        if parameter.requires_grad
    }
    # DeepSpeed's stage 3 leaves parameters empty, and tells their shape.
    shapes = ((one, getattr(one, "ds_shape", one.shape)) for one in layers.parameters() if not is_lazy(one))
    matrices = [one for one, shape in shapes if len(shape) > 1]
    found = {decays.get(id(parameter), 0.0) for parameter in matrices}
    return found.pop() or None if len(found) == 1 else None


def gradient_decays(optimizers: Iterable[Optimizer]) -> dict[int, float]:
    """Return the weight decay in gradients by id of the parameter; NaN if decoupled or `step` is not torch's own."""
    found: dict[int, float] = {}
    for optimizer in optimizers:
        step = type(heard_optimizer(optimizer)).step
        is_known = step.__module__.startswith("torch.optim.") and step.__qualname__.split(".")[0] in _DECAY_BY_GRADIENT
        for group, parameters in groups_of(optimizer):
            decay, others = float(group.get("weight_decay", 0.0)), ("decoupled_weight_decay", "maximize")
            decay = decay if not decay or (is_known and not any(map(group.get, others))) else math.nan
            found |= {id(parameter): found.get(id(parameter), 0.0) + decay for parameter in parameters}
    return found
