"""What the callbacks ask of a trainer: Lightning's less public corners, in one place."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_leaky.paths.leaky_path import LeakyPath
from lightning_leaky.utilities.optimizer_steps import held_parameters
from lightning_leaky.utilities.processes import warn

_REFUSED = {
    "DeepSpeedStrategy": "DeepSpeed's engine steps without the optimizer's hooks and keeps gradients and weights to "
    "itself; use ddp, FSDP or ModelParallelStrategy",
    "XLAStrategy": "lazy XLA tensors have no values when hooks run; use a CPU or a CUDA device",
    "XLAFSDPStrategy": "lazy XLA tensors have no values when hooks run; use a CPU or a CUDA device",
    "SingleDeviceXLAStrategy": "lazy XLA tensors have no values when hooks run; use a CPU or a CUDA device",
}
_DECAY_BY_GRADIENT = ("SGD", "ASGD", "Adam", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop")


def log_period(trainer: Trainer) -> int:
    """Optimizer steps between two logging steps; 0 where the trainer does not log."""
    return int(_untyped(trainer).log_every_n_steps)


def num_steps(trainer: Trainer) -> int:
    """Optimizer steps taken, as loggers count them: the x-axis of the loss."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def reading_period(trainer: Trainer, every_n_steps: int | None) -> int:
    """Optimizer steps between two readings: those asked for, or the trainer's; a ``fast_dev_run`` tries every step."""
    return 1 if _untyped(trainer).fast_dev_run else every_n_steps or log_period(trainer)


def why_unread(trainer: Trainer, every_n_steps: int | None) -> str | None:
    """Why a fit will read no training batch, as far as is known, and what to change."""
    if 0 in (trainer.limit_train_batches, trainer.max_epochs, trainer.max_steps):
        return "there is none. Raise `limit_train_batches`, `max_epochs` or `max_steps`, whichever is 0."
    period, last, batches = reading_period(trainer, every_n_steps), math.inf, trainer.num_training_batches
    if period == 0:
        return (
            "`every_n_steps` follows the trainer unless told, and this one never logs (`barebones`, or "
            "`log_every_n_steps` of 0). Pass EnergyMonitor(every_n_steps=...)."
        )
    if trainer.max_steps > 0 and trainer.lightning_module.automatic_optimization:  # by hand a batch takes any number
        last = trainer.max_steps
    if trainer.train_dataloader is not None and batches != math.inf and trainer.max_epochs not in (None, -1):
        last = min(last, math.ceil(batches / trainer.accumulate_grad_batches) * trainer.max_epochs)
    if last // period == num_steps(trainer) // period:
        return f"one is due every {period} optimizer steps, and the fit ends after {last}. Lower `every_n_steps`."
    return None


def validates(trainer: Trainer) -> bool:
    """Whether this run has a validation set to go through."""
    return trainer.state.fn == "validate" or bool(trainer.enable_validation)


def is_due(trainer: Trainer, period: int) -> bool:
    """Whether the optimizer step that the present batch is part of is a multiple of a period.

    The step is counted as loggers count it, so that what is logged lands on the x-axis of the loss, whatever the number
    of micro-batches and of optimizers. A pass that only renews batch norms, as `StochasticWeightAveraging` ends with,
    takes none.
    """
    return not trainer.fit_loop._skip_backward and period > 0 and (num_steps(trainer) + 1) % period == 0


def is_accumulating(trainer: Trainer) -> bool:
    """Whether the present micro-batch is not the last one before an optimizer step."""
    return trainer.fit_loop._should_accumulate()


def gradient_scale(trainer: Trainer, optimizer: Optimizer | None = None) -> float:
    """What Lightning multiplied the loss by before backward: the AMP scale over the number of micro-batches.

    At the step of an optimizer the gradients of its own parameters are without the AMP scale, unless it unscales them.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    is_unscaled = optimizer is not None and not getattr(optimizer, "_step_supports_amp_scaling", False)
    scale = 1.0 if scaler is None or is_unscaled else float(scaler.get_scale())
    return scale / trainer.accumulate_grad_batches if trainer.lightning_module.automatic_optimization else scale


def may_skip_steps(trainer: Trainer) -> bool:
    """Whether an fp16 scaler may leave out a step, and with it the optimizer's hooks."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def fresh_samples(trainer: Trainer, batch_idx: int, dataloader_idx: int) -> Tensor | None:
    """Which samples of an evaluation batch are no repeats, shape (batch,); ``None`` where all are, or nothing says so.

    A distributed sampler ends with repeats, so that all of W processes get as many samples: the k-th one of process r
    is number r + kW, and a repeat where the data set has no such number.
    """
    loop: Any = trainer._evaluation_loop
    loader = loop._combined_loader.flattened[dataloader_idx]
    sampler: Any = getattr(loader, "sampler", None)
    size = getattr(loader, "batch_size", None)
    # By name: Lightning's wrapper exists in two packages, and a subclass may share samples out in another order.
    is_known = type(sampler).__name__ in ("DistributedSampler", "DistributedSamplerWrapper")
    # A step that draws its batches itself, from an iterator, has them after this hook.
    draws_itself = type(getattr(loop, "_data_fetcher", None)).__name__ == "_DataLoaderIterDataFetcher"
    is_in_order = getattr(loader, "in_order", True) and loop._combined_loader._mode == "sequential"
    if size is None or not is_known or draws_itself or not is_in_order:
        return None
    places = torch.arange(batch_idx * size, min((batch_idx + 1) * size, len(sampler)))
    fresh = sampler.rank + places * sampler.num_replicas < len(sampler.dataset)
    return None if bool(fresh.all()) else fresh


