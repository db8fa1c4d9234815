"""Removing blocks from a model, and what that saves."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_leaky.dropping.rebuilding import origins_of
from lightning_leaky.dropping.stacks import Journal, Stack, difference, outputs_of, refused, stacks_of, witnessed
from lightning_leaky.hooks.state import StateChoice
from lightning_leaky.hooks.structures import all_tensors_of
from lightning_leaky.paths.layers import LayerChoice, device_of
from lightning_leaky.reading.measure import evaluating, inputs_and_targets, run_model
from lightning_leaky.utilities.optimizer_steps import check_state_is_by_parameter

Model = TypeVar("Model", bound=nn.Module)


class Expense(NamedTuple):
    """Number of parameters (shared ones once), MiB with buffers, and seconds of a forward pass."""

    parameters: int
    memory: float
    seconds: float


def drop_layers(
    model: Model,
    layers: LayerChoice | Sequence[str],
    batch: Any,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    state: StateChoice = None,
) -> Model:
    """Remove blocks from a model for good, in place; later blocks move up and take their names.

    On the batch in evaluation mode, outputs are then those with the blocks skipped, bit for bit. If a `config` (Hugging
    Face) or hyperparameters (Lightning) rebuild the model, they still do; else save its `state_dict`.

    Args:
        model: A model or a LightningModule.
        layers: Blocks to remove, as of `choose_layers`, or a sequence of names.
        batch: A pair (inputs, targets) or inputs, on the model's device; a dictionary is passed by keyword.
        optimizer: One or several, which forget removed parameters. Empty groups stay.
        state: Which tensor of a block is its state, as of `make_leaky`, if several may be.

    Returns:
        The model.

    Raises:
        ValueError: If a block cannot go. Model and optimizer stay as they were.

    Example:
        >>> blocks = [nn.TransformerEncoderLayer(8, 2, batch_first=True) for _ in range(4)]
        >>> model = drop_layers(nn.Sequential(*blocks), ["1", "2"], torch.zeros(2, 5, 8))
        >>> len(model), model[1] is blocks[3]
        (2, True)
    """
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer or ())
    for one in optimizers:
        check_state_is_by_parameter(one)
    stacks = stacks_of(model, layers)
    inputs, _ = inputs_and_targets(batch)
    with Journal() as journal:
        with witnessed(model, stacks) as readers:
            expected = outputs_of(model, inputs, stacks, state)
        if not all_tensors_of(expected):
            found = type(expected).__name__
            raise ValueError(f"`model` must return tensors, so that they can be compared, got {found}.")
        for stack in stacks:
            alone = outputs_of(model, inputs, [stack], state)
            origins = origins_of(model, inputs, stack)
            stack.take_out(journal)
            lost = [one.module for one in origins if not one.mend(stack, alone, journal)]
            _check(model, inputs, [stack], alone, readers)
            if lost:
                reason = f"cannot go: {type(lost[0]).__name__} could not be loaded again. Make the number of blocks a "
                raise refused([*stack.gone], f"{reason}setting, or drop from the model inside and save that")
        _check(model, inputs, stacks, expected, {})
        journal.pop_all()
    _forget(optimizers, {id(one) for stack in stacks for block in stack.gone.values() for one in block.parameters()})
    return model


def expense_of(model: nn.Module, batch: Any, repeats: int = 10) -> Expense:
    """Measure what a model costs in evaluation mode.

    Args:
        model: Any network.
        batch: As of `drop_layers`.
        repeats: Number of timed forward passes, of which the median counts.

    Example:
        >>> expense_of(nn.Linear(256, 1024, bias=False), torch.zeros(1, 256)).memory
        1.0
    """
    if repeats < 1:
        raise ValueError(f"`repeats` must be at least 1, got {repeats!r}.")
    inputs, _ = inputs_and_targets(batch)
    device, times = device_of(model), list[float]()
    with torch.no_grad(), evaluating(model):
        for _ in range(repeats + 1):
            start = time.perf_counter()
            run_model(model, inputs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
    size = sum(one.nbytes for one in [*model.parameters(), *model.buffers()])
    return Expense(sum(one.numel() for one in model.parameters()), size / 2**20, median(times[1:]))


def bought(
    before: Expense, after: Expense, metrics: Mapping[str, float] | None = None, new: Mapping[str, float] | None = None
) -> list[str]:
    r"""Return lines that say what a smaller model saves, and how its metrics compare with those before.

    Example:
        >>> print(*bought(Expense(2000, 8.0, 0.01), Expense(1500, 6.0, 0.008), {"loss": 0.5}, {"loss": 0.52}), sep="\n")
        parameters  2,000 → 1,500 (−25%)
        memory      8.00 MiB → 6.00 MiB (−25%)
        forward     10.00 ms → 8.00 ms (−20%)
        loss        0.5 → 0.52 (+4%)
    """
    rows = [
        ("parameters", before.parameters, after.parameters, "{:,}"),
        ("memory", before.memory, after.memory, "{:.2f} MiB"),
        ("forward", 1e3 * before.seconds, 1e3 * after.seconds, "{:.2f} ms"),
        *((name, old, (new or {})[name], "{:.4g}") for name, old in (metrics or {}).items() if name in (new or {})),
    ]
    width, lines = max(len(name) for name, *_ in rows), []
    for name, old, now, form in rows:
        change = f" ({(now - old) / old:+.0%})".replace("-", "−") if old > 0 else ""
        lines.append(f"{name.ljust(width)}  {form.format(old)} → {form.format(now)}{change}")
    return lines


def _check(model: nn.Module, inputs: Any, stacks: list[Stack], expected: Any, readers: Mapping[str, str]) -> None:
    names = [name for stack in stacks for name in stack.gone]
    try:
        told = difference(expected, outputs_of(model, inputs), [len(stack.gone) for stack in stacks])
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        raise refused(names, f"cannot go: the model does not run without them, {told}") from error
    if told:
        reasons = [f"{reader!r} takes what {made!r} makes besides its state" for reader, made in readers.items()]
        reasons += ["the code around them counts on their number, or they on their place"]
        raise refused(names, f"cannot go: the outputs {told} from those with the blocks skipped ({reasons[0]})")


def _forget(optimizers: list[Optimizer], gone: set[int]) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            kept = [index for index, parameter in enumerate(group["params"]) if id(parameter) not in gone]
            for key in {"params", "param_names"} & group.keys():
                group[key] = [group[key][index] for index in kept]
        for parameter in [one for one in optimizer.state if id(one) in gone]:
            del optimizer.state[parameter]
