"""Peak memory of one reading above the representations it reads."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from benchmarks.readings import reading, rows_read
from benchmarks.sizes import Settings, Size
from benchmarks.tables import Row, spread_of

MIB = 2**20
WIDE = Size("w = 8192, L = 48, N = 256", 256, 8192, 48, 7.0)
MOST_OF_WIDE = 2048.0
ROUNDS = 5


def run(settings: Settings) -> Iterator[Row]:
    """Peak above the representations at each size, and of a network that is much wider than its batch.

    The value is the greatest of the rounds: what an allocator hands back, and when, differs from process to process.
    """
    for size in (*settings.sizes, WIDE):
        peaks = [_peak(size, settings.device) / MIB for _ in range(1 if settings.quick else ROUNDS)]
        goal = MOST_OF_WIDE if size is WIDE else None
        row = Row("peak of one reading", size.name, unit="MiB", goal=goal, **{**spread_of(peaks), "value": max(peaks)})
        row.measures["representations, MiB"] = 4 * (size.num_layers + 1) * size.samples * size.width / MIB
        yield row


def _peak(size: Size, device: torch.device) -> int:
    return _peak_of_child(size) if device.type == "cpu" else _peak_on_gpu(size, device)


def _peak_of_child(size: Size) -> int:
    """Peak in bytes of a process that does nothing else."""
    numbers = (size.samples, size.width, size.num_layers, torch.get_num_threads())
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", *map(str, numbers)]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.split()[-1])


def _peak_on_gpu(size: Size, device: torch.device) -> int:
    """Peak in bytes of what torch allocates on a GPU."""
    path = _prepared_path(size, device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    reading(path, size)()
    return torch.cuda.max_memory_allocated(device) - before


def _peak_of_this_process(size: Size) -> int:
    """Peak in bytes of resident memory, above what is resident when the representations are there."""
    path = _prepared_path(size, torch.device("cpu"))
    before = _resident("VmRSS")
    reading(path, size)()
    return _resident("VmHWM") - before


def _prepared_path(size: Size, device: torch.device) -> list[Tensor]:
    """A_0, …, A_L, each once, after a tiny reading for which libraries are loaded."""
    tiny = replace(size, samples=8, width=8)
    reading([torch.randn(tiny.samples, tiny.width, device=device) for _ in range(1 + tiny.num_layers)], tiny)()
    return rows_read([torch.randn(size.samples, size.width, device=device) for _ in range(1 + size.num_layers)], size)


def _resident(field: Literal["VmRSS", "VmHWM"]) -> int:
    """Resident bytes now, or the most so far; where the system does not say, the latter for both."""
    status = Path("/proc/self/status")
    if status.exists():  # better than getrusage: there a child starts with the peak of the process that started it
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        return 1024 * int(lines[field].split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


if __name__ == "__main__":
    samples, width, num_layers, threads = map(int, sys.argv[1:])
    torch.set_num_threads(threads)
    print(_peak_of_this_process(Size("", samples, width, num_layers, effective_depth=7.0)))
