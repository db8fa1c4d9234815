"""DeepSpeed without DeepSpeed: a double of its engine for one process on a CPU, under Lightning's own strategy.

`with deepspeed_double() as strategy_class:` lets Lightning import a module that stands in for `deepspeed`. Lightning's
DeepSpeedStrategy and DeepSpeedPrecision are the real ones, so that the order of hooks is Lightning's. What the engine
does was seen in DeepSpeed 0.19.8, and `tests/gpu/deepspeed_check.py` compares with the real one. It is as there that

- `trainer.optimizers[0]` is not a torch optimizer. The one inside it steps flat float32 copies, once a parameter group
  at stages 1 and 2, once a sub-group at stage 3, and not at all if fp16 overflows;
- weights change through `.data`, so that their `_version` does not;
- Lightning and the engine both divide the loss by the number of micro-batches, and fp16 multiplies it by a scale;
- `on_before_optimizer_step` comes with every micro-batch, and `.grad` is then None, but at stage 1 before the last one;
- at stage 3 a parameter has a `ds_id` and holds nothing outside the passes of its module.

It does not imitate: several processes, clipping, checkpoints, and parameters of stage 3 that are whole at other times.
There DeepSpeed fetches some ahead, gathers those that a foreign forward pass asks for, and leaves those of at most
`stage3_param_persistence_threshold` numbers whole after the first batch. So `ds_id` tells, and `numel` does not.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

_STRATEGY = "lightning.pytorch.strategies.deepspeed"
SubGroup = tuple[int, list[nn.Parameter]]
"""The number of its parameter group, and its parameters."""


class _OnOneProcess(DeepSpeedStrategy):
    """Lifts Lightning's refusal of a CPU; nobody is to be met."""

    def setup_environment(self) -> None:
        self.set_world_ranks()

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        pass

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu")


_OnOneProcess.__name__ = "DeepSpeedStrategy"  # the callbacks go by names


class Partitions:
    """Stage 3: parameters that are whole only while their module, or its backward pass, runs."""

    def __init__(self, module: nn.Module) -> None:
        self._parameters = [one for one in module.parameters() if one.requires_grad]
        for number, one in enumerate(self._parameters):
            one.ds_id, one.ds_shape, one.ds_numel = number, one.shape, one.numel()  # type: ignore[attr-defined]
            one.ds_tensor = one.data  # type: ignore[attr-defined]
        self.release()
        for part in module.modules():
            if any(hasattr(one, "ds_id") for one in part.parameters(recurse=False)):
                part.register_forward_pre_hook(lambda part, args: gather(part.parameters(recurse=False)))
                part.register_forward_hook(self._leave)

    def release(self) -> None:
        """Partition all that are whole."""
        release(self._parameters)

    def _leave(self, part: nn.Module, args: Any, output: Any) -> None:
        own = list(part.parameters(recurse=False))
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(lambda gradient: gather(own))
        release(own)


def gather(parameters: Any) -> None:
    """Make parameters whole, as at the start of a module's forward pass."""
    for one in parameters:
        if hasattr(one, "ds_id"):
            one.data = one.ds_tensor


def release(parameters: Any) -> None:
    """Leave no values in parameters."""
    for one in parameters:
        if hasattr(one, "ds_id"):
            one.data = one.ds_tensor.new_empty(0)


@contextmanager
def gathered_parameters(parameters: Any, **kwargs: Any) -> Iterator[None]:
    """Stand in for `deepspeed.zero.GatheredParameters`."""
    parameters = list(parameters)
    gather(parameters)
    try:
        yield
    finally:
        release(parameters)


