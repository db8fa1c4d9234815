"""Lightning's less public parts."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_leaky.callbacks.strategies import engine_of, engine_scale
from lightning_leaky.paths.leaky_path import LeakyPath
from lightning_leaky.utilities.optimizer_steps import held_parameters
from lightning_leaky.utilities.processes import warn


def log_period(trainer: Trainer) -> int:
    """0 if the trainer does not log."""
    return int(_untyped(trainer).log_every_n_steps)


def num_steps(trainer: Trainer) -> int:
    """Loggers' x-axis of the loss."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def reading_period(trainer: Trainer, every_n_steps: int | None) -> int:
    return 1 if _untyped(trainer).fast_dev_run else every_n_steps or log_period(trainer)


def why_unread(trainer: Trainer, every_n_steps: int | None) -> str | None:
    """Why a fit will read no training batch, if known."""
    if 0 in (trainer.limit_train_batches, trainer.max_epochs, trainer.max_steps):
        return "`limit_train_batches`, `max_epochs` or `max_steps` is 0. Raise it."
    period, last, batches = reading_period(trainer, every_n_steps), math.inf, trainer.num_training_batches
    if period == 0:
        return "`every_n_steps` is the trainer's, and it never logs. Pass EnergyMonitor(every_n_steps=...)."
    if trainer.max_steps > 0 and trainer.lightning_module.automatic_optimization:  # else a batch takes any number
        last = trainer.max_steps
    if trainer.train_dataloader is not None and batches != math.inf and trainer.max_epochs not in (None, -1):
        last = min(last, math.ceil(batches / trainer.accumulate_grad_batches) * trainer.max_epochs)
    if last // period == num_steps(trainer) // period:
        return f"one is due every {period} optimizer steps, and the fit ends after {last}. Lower `every_n_steps`."
    return None


def validates(trainer: Trainer) -> bool:
    """Whether the run has validation batches."""
    return trainer.state.fn == "validate" or bool(trainer.enable_validation)


def is_due(trainer: Trainer, period: int) -> bool:
    """Whether the batch's step is due; `StochasticWeightAveraging` ends with a pass that takes none."""
    return not trainer.fit_loop._skip_backward and period > 0 and (num_steps(trainer) + 1) % period == 0


def is_accumulating(trainer: Trainer) -> bool:
    """Whether the batch only adds to gradients, without a step."""
    return trainer.fit_loop._should_accumulate()


def gradient_scale(trainer: Trainer, optimizer: Optimizer | None = None) -> float:
    """Lightning's factor of the loss, the AMP scale over the number of micro-batches.

    At a step gradients are without the AMP scale, unless the optimizer unscales them.
    """
    if engine_of(trainer) is not None:
        return engine_scale(trainer)
    scaler = scaler_of(trainer)
    is_unscaled = optimizer is not None and not getattr(optimizer, "_step_supports_amp_scaling", False)
    scale = 1.0 if scaler is None or is_unscaled else float(scaler.get_scale())
    return scale / trainer.accumulate_grad_batches if trainer.lightning_module.automatic_optimization else scale


def scaler_of(trainer: Trainer) -> Any:
    """The scaler of fp16, if any; it may skip steps and so hooks."""
    return getattr(trainer.precision_plugin, "scaler", None)


def fresh_samples(trainer: Trainer, batch_idx: int, dataloader_idx: int) -> Tensor | None:
    """Which samples of an evaluation batch are no repeats, shape (batch,); ``None`` for all.

    The k-th sample of process r of W is number r + kW if there is one, else a repeat.
    """
    loop: Any = trainer._evaluation_loop
    loader = loop._combined_loader.flattened[dataloader_idx]
    sampler: Any = getattr(loader, "sampler", None)
    size: Any = getattr(loader, "batch_size", None)
    # Not subclasses, which may order samples otherwise.
    is_known = type(sampler).__name__ in ("DistributedSampler", "DistributedSamplerWrapper")
    # Such a step draws its batches after this hook.
    draws_itself = type(getattr(loop, "_data_fetcher", None)).__name__ == "_DataLoaderIterDataFetcher"
    is_in_order = getattr(loader, "in_order", True) and loop._combined_loader._mode == "sequential"
    if size is None or not is_known or draws_itself or not is_in_order:
        return None
    places = torch.arange(batch_idx * size, min((batch_idx + 1) * size, len(sampler)))
    fresh = sampler.rank + places * sampler.num_replicas < len(sampler.dataset)
    return None if bool(fresh.all()) else fresh


def num_loaders(trainer: Trainer) -> int:
    loop: Any = trainer._evaluation_loop
    return loop.num_dataloaders if loop._is_sequential else 1


def rewrap(trainer: Trainer) -> None:
    strategy: Any = trainer.strategy
    if "DDPStrategy" in class_names(strategy):
        strategy.model = trainer.lightning_module
        strategy.configure_ddp()


