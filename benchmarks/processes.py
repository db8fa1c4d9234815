"""Some processes of this machine that can speak to one another."""

from __future__ import annotations

import multiprocessing
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes


def on_processes(processes: int, task: Callable[[int, Any], Any], argument: object) -> list[Any]:
    """What a task returns on each of some processes, given its rank and an argument."""
    multiprocessing.set_forkserver_preload(["lightning_leaky.reading.observer"])  # imports once, not once a process
    with tempfile.TemporaryDirectory() as folder:
        arguments = (processes, Path(folder), task, argument)
        start_processes(_work, arguments, nprocs=processes, start_method="forkserver")  # type: ignore[no-untyped-call]
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(processes)]


def _work(rank: int, processes: int, folder: Path, task: Callable[[int, Any], Any], argument: object) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", (folder / "meeting").as_uri(), rank=rank, world_size=processes)
    torch.save(task(rank, argument), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
