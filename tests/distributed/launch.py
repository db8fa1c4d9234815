"""Real processes for a test: a result or an error comes back from each, and none outlives a deadline."""

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

TIMEOUT = 120
Worker = Callable[[int, int, Path], Any]
"""What a process runs: its rank, the number of processes, and a folder that all share."""


def launch(worker: Worker, size: int, folder: Path, timeout: float = TIMEOUT) -> list[Any]:
    """Run a worker in so many processes and return what each returns, by rank.

    An error, never a skip, where a process fails or they do not finish in time.
    """
    context = start(worker, size, folder)
    deadline = time.monotonic() + timeout
    try:
        while not context.join(timeout=1):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{size} processes of {worker} did not finish within {timeout} s.")
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(folder / f"{rank}_of_{size}.pt", weights_only=False) for rank in range(size)]


def exit_codes(worker: Worker, size: int, folder: Path, timeout: float = TIMEOUT) -> list[int | None]:
    """Run a worker in so many processes, some of which fail, and return how each ends; nobody stops the others.

    An error where one does not end in time.
    """
    processes = start(worker, size, folder).processes
    deadline = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    alive = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
    if alive:
        raise TimeoutError(f"Processes {alive} of {size} of {worker} did not end within {timeout} s.")
    return [process.exitcode for process in processes]


def start(worker: Worker, size: int, folder: Path) -> mp.ProcessContext:
    """Start the processes and return at once."""
    multiprocessing.set_forkserver_preload(["tests.distributed.fits"])  # imports once, not once a process
    arguments = (worker, size, str(folder), free_port())
    return mp.start_processes(_work, arguments, nprocs=size, join=False, start_method="forkserver")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _work(rank: int, worker: Worker, size: int, folder: str, port: int) -> None:
    os.environ |= _as_torchrun_does(rank, size, port)
    torch.set_num_threads(1)
    torch.save(worker(rank, size, Path(folder)), Path(folder) / f"{rank}_of_{size}.pt")


def _as_torchrun_does(rank: int, size: int, port: int) -> dict[str, str]:
    """What tells Lightning that it is one of several processes that somebody else has started."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    return {name: str(value) for name, value in (places | address).items()}
