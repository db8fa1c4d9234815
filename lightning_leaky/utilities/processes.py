"""Sums, agreements and who speaks, over the processes of a torch.distributed run; with a single process, nothing."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class LostProcessError(RuntimeError):
    """A collective has failed, most likely for want of a process that has ended. None of the others may train on."""


def num_processes() -> int:
    """Number of processes of the run, 1 outside torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def number_of_process() -> int:
    """Number of this process, 0 for the first and outside torch.distributed."""
    return dist.get_rank() if num_processes() > 1 else 0


def warn(message: str, is_own: bool = False) -> None:
    """Warn on the first process; of its own, that others may have met nothing of, on this one, with its number.

    Whoever calls it decides how often: Python itself would drop what it has shown in an earlier fit.
    """
    number = number_of_process()
    if is_own or not number:
        caller = sys._getframe(1)
        text = f"Process {number}: {message}" if number else message
        warnings.warn_explicit(text, UserWarning, caller.f_code.co_filename, caller.f_lineno)  # without a registry


def summed(tensor: Tensor, group: Any = None) -> Tensor:
    """Sum of a tensor over all processes, or a group: a new tensor, the same bits on each; one collective."""
    total = tensor.clone()
    if num_processes() > 1:
        with collective():
            dist.all_reduce(total, group=group)
    return total


def meeting_place(device: torch.device) -> torch.device:
    """Where processes exchange what is on the CPU: on the device that their backend may need; one process, there."""
    return device if num_processes() > 1 else torch.device("cpu")


def own_share(number: int) -> slice:
    """Which of so many things are this process's to do: every P-th, from its own number on."""
    return slice(number_of_process(), number, num_processes())


def first_of(numbers: Tensor, has_them: bool) -> Tensor | None:
    """Whole numbers of the first process that has them, of one shape on all, or ``None``; one collective."""
    marked = torch.cat([numbers.new_tensor([has_them]), numbers.flatten()])
    everybody = [marked]
    if num_processes() > 1:
        everybody = [torch.empty_like(marked) for _ in range(num_processes())]
        with collective():
            dist.all_gather(everybody, marked)
    told = torch.stack(everybody).cpu()  # one look at a device
    first = next((index for index, has in enumerate(told[:, 0].tolist()) if has), None)
    return None if first is None else told[first, 1:].reshape(numbers.shape)


def unsharded(tensor: Tensor) -> Tensor:
    """A tensor as every process would hold it alone: a sharded one (FSDP2) is gathered, one collective."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is one process's part of a DTensor, whose module has moved between versions of torch."""
    return hasattr(tensor, "full_tensor")


def is_flattened(tensor: Tensor) -> bool:
    """Whether a parameter is one of FSDP1's flat ones, or a piece of it: these get their gradients in other tensors."""
    return getattr(tensor, "_fsdp_flattened", False)


@contextmanager
def collective() -> Iterator[None]:
    """Turn what a backend raises, of no type of its own, into `LostProcessError`."""
    try:
        yield
    except RuntimeError as error:
        raise LostProcessError(f"Process {number_of_process()} could not join the others: {error}") from error
