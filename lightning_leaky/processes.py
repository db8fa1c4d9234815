"""Sums and agreements over the processes of a torch.distributed run; with a single process, nothing."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def summed(tensor: Tensor) -> Tensor:
    """Sum of a tensor over all processes, as a new tensor; one collective."""
    total = tensor.clone()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
    return total


def first_of(numbers: Tensor, has_them: bool) -> Tensor | None:
    """Numbers of the first process that has them, ``None`` where none has; one collective.

    Args:
        numbers: Whole numbers, of the same shape on all processes.
        has_them: Whether those of this process mean something.
    """
    marked = torch.cat([numbers.new_tensor([has_them]), numbers.flatten()])
    everybody = [marked]
    if dist.is_available() and dist.is_initialized():
        everybody = [torch.empty_like(marked) for _ in range(dist.get_world_size())]
        dist.all_gather(everybody, marked)
    return next((one[1:].reshape(numbers.shape) for one in everybody if one[0]), None)
