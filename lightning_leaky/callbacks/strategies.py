"""Which strategies the callbacks follow, and what DeepSpeed's engine tells."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import Strategy
from torch.optim import Optimizer

from lightning_leaky.metrics.quantity import Quantity
from lightning_leaky.utilities.data_parallel import DataParallelRank
from lightning_leaky.utilities.harmless import warn_once

State: TypeAlias = Literal["tested", "untested", "refused"]

ALLOW_UNTESTED = "LIGHTNING_LEAKY_ALLOW_UNTESTED"
"""Environment variable that silences the warning of untested strategies, if set to 1."""


@dataclass(frozen=True)
class StrategySupport:
    """What the callbacks do under a strategy.

    A strategy of another package declares itself by an attribute ``leaky_support``. Lightning's
    ``distributed_sampler_kwargs`` says which processes have the same samples.

    Args:
        state: ``"tested"``; ``"untested"`` if it works by design, which callbacks say once at the start; or
            ``"refused"``.
        how: How it was tested, why it is untested, or what would be wrong.
        limits: What does not work.
        names: Names of the strategy's classes.
        option: A setting of the strategy that has its own row in the docs.

    Raises:
        ValueError: If the state is unknown.

    Example:
        >>> StrategySupport("tested", "four processes of our cluster").state
        'tested'
    """

    state: State
    how: str
    limits: str = ""
    names: tuple[str, ...] = ()
    option: str = ""

    def __post_init__(self) -> None:
        if self.state not in ("tested", "untested", "refused"):
            raise ValueError(f'`state` must be "tested", "untested" or "refused", got {self.state!r}.')


_FLAT = (
    "no `LayerRefiner`, no quantities of weights or parameters and no weight decay of an optimizer, because parameters "
    "are flat pieces outside the forward pass; a `LeakyResNet` must be one unit, because its L2 term is read there too"
)
STRATEGIES = (
    StrategySupport("tested", "every test", names=("SingleDeviceStrategy",)),
    StrategySupport("tested", "2, 3 and 4 processes on gloo; nccl with one process on one GPU", names=("DDPStrategy",)),
    StrategySupport(
        "tested",
        "2 and 4 processes on gloo; nccl with one process on one GPU",
        "no `scale_gradients`; `LayerRefiner` needs a method `shard_layer`",
        names=("ModelParallelStrategy",),
        option="`fully_shard` (FSDP2), also hybrid, mixed precision, offloaded, checkpointed, compiled",
    ),
    StrategySupport(
        "tested",
        "2 and 4 processes on gloo: 1 × 2 and 2 × 2, whole sequences, pieces of them, and DTensors",
        "no `scale_gradients`, no `LayerRefiner`",
        names=("ModelParallelStrategy",),
        option="`tensor_parallel_size > 1`, sequence parallelism",
    ),
    StrategySupport(
        "tested",
        "2 processes on gloo, 4 with hybrid sharding; one process on one GPU",
        _FLAT,
        names=("FSDPStrategy",),
    ),
    StrategySupport(
        "untested",
        "it has run on CPUs only, in two processes at stages 1 to 3, offloaded, in fp16 and bf16; "
        "`python -m tests.gpu.deepspeed_check` tries a GPU",
        "no quantities of parameters, no `move_weights`, no `LayerRefiner`; no L2 term of a `LeakyResNet` at stage 3",
        names=("DeepSpeedStrategy",),
    ),
    StrategySupport(
        "refused",
        "its tensors have no values when hooks run; use a CPU or a CUDA device",
        names=("XLAStrategy", "XLAFSDPStrategy", "SingleDeviceXLAStrategy"),
    ),
)
"""What is known of each; `python -m docs.strategies` writes it into the docs."""


def support_of(strategy: Strategy) -> StrategySupport:
    """Return what a strategy declares itself, or what is known of its nearest class."""
    declared = getattr(strategy, "leaky_support", None)
    if declared is not None:
        return StrategySupport(declared.state, declared.how, declared.limits)
    known = {name: one for one in reversed(STRATEGIES) for name in one.names}
    # By name, because Lightning exists in two packages.
    found = (known[cls.__name__] for cls in type(strategy).__mro__ if cls.__name__ in known)
    return next(found, StrategySupport("untested", "nobody has tried it"))


def check_strategy(trainer: Trainer, asker: str, allow_untested: bool = False, said: set[str] | None = None) -> None:
    """Raise ValueError under a refused strategy, and warn once under an untested one."""
    support, name = support_of(trainer.strategy), type(trainer.strategy).__name__
    if support.state == "refused":
        raise ValueError(f"`strategy` must be one that {asker} can follow, got {name}: {support.how}.")
    if support.state == "untested" and not allow_untested and os.environ.get(ALLOW_UNTESTED) != "1":
        limits = f" Not with it: {support.limits}." if support.limits else ""
        message = (
            f"{asker} works under {name} by design, but is untested there: {support.how}.{limits} Compare a few "
            f"readings with one device. Pass allow_untested=True, or set {ALLOW_UNTESTED}=1, to silence this."
        )
        warn_once(message, message, set() if said is None else said)


def data_parallel_rank(trainer: Trainer) -> DataParallelRank | None:
    """Return which processes have the same samples, as the strategy tells samplers; ``None`` if it does not."""
    strategy: Any = trainer.strategy
    told = getattr(strategy, "distributed_sampler_kwargs", None) or {}
    rank, size = told.get("rank", 0), told.get("num_replicas", 0)
    return DataParallelRank(rank, size) if 0 <= rank < size < trainer.world_size else None


def engine_of(trainer: Trainer) -> Any:
    """Return the engine of a fit; ``None`` under other strategies."""
    names = [cls.__name__ for cls in type(trainer.strategy).__mro__]
    return getattr(trainer.strategy, "deepspeed_engine", None) if "DeepSpeedStrategy" in names else None


def engine_scale(trainer: Trainer) -> float:
    """Factor of the loss in the backward pass: Lightning and the engine both divide it by the micro-batches."""
    optimizer: Any = trainer.optimizers[0]
    return float(getattr(optimizer, "loss_scale", 1.0)) / trainer.accumulate_grad_batches**2


def trains_copies(trainer: Trainer) -> bool:
    """Whether ZeRO (stages 1 to 3) trains flat copies of the parameters and takes their gradients."""
    optimizer = trainer.optimizers[0] if trainer.optimizers else None
    return engine_of(trainer) is not None and not isinstance(optimizer, Optimizer)


def check_adapter(trainer: Trainer, settings: Mapping[str, Any]) -> None:
    """Raise ValueError if a setting of `StepSizeAdapter` cannot be right."""
    if settings["move_weights"] and trains_copies(trainer):
        raise ValueError(
            "`move_weights` must be False under DeepSpeed, which trains copies of the weights, got True. Leave it out."
        )


def check_records(trainer: Trainer, records: tuple[Quantity, ...]) -> None:
    """Raise ValueError if a quantity needs the gradients of parameters."""
    keys = [record.key for record in records if record.needs == "parameters"]
    if keys and trains_copies(trainer):
        raise ValueError(
            f"`quantities` cannot include {keys} under DeepSpeed, which leaves no gradients in parameters. Leave them "
            "out, or use ModelParallelStrategy."
        )
