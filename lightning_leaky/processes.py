"""Sums and agreements over the processes of a torch.distributed run; with a single process, nothing."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def summed(tensor: Tensor) -> Tensor:
    """Sum of a tensor over all processes, as a new tensor; one collective."""
    return _reduced(tensor, dist.ReduceOp.SUM)


def greatest(number: int, device: torch.device) -> int:
    """Greatest of a number over all processes; one collective of a single entry."""
    return int(_reduced(torch.tensor(number, device=device), dist.ReduceOp.MAX))


def _reduced(tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    reduced = tensor.clone()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(reduced, operation)
    return reduced