def check_rewrap(trainer: Trainer, asker: str) -> None:
    strategy: Any = trainer.strategy
    if "SingleDeviceStrategy" in class_names(strategy):
        return
    if "ModelParallelStrategy" in class_names(strategy):
        if not callable(getattr(strategy.lightning_module, "shard_layer", None)):
            reason = "it shards the parameters; give the module a method shard_layer(layer) that calls fully_shard"
        elif strategy.device_mesh["tensor_parallel"].size() > 1:
            reason = "nobody has tried layers that tensor parallelism splits; use tensor_parallel_size=1"
        else:
            return
    elif "DDPStrategy" not in class_names(strategy) or "DeepSpeedStrategy" in class_names(strategy):
        reason = "it shards the parameters; use ddp, one device or ModelParallelStrategy"
    elif strategy._ddp_kwargs.get("static_graph"):
        reason = "static_graph=True promises that the graph stays; leave it out"
    elif strategy._ddp_comm_state is not None:
        reason = "`ddp_comm_state` is of as many parameters as there were; leave it out"
    else:
        return
    raise ValueError(f"`strategy` must let {asker} add parameters, got {type(strategy).__name__}: {reason}.")


def has_flat_parameters(trainer: Trainer) -> bool:
    """Whether weights are pieces of FSDP1's flat parameters outside a forward pass."""
    return "FSDPStrategy" in class_names(trainer.strategy)


def may_skip_evaluation(trainer: Trainer) -> bool:
    """Whether a process without batches may skip an evaluation."""
    sources: tuple[Any, ...] = (trainer.lightning_module, getattr(trainer, "datamodule", None))
    allowed = any(getattr(source, "allow_zero_length_dataloader_with_multiple_devices", False) for source in sources)
    return allowed and trainer.world_size > 1


def log_scalars(trainer: Trainer, scalars: Mapping[str, Tensor]) -> None:
    """Log without `log`, which for a hundred numbers takes longer than a training step."""
    if not scalars:
        return
    values = torch.stack(list(scalars.values())).cpu()
    numbers = dict(zip(scalars, values.tolist(), strict=True))
    for logger in trainer.loggers:
        logger.log_metrics(numbers, step=num_steps(trainer))
    trainer.callback_metrics.update(zip(scalars, values.to(torch.float32), strict=True))


def log_summaries(trainer: Trainer, scalars: Mapping[str, Tensor], loader: int) -> None:
    """Log numbers of one loader; `log` would print them for all."""
    numbers = {key: value.to(torch.float32) for key, value in scalars.items()}
    trainer.callback_metrics.update(numbers)
    outputs = trainer._evaluation_loop._logged_outputs  # only of loaders with batches
    outputs[min(loader, len(outputs) - 1)].update(numbers)


def optimizers_of(trainer: Trainer, path: LeakyPath | None) -> Collection[Optimizer]:
    """Return the optimizers that train a path, or all if none does. Without a path, return only a single optimizer."""
    if path is None and len(trainer.optimizers) > 1:
        return []
    trained = set() if path is None else {id(one) for one in path.layers.parameters() if one.requires_grad}
    return [one for one in trainer.optimizers if held_parameters(one) & trained] or trainer.optimizers


def callbacks_of(trainer: Trainer) -> list[Callback]:
    callbacks: list[Callback] = _untyped(trainer).callbacks  # its own list
    return callbacks


def move_behind(trainer: Trainer, callback: Callback, kind: type[Callback]) -> None:
    present = callbacks_of(trainer)
    others = [one for one in present if one is not callback]
    place = max((index for index, one in enumerate(others, start=1) if isinstance(one, kind)), default=0)
    if callback in present and place > present.index(callback):
        _untyped(trainer).callbacks = [*others[:place], callback, *others[place:]]


def tell_callbacks(trainer: Trainer, method: str, *news: object) -> None:
    for callback in [*callbacks_of(trainer)]:
        tell = getattr(callback, method, None)
        if callable(tell):
            tell(trainer, trainer.lightning_module, *news)


def warn_of_prefix(trainer: Trainer, callback: Any) -> None:
    others: list[Any] = [one for one in callbacks_of(trainer) if type(one) is type(callback) and one is not callback]
    if any(other.prefix == callback.prefix for other in others):
        kind = type(callback).__name__
        warn(f"Several {kind}s have the `prefix` {callback.prefix!r} and so the same keys. Give one its own.")


def settings_of_others(trainer: Trainer, *callbacks: object) -> dict[str, object]:
    """Arguments of our other callbacks, as ``StepSizeAdapter, damping``."""
    found: dict[str, object] = {}
    for other in callbacks_of(trainer):
        is_ours = any(cls.__module__.startswith("lightning_leaky.") for cls in type(other).__mro__)
        if is_ours and other not in callbacks:
            arguments = {*inspect.signature(type(other)).parameters} - {"settings"}
            told = {name: value for name, value in vars(other).items() if name in arguments}
            told |= getattr(other, "settings", {})  # a subclass may not name them
            found |= {f"{type(other).__name__}, {name}": value for name, value in told.items()}
    return found


def note_place(trainer: Trainer, error: BaseException) -> None:
    """Let a traceback say, once, which of several processes has ended, and when."""
    note = f"Process {trainer.global_rank} of {trainer.world_size} ended in optimizer step {num_steps(trainer) + 1}."
    if trainer.world_size > 1 and note not in getattr(error, "__notes__", []):
        error.add_note(note)


def class_names(thing: object) -> list[str]:
    """By name, because Lightning exists in two packages, and one may be missing."""
    return [cls.__name__ for cls in type(thing).__mro__]


def _untyped(trainer: Trainer) -> Any:
    # Type checkers miss attributes that connectors set.
    return trainer
