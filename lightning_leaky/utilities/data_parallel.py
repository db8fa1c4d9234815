"""Which processes have the same samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_leaky.utilities.processes import from_all, num_processes, number_of_process

_PROBED = 8, 16
"""Sums over rows, and neurons of each."""
_ROUNDING = 0.05


@dataclass(frozen=True)
class DataParallelRank:
    """Which samples a process has: those of one of so many data-parallel ranks.

    Processes of one rank have the same samples, as in tensor parallelism, which count once, or pieces of the same
    sequences, which add up.

    Args:
        rank: Number of the rank, from 0.
        size: Number of ranks, at most that of processes.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> DataParallelRank.own()  # each process has its own samples
        DataParallelRank(rank=0, size=1)
    """

    rank: int
    size: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size <= num_processes():
            raise ValueError(
                f"`rank` must be from 0 to below `size`, which is at most the {num_processes()} processes, got "
                f"rank={self.rank} and size={self.size}. Pass those of the data-parallel dimension of the mesh."
            )

    @classmethod
    def own(cls) -> DataParallelRank:
        """Each process has its own samples."""
        return cls(number_of_process(), num_processes())

    @classmethod
    def of_mesh(cls, mesh: Any) -> DataParallelRank:
        """Return this process's rank in the data-parallel dimension of a device mesh, as ``mesh["dp"]``."""
        return cls(mesh.get_local_rank(), mesh.size())

    @property
    def has_peers(self) -> bool:
        """Whether other processes may have the same samples."""
        return self.size < num_processes()

    def standing(self, rows: int, probe: Tensor) -> Standing:
        """Compare this process with those of its rank: a collective.

        Args:
            rows: How many rows it has read.
            probe: `probe` of them, the same length on all processes.
        """
        told = from_all(torch.cat([probe.new_tensor([self.rank, rows]), probe]))
        peers = [number for number, row in enumerate(told) if row[0] == self.rank]
        different = list[int]()
        for peer in peers:
            if told[peer, 1] > 0 and not any(_are_alike(told[peer, 2:], told[other, 2:]) for other in different):
                different.append(peer)
        number = number_of_process()
        is_copy = rows > 0 and number not in different
        return Standing(is_copy, number == peers[0], sum(int(told[other, 1]) for other in different))


@dataclass(frozen=True)
class Standing:
    """How a process stands among those of its data-parallel rank.

    Args:
        is_copy: Whether an earlier one has the same rows.
        is_first: Whether it is the first one.
        rows: How many different rows all of them have.
    """

    is_copy: bool
    is_first: bool
    rows: int


def probe(*matrices: Tensor) -> Tensor:
    """Return a few sums over the rows of each matrix, shape (n,) in float64: nearly the same for copies only."""
    found = torch.zeros(len(matrices), *_PROBED, dtype=torch.float64, device=matrices[0].device)
    for part, matrix in zip(found, matrices, strict=True):
        entries = matrix.detach()[:, : _PROBED[1]].to(part)
        waves = torch.outer(torch.arange(1, _PROBED[0] + 1).to(part), torch.arange(len(matrix)).to(part))
        part[:, : entries.shape[1]] = torch.cos(2**0.5 * waves) @ entries
    return found.flatten()


def _are_alike(one: Tensor, other: Tensor) -> bool:
    # Copies on two GPUs may differ in rounding.
    return bool((one - other).norm() <= _ROUNDING * one.norm())