class ZeroOptimizer:
    """Stands in for DeepSpeedZeroOptimizer and DeepSpeedZeroOptimizer_Stage3.

    Attributes:
        bit16_groups: Stages 1 and 2: the module's parameters of each group.
        fp16_groups: Stage 3: those of each sub-group, whose group `sub_group_to_group_id` tells.
    """

    def __init__(self, optimizer: Optimizer, stage: int, sub_group_size: float, loss_scale: float | None) -> None:
        self.optimizer, self.loss_scale, self.overflow = optimizer, loss_scale or 1.0, False
        self._is_dynamic, self._stage = loss_scale is not None, stage
        groups = [list(group["params"]) for group in optimizer.param_groups]
        whole = [(number, group) for number, group in enumerate(groups)]
        self._parts = [part for one in whole for part in _split(one, sub_group_size)] if stage == 3 else whole
        if stage == 3:
            self.fp16_groups = [parameters for _, parameters in self._parts]
            self.sub_group_to_group_id = {index: number for index, (number, _) in enumerate(self._parts)}
        else:
            self.bit16_groups = groups
        self._masters = [nn.Parameter(_flat([_values(one) for one in part]).float()) for _, part in self._parts]
        self._sums: dict[nn.Parameter, Tensor] = {}
        for number, group in enumerate(optimizer.param_groups):
            group["params"] = [] if stage == 3 else [self._masters[number]]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The inner optimizer's, without the module's parameters."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:
        return self.optimizer.state

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients, but not those that were taken."""
        for _, part in self._parts:
            for one in part:
                one.grad = None

    def take_gradients(self, is_last: bool) -> None:
        """Add up the gradients of a backward pass; stage 1 leaves them in place until the last."""
        if self._stage == 1 and not is_last:
            return
        for one in (one for _, part in self._parts for one in part if one.grad is not None):
            self._sums[one] = self._sums.get(one, 0) + one.grad.detach().float()
            one.grad = None

    def step(self) -> None:
        """Step each group, or sub-group, by itself; or lower the scale if a gradient is not finite."""
        sums, self._sums = self._sums, {}
        self.overflow = self._is_dynamic and not all(bool(one.isfinite().all()) for one in sums.values())
        if self.overflow:
            self.loss_scale /= 2
            return
        for (number, part), master in zip(self._parts, self._masters, strict=True):
            master.grad = _flat([sums.get(one, torch.zeros_like(_values(one)).float()) for one in part])
            master.grad /= self.loss_scale
            self._step_one(number, master)
            pieces = master.detach().split([_values(one).numel() for one in part])
            for one, piece in zip(part, pieces, strict=True):
                _values(one).copy_(piece.view_as(_values(one)))

    def _step_one(self, number: int, master: nn.Parameter) -> None:
        groups = self.optimizer.param_groups
        if self._stage == 3:
            groups[number]["params"] = [master]
            self.optimizer.step()
            groups[number]["params"] = []
        else:
            self.optimizer.param_groups = [groups[number]]
            self.optimizer.step()
            self.optimizer.param_groups = groups
        master.grad = None


def _split(group: SubGroup, size: float) -> Iterator[SubGroup]:
    number, parameters = group
    part: list[nn.Parameter] = []
    for one in parameters:
        part.append(one)
        if sum(_values(each).numel() for each in part) >= size or one is parameters[-1]:
            yield number, part
            part = []


def _values(parameter: nn.Parameter) -> Tensor:
    """The whole values, which stage 3 keeps apart."""
    return getattr(parameter, "ds_tensor", parameter.data)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([one.reshape(-1) for one in tensors])


class Engine(nn.Module):
    """Stands in for DeepSpeedEngine."""

    def __init__(self, module: nn.Module, optimizer: Optimizer | None, scheduler: Any, config: dict[str, Any]) -> None:
        super().__init__()
        zero, fp16 = config.get("zero_optimization", {}), config.get("fp16", {})
        self.global_steps = self.skipped_steps = self.micro_steps = 0
        self.lr_scheduler, self._step_applied = scheduler, False
        self._num_batches = config.get("gradient_accumulation_steps", 1)
        narrow = {"fp16": torch.float16, "bf16": torch.bfloat16}
        for dtype in (dtype for name, dtype in narrow.items() if config.get(name, {}).get("enabled")):
            for one in module.parameters():  # buffers stay as they are
                one.data = one.data.to(dtype)
        self._partitions = Partitions(module) if zero.get("stage") == 3 else None
        scale = 2.0 ** fp16.get("initial_scale_power", 16) if fp16.get("enabled") else None
        size = zero.get("sub_group_size", float("inf"))
        self.optimizer = None if optimizer is None else ZeroOptimizer(optimizer, zero.get("stage", 0), size, scale)
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Divide by the number of micro-batches once more, scale, and take the gradients."""
        assert self.optimizer is not None
        (loss / self._num_batches * self.optimizer.loss_scale).backward(**kwargs)
        if self._partitions is not None:
            self._partitions.release()
        self.optimizer.take_gradients(self.is_gradient_accumulation_boundary())

    def is_gradient_accumulation_boundary(self) -> bool:
        """Whether the batch is the last of its step."""
        return bool((self.micro_steps + 1) % self._num_batches == 0)

    def step(self, **kwargs: Any) -> None:
        """Count a micro-batch, and step after the last."""
        assert self.optimizer is not None
        self._step_applied = False
        if self.is_gradient_accumulation_boundary():
            self.optimizer.step()
            self.optimizer.zero_grad()
            self._step_applied = not self.optimizer.overflow
            self.skipped_steps += self.optimizer.overflow
            self.global_steps += 1
        self.micro_steps += 1

    def was_step_applied(self) -> bool:
        """Whether the last `step` moved weights."""
        return self._step_applied


def _initialize(model: nn.Module, config: Any, optimizer: Any = None, lr_scheduler: Any = None, **kwargs: Any) -> Any:
    engine = Engine(model, optimizer, lr_scheduler, config)
    return engine, engine.optimizer, None, lr_scheduler


@contextmanager
def deepspeed_double() -> Iterator[type[DeepSpeedStrategy]]:
    """Let Lightning take the double for DeepSpeed, and yield the strategy to use."""
    double: Any = ModuleType("deepspeed")
    double.__version__, double.initialize = "0.19.8", _initialize
    double.init_distributed = lambda *args, **kwargs: None
    double.utils = SimpleNamespace(logging=SimpleNamespace(logger=logging.getLogger("deepspeed_double")))
    double.zero = SimpleNamespace(Init=lambda **kwargs: nullcontext(), GatheredParameters=gathered_parameters)
    double.checkpointing = SimpleNamespace(configure=lambda *args, **kwargs: None)
    with (
        patch.dict(sys.modules, {"deepspeed": double}),
        patch(f"{_STRATEGY}._DEEPSPEED_AVAILABLE", True),
        patch(f"{_STRATEGY}._DEEPSPEED_GREATER_EQUAL_0_16", True),
    ):
        yield _OnOneProcess
