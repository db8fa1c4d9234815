"""Sums, agreements and warnings over the processes of a torch.distributed run."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class LostProcessError(RuntimeError):
    """A collective has failed, most likely because a process ended. The others must not train on."""


def num_processes() -> int:
    """Number of processes, 1 outside torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def number_of_process() -> int:
    """Number of this process, 0 outside torch.distributed."""
    return dist.get_rank() if num_processes() > 1 else 0


def warn(message: str, is_own: bool = False) -> None:
    """Warn on the first process, or on this one if the reason `is_own`; callers decide how often."""
    number = number_of_process()
    if is_own or not number:
        caller = sys._getframe(1)
        text = f"Process {number}: {message}" if number else message
        warnings.warn_explicit(text, UserWarning, caller.f_code.co_filename, caller.f_lineno)  # no registry: repeats it


def summed(tensor: Tensor, group: Any = None) -> Tensor:
    """Sum over all processes or a group, as a new tensor, bit-identical on each; one collective."""
    total = tensor.clone()
    if num_processes() > 1:
        with collective():
            dist.all_reduce(total, group=group)
    return total


def meeting_place(device: torch.device) -> torch.device:
    """Where processes exchange CPU tensors: the backend's device, or the CPU for one process."""
    return device if num_processes() > 1 else torch.device("cpu")


def own_share(number: int) -> slice:
    """This process's share of so many things: every P-th from its own."""
    return slice(number_of_process(), number, num_processes())


def first_of(numbers: Tensor, has_them: bool) -> Tensor | None:
    """Integers of the first process that has them; one shape on all, one collective."""
    told = from_all(torch.cat([numbers.new_tensor([has_them]), numbers.flatten()]))
    return next((row[1:].reshape(numbers.shape) for row in told.unbind() if row[0]), None)


def from_all(numbers: Tensor) -> Tensor:
    """Numbers of all processes, shape (P, n), on the CPU; one shape on all, one collective."""
    everybody = [numbers]
    if num_processes() > 1:
        everybody = [torch.empty_like(numbers) for _ in range(num_processes())]
        with collective():
            dist.all_gather(everybody, numbers)
    return torch.stack(everybody).cpu()  # one transfer


def unsharded(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor (DTensors, DeepSpeed's stage 3), one collective."""
    if hasattr(tensor, "ds_id"):
        deepspeed: Any = import_module("deepspeed")
        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, whose module has moved between versions of torch."""
    return hasattr(tensor, "full_tensor")


def is_flattened(tensor: Tensor) -> bool:
    """Whether a parameter is FSDP1's flat one or part of it: its gradient is in another tensor."""
    return getattr(tensor, "_fsdp_flattened", False)


@contextmanager
def collective() -> Iterator[None]:
    """Turn a backend's error, which has no type of its own, into `LostProcessError`."""
    try:
        yield
    except RuntimeError as error:
        raise LostProcessError(f"Process {number_of_process()} could not join the others: {error}") from error