def num_loaders(trainer: Trainer) -> int:
    """How many loaders an evaluation goes through, one after another."""
    loop: Any = trainer._evaluation_loop
    return loop.num_dataloaders if loop._is_sequential else 1


def check_strategy(trainer: Trainer, asker: str) -> None:
    """Raise ValueError where a strategy splits a model in a way that a callback cannot follow."""
    strategy: Any = trainer.strategy
    reason = next((_REFUSED[name] for name in class_names(strategy) if name in _REFUSED), None)
    if "ModelParallelStrategy" in class_names(strategy) and strategy.device_mesh["tensor_parallel"].size() > 1:
        reason = (
            "with tensor_parallel_size > 1 several processes hold the same samples, or parts of their neurons; pass "
            "tensor_parallel_size=1 and shard by fully_shard"
        )
    if reason is not None:
        raise ValueError(f"`strategy` must be one that {asker} can follow, got {type(strategy).__name__}: {reason}.")


def rewrap(trainer: Trainer) -> None:
    """Have DDP count the parameters again, after some have come or gone."""
    strategy: Any = trainer.strategy
    if "DDPStrategy" in class_names(strategy):
        strategy.model = trainer.lightning_module
        strategy.configure_ddp()


def why_not_rewrap(trainer: Trainer) -> str | None:
    """What is in the way of new parameters, with the remedy; ``None`` where nothing is."""
    strategy: Any = trainer.strategy
    if "SingleDeviceStrategy" in class_names(strategy):
        return None
    if "DDPStrategy" not in class_names(strategy):
        return "it shards the parameters; refine under ddp or on one device, and train on from that checkpoint"
    if strategy._ddp_kwargs.get("static_graph"):
        return "static_graph=True promises a graph that does not change; leave it out"
    if strategy._ddp_comm_state is not None:
        return "`ddp_comm_state` is of as many parameters as there were; leave it out"
    return None


def has_flat_parameters(trainer: Trainer) -> bool:
    """Whether weights outside a forward pass are pieces of flat parameters, as FSDP1 leaves them."""
    return "FSDPStrategy" in class_names(trainer.strategy)


def may_skip_evaluation(trainer: Trainer) -> bool:
    """Whether a process may leave out an evaluation that others run: with no batches it does, and calls no hook."""
    sources: tuple[Any, ...] = (trainer.lightning_module, getattr(trainer, "datamodule", None))
    allowed = any(getattr(source, "allow_zero_length_dataloader_with_multiple_devices", False) for source in sources)
    return allowed and trainer.world_size > 1


def log_scalars(trainer: Trainer, scalars: Mapping[str, Tensor]) -> None:
    """Hand numbers to every logger, at the step of the loss, and to callbacks that look at `callback_metrics`.

    As Lightning's own monitors do, and not through `log`: that makes a metric of each key, and for a hundred of them
    takes longer than a training step.
    """
    if not scalars:
        return
    values = torch.stack(list(scalars.values())).cpu()
    numbers = dict(zip(scalars, values.tolist(), strict=True))
    for logger in trainer.loggers:
        logger.log_metrics(numbers, step=num_steps(trainer))
    trainer.callback_metrics.update(zip(scalars, values.to(torch.float32), strict=True))


def log_summaries(trainer: Trainer, scalars: Mapping[str, Tensor], loader: int) -> None:
    """Hand numbers to loggers and callbacks, and to what `validate` and `test` print and return of one loader.

    What `log` is given at the end of an epoch is printed of every loader.
    """
    numbers = {key: value.to(torch.float32) for key, value in scalars.items()}
    trainer.callback_metrics.update(numbers)
    outputs = trainer._evaluation_loop._logged_outputs  # of the loaders that had batches
    outputs[min(loader, len(outputs) - 1)].update(numbers)


