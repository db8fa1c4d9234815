"""Sums and agreements over the processes of a torch.distributed run; with a single process, nothing."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def summed(tensor: Tensor) -> Tensor:
    """Sum of a tensor over all processes, as a new tensor; one collective."""
    return _reduced(tensor, dist.ReduceOp.SUM)


def greatest(numbers: Tensor) -> Tensor:
    """Greatest of each entry over all processes, as a new tensor; one collective."""
    return _reduced(numbers, dist.ReduceOp.MAX)


def _reduced(tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    reduced = tensor.clone()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(reduced, operation)
    return reduced
