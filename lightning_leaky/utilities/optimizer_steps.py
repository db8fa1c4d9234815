"""Optimizers: steps that are due, taken and skipped, parameters and weight decay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

from torch import nn
from torch.nn import Parameter
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_leaky.utilities.harmless import warn_once

_MANY_PASSES = 1000
# By name, because some builds of torch lack them.
_NOT_BY_PARAMETER = {
    "LBFGS": "whose history is of all of them together",
    "ZeroRedundancyOptimizer": "which shares them out over the processes once and for all",
}


class Rhythm:
    """Settings: every n optimizer steps from a first to a last one, counted from 1; ``None`` never stops."""

    every_n_steps: int
    start_step: int
    stop_step: int | None

    def __post_init__(self) -> None:
        for name in ("every_n_steps", "start_step"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value!r}.")
        if self.stop_step is not None and self.stop_step < self.start_step:
            raise ValueError(f"`stop_step` must be at least `start_step` = {self.start_step}, got {self.stop_step!r}.")

    def is_due(self, num_steps: int) -> bool:
        """Whether that step is due."""
        is_within = self.start_step <= num_steps <= (self.stop_step or num_steps)
        return is_within and (num_steps - self.start_step) % self.every_n_steps == 0


class OptimizerSteps:
    """Calls a function after each step of a `heard_optimizer`; warns if many forward passes bring none.

    Unless it `hears` the optimizer, others call `end_step`.
    """

    def __init__(
        self, optimizer: Optimizer, act: Callable[[Optimizer], None], said: set[str], hears: bool = True
    ) -> None:
        self.optimizer, self._act, self._said = optimizer, act, said
        self.num_passes, self._is_in_step, self.hears = 0, False, hears
        hooks = [(optimizer.register_step_pre_hook, self._enter), (optimizer.register_step_post_hook, self._leave)]
        self._handles = [register(hook) for register, hook in hooks] if hears else []

    def remove(self) -> None:
        """Remove the optimizer's hooks."""
        for handle in self._handles:
            handle.remove()

    def count_pass(self) -> None:
        """Count a forward pass since the last step."""
        self.num_passes += 1
        if self.num_passes == _MANY_PASSES:
            message = (
                f"{_MANY_PASSES} forward passes in training mode and no call of `step()` of the optimizer, a "
                f"{type(self.optimizer).__name__}: no layer is adapted. If they all belong to one step, this is as it "
                "should be; if steps are taken in another way, attach to an optimizer whose `step()` is called."
            )
            warn_once(message, message, self._said)

    def _enter(self, *args: Any) -> None:
        self._is_in_step = True

    def _leave(self, optimizer: Optimizer, *args: Any) -> None:
        # Torch calls it twice if a subclass calls `super().step()`.
        if self._is_in_step:
            self.end_step()

    def end_step(self) -> None:
        """Act after a step."""
        self.num_passes, self._is_in_step = 0, False
        self._act(self.optimizer)


def heard_optimizer(optimizer: Any) -> Optimizer:
    """Return the optimizer whose `step()` calls hooks: this one or the only one inside; or raise ValueError.

    Wrappers are those of accelerate, Fabric and Lightning, Lookahead, and SAM, whose half-steps end in the inner step.
    One that calls hooks itself is a wrapper only if the inner one has all its parameters.
    """
    # `Optimizer.__init__` makes a class's `step` call hooks.
    is_wrapped = any(getattr(getattr(one, "step", None), "hooked", False) for one in (type(optimizer), optimizer))
    calls_hooks = is_wrapped and hasattr(optimizer, "_optimizer_step_post_hooks")
    inside = {id(one): one for one in getattr(optimizer, "__dict__", {}).values() if isinstance(one, Optimizer)}
    if len(inside) == 1 and id(optimizer) not in inside:
        (inner,) = inside.values()
        if not calls_hooks or held_parameters(optimizer) <= held_parameters(inner):
            return heard_optimizer(inner)
    if not calls_hooks:
        raise ValueError(
            f"`optimizer` must be a torch.optim.Optimizer, or hold exactly one, got {type(optimizer).__name__}, whose "
            "`step()` calls no hooks. Attach to the optimizer inside it that moves the weights."
        )
    return cast("Optimizer", optimizer)


def held_parameters(*optimizers: Optimizer) -> set[int]:
    """Ids of optimizers' parameters."""
    return {id(parameter) for one in optimizers for _, parameters in groups_of(one) for parameter in parameters}


def groups_of(optimizer: Any) -> list[tuple[dict[str, Any], list[Parameter]]]:
    """Return an optimizer's groups, each with its parameters of the model.

    DeepSpeed's ZeRO trains flat copies of them, and knows groups of parameters apart, or at stage 3 sub-groups.
    """
    groups = optimizer.param_groups
    if (found := getattr(optimizer, "bit16_groups", None)) is not None:
        return list(zip(groups, map(list, found), strict=True))
    if (found := getattr(optimizer, "fp16_groups", None)) is not None:
        return [(groups[optimizer.sub_group_to_group_id[index]], list(part)) for index, part in enumerate(found)]
    return [(group, list(group["params"])) for group in groups]


def step_was_skipped(optimizer: Optimizer) -> bool:
    """Whether an AMP scaler skipped this step: it still calls fused optimizers, with `found_inf` set."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf > 0)


def check_state_is_by_parameter(optimizer: Optimizer | None) -> None:
    """Raise ValueError if an optimizer's state is not parameter by parameter."""
    for cls in type(optimizer).__mro__:
        if cls.__name__ in _NOT_BY_PARAMETER:
            raise ValueError(
                f"`optimizer` must keep its state parameter by parameter, got {cls.__name__}, "
                f"{_NOT_BY_PARAMETER[cls.__name__]}; use Adam or SGD."
            )


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