def optimizers_of(trainer: Trainer, path: LeakyPath | None) -> Collection[Optimizer]:
    """Optimizers that hold a trainable parameter of a path, or all where none does; of a path not known yet no one."""
    if path is None and len(trainer.optimizers) > 1:
        return []
    trained = set() if path is None else {id(one) for one in path.layers.parameters() if one.requires_grad}
    return [one for one in trainer.optimizers if held_parameters(one) & trained] or trainer.optimizers


def optimizer_weight_decay(trainer: Trainer, layers: nn.Module) -> float | None:
    """The weight decay that the optimizers apply to the matrices of some layers; ``None`` if there is none, or several.

    Biases and normalisations, of one dimension, are often exempted and do not count. A frozen matrix does not decay.
    """
    decays = {
        id(parameter): float(group.get("weight_decay", 0.0))
        for optimizer in trainer.optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad
    }
    matrices = [one for one in layers.parameters() if not is_lazy(one) and one.ndim > 1]
    found = {decays.get(id(parameter), 0.0) for parameter in matrices}
    return found.pop() or None if len(found) == 1 else None


def gradient_decays(trainer: Trainer) -> dict[int, float]:
    """What the optimizers add to the gradient, times the parameter, of each that they hold, by id.

    It is NaN where they decay in another way, or in one that is not known: a class is, if torch's own `step` is.
    """
    found: dict[int, float] = {}
    for optimizer in trainer.optimizers:
        step = type(optimizer).step
        is_known = step.__module__.startswith("torch.optim.") and step.__qualname__.split(".")[0] in _DECAY_BY_GRADIENT
        for group in optimizer.param_groups:
            decay, others = float(group.get("weight_decay", 0.0)), ("decoupled_weight_decay", "maximize")
            decay = decay if not decay or (is_known and not any(map(group.get, others))) else math.nan
            found |= {id(parameter): found.get(id(parameter), 0.0) + decay for parameter in group["params"]}
    return found


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """All callbacks of a trainer."""
    return list(_untyped(trainer).callbacks)


def add_callback(trainer: Trainer, callback: Callback) -> None:
    """Add a callback to those of a trainer, whose hooks are called from now on."""
    _untyped(trainer).callbacks.append(callback)


def move_behind(trainer: Trainer, callback: Callback, kind: type[Callback]) -> None:
    """Have the hooks of a callback called after those of all callbacks of a kind."""
    others = [one for one in callbacks_of(trainer) if one is not callback]
    place = max((index for index, one in enumerate(others, start=1) if isinstance(one, kind)), default=0)
    if place > callbacks_of(trainer).index(callback):
        _untyped(trainer).callbacks = [*others[:place], callback, *others[place:]]


def tell_callbacks(trainer: Trainer, method: str, *news: object) -> None:
    """Call a method of ours on all callbacks of a trainer that have it."""
    for callback in callbacks_of(trainer):
        tell = getattr(callback, method, None)
        if callable(tell):
            tell(trainer, trainer.lightning_module, *news)


def warn_of_prefix(trainer: Trainer, callback: Any) -> None:
    """Warn where another callback of a kind writes under the same keys."""
    others: list[Any] = [one for one in callbacks_of(trainer) if type(one) is type(callback) and one is not callback]
    if any(other.prefix == callback.prefix for other in others):
        kind = type(callback).__name__
        warn(
            f"Several {kind}s have the `prefix` {callback.prefix!r} and write under the same keys. Give one of them "
            f'another, as in {kind}(..., prefix="teacher/").'
        )


def settings_of_others(trainer: Trainer, *callbacks: object) -> dict[str, object]:
    """What the callbacks of this package beside some were told, as ``StepSizeAdapter, damping``."""
    found: dict[str, object] = {}
    for other in callbacks_of(trainer):
        is_ours = any(cls.__module__.startswith("lightning_leaky.") for cls in type(other).__mro__)
        if is_ours and other not in callbacks:
            arguments = {*inspect.signature(type(other)).parameters} - {"settings"}
            told = {name: value for name, value in vars(other).items() if name in arguments}
            told |= getattr(other, "settings", {})  # a subclass need not name them in its signature
            found |= {f"{type(other).__name__}, {name}": value for name, value in told.items()}
    return found


def class_names(thing: object) -> list[str]:
    """Classes of an object, by name: Lightning exists in two packages, and a strategy's own may be missing."""
    return [cls.__name__ for cls in type(thing).__mro__]


def _untyped(trainer: Trainer) -> Any:
    # Lightning's connectors set these attributes where a type checker does not see it.
    return trainer
