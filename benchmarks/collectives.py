"""How often processes wait for one another in one reading."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from benchmarks.readings import path_of, reading
from benchmarks.sizes import Size

GATHERS = ("all_gather", "all_gather_into_tensor", "all_gather_object", "gather", "gather_object")
SUMS = ("all_reduce", "reduce", "reduce_scatter", "reduce_scatter_tensor")
NAMES = (*GATHERS, *SUMS, "all_to_all", "barrier", "broadcast", "broadcast_object_list")


def collectives_of_a_reading(num_processes: int, lengths: Sequence[int]) -> list[int]:
    """Collectives of one reading of a path of each length, counted on the first of some processes."""
    multiprocessing.set_forkserver_preload(["benchmarks.readings"])  # imports once, not once a process
    with tempfile.TemporaryDirectory() as folder:
        arguments = (num_processes, Path(folder), lengths)
        start_processes(_work, arguments, nprocs=num_processes, start_method="forkserver")  # type: ignore[no-untyped-call]
        counts: list[int] = json.loads(Path(folder, "counts.json").read_text(encoding="utf-8"))
    return counts


def _work(rank: int, num_processes: int, folder: Path, lengths: Sequence[int]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", (folder / "meeting").as_uri(), rank=rank, world_size=num_processes)
    counts = []
    for num_layers in lengths:
        size = Size("", 32, 16, num_layers, effective_depth=3.5)
        read = reading(path_of(size, torch.device("cpu")), size)
        with _counted() as calls:
            read()
        counts.append(len(calls))
    if rank == 0:
        (folder / "counts.json").write_text(json.dumps(counts), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


@contextmanager
def _counted() -> Iterator[list[str]]:
    """A list that grows by the name of each collective called from Python."""
    calls: list[str] = []

    def counting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return original(*args, **kwargs)

        return call

    with ExitStack() as patches:
        for name in NAMES:
            patches.enter_context(patch.object(dist, name, counting(name, getattr(dist, name))))
        yield calls
