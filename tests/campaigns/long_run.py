"""Whether a long run grows or slows down: `python -m tests.campaigns.long_run --steps 20000`.

Trains a small Leaky ResNet with both callbacks and prints, for each window of steps, resident memory, open file
descriptors, the time of a step and how far the step-sizes are from summing to 1; then what that comes to. It ends with
status 1 where a verdict fails. `--without-callbacks` is the run to compare with.
"""

import argparse
import gc
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from lightning_leaky import EnergyMonitor, LeakyResNetModule, StepSizeAdapter, TeacherDataModule

NUM_LAYERS = 6
LOGGED = 50  # every so many steps


class Limits(NamedTuple):
    """What a long run may do."""

    growth: float = 1.005  # of memory, from the end of the warm-up to the end; 2 MiB here
    slowdown: float = 1.2  # of a step, from the second to the last quarter of the run
    sum_error: float = 1e-12  # of step-sizes in float64


STRICT = Limits()


class Window(NamedTuple):
    """What was seen over some steps: memory and descriptors at their end, the worst sum of any step.

    Times of a step are in ms: the median by the clock; of processor time what the fastest tenth takes at most, which is
    what others on the machine disturb least; and the same of the steps that are logged, and so read.
    """

    last_step: int
    mebibytes: float
    descriptors: int
    median: float
    fastest: float
    fastest_read: float
    error_of_master: float
    error_of_buffer: float


class Probe(Callback):
    """Looks at its own process after every step, and keeps one `Window` for each so many."""

    def __init__(self, size: int, adapter: StepSizeAdapter | None) -> None:
        self.size, self.adapter = size, adapter
        self.windows: list[Window] = []
        self._start_window()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._ends.append((time.perf_counter(), time.process_time()))
        self._buffer = max(self._buffer, sum_error(pl_module.network.step_sizes))
        if self.adapter is not None:
            self._master = max(self._master, sum_error(self.adapter.state_dict()["step_sizes"]))
        if trainer.global_step % self.size == 0:
            gc.collect()  # cycles that wait for their collection are no growth
            clock, processor = 1000 * torch.tensor(self._ends, dtype=torch.float64).T.diff()
            of_read = processor[LOGGED - 2 :: LOGGED]  # the first time is that of the window's second step
            quantiles = [clock.quantile(0.5), processor.quantile(0.1), of_read.quantile(0.1)]
            seen = (resident_memory(), open_descriptors(), *map(float, quantiles), self._master, self._buffer)
            self.windows.append(Window(trainer.global_step, *seen))
            self._start_window()

    def _start_window(self) -> None:
        self._ends: list[tuple[float, float]] = []
        self._master = self._buffer = 0.0


def sum_error(step_sizes: Tensor) -> float:
    """How far from 1 a sum is; infinite where it is not a number, which `max` would pass by."""
    error = abs(float(step_sizes.detach().double().sum()) - 1)
    return math.inf if math.isnan(error) else error


def resident_memory() -> float:
    """Of this process, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Run(NamedTuple):
    """What a run has left."""

    windows: list[Window]
    step_sizes: Tensor
    monitor: EnergyMonitor | None


def train(
    steps: int,
    window: int,
    precision: str = "32-true",
    with_callbacks: bool = True,
    others: Sequence[Callback] = (),
) -> Run:
    """Train for some steps: 40 an epoch, logged every 50, and every 200 validated, and saved where that is best."""
    torch.manual_seed(0)
    module = LeakyResNetModule(10, 10, width=16, num_layers=NUM_LAYERS, effective_depth=3.0, weight_decay=0.01)
    data = TeacherDataModule(dims=(10, 3, 10), num_train=2000, num_val=500, batch_size=50)
    monitor, adapter = (EnergyMonitor(), StepSizeAdapter()) if with_callbacks else (None, None)
    probe = Probe(window, adapter)
    with TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=steps,
            max_epochs=-1,
            accelerator="cpu",
            precision=precision,
            logger=TensorBoardLogger(folder),
            log_every_n_steps=LOGGED,
            check_val_every_n_epoch=5,
            callbacks=[
                *([monitor, adapter] if with_callbacks else []),
                ModelCheckpoint(monitor="val/cost", save_top_k=1),
                *others,
                probe,
            ],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, datamodule=data)
    return Run(probe.windows, module.network.step_sizes, monitor)


class Verdict(NamedTuple):
    """What was asked, the answer in numbers, and whether it is good."""

    name: str
    answer: str
    is_good: bool


def verdicts(run: Run, warm_up: int, limits: Limits = STRICT) -> list[Verdict]:
    """Judge a run from the end of its warm-up on."""
    first, last = next(window for window in run.windows if window.last_step >= warm_up), run.windows[-1]
    growth = last.mebibytes / first.mebibytes
    found = [
        Verdict("memory", f"× {growth:.4f}, allowed {limits.growth}", growth <= limits.growth),
        Verdict("descriptors", f"{first.descriptors} → {last.descriptors}", last.descriptors == first.descriptors),
        _time("time of a step", [window.fastest for window in run.windows], limits),
        _time("time of a step that is read", [window.fastest_read for window in run.windows], limits),
    ]
    if run.monitor is None:  # nor is there an adapter that promises anything of the step-sizes
        return found
    # A sum of L numbers that are each rounded to the buffer's precision.
    coarse = max(limits.sum_error, NUM_LAYERS * torch.finfo(run.step_sizes.dtype).eps)
    master, buffer = (max(errors) for errors in zip(*(window[-2:] for window in run.windows), strict=True))
    moved = float((run.step_sizes.double() - 1 / NUM_LAYERS).abs().max())
    stages = [stage for stage, readings in run.monitor.readings.items() if readings.is_finite()]
    return [
        *found,
        Verdict(f"sum, {run.step_sizes.dtype}", f"off by {buffer:.1e}, allowed {coarse:.1e}", buffer <= coarse),
        Verdict("sum, master", f"off by {master:.1e}, allowed {limits.sum_error:.1e}", master <= limits.sum_error),
        Verdict("step-sizes", f"moved by up to {moved:.3f}", moved > 1e-3),
        Verdict("readings", f"finite: {', '.join(stages) or 'none'}", set(stages) == {"train", "validate"}),
    ]


def _time(name: str, times: Sequence[float], limits: Limits) -> Verdict:
    """Compare the medians over the windows of the second and of the last quarter."""
    quarter = len(times) // 4
    slowdown = median(times[-quarter:]) / median(times[quarter : 2 * quarter])
    return Verdict(name, f"× {slowdown:.2f}, allowed {limits.slowdown}", slowdown <= limits.slowdown)


def table(windows: Sequence[Window]) -> str:
    """One line a window."""
    head = ["last step", "RSS, MiB", "descriptors", "median ms a step", "of processor", "of processor, read"]
    head += ["sum of master − 1", "sum of buffer − 1"]
    return "\n".join([f"| {' | '.join(head)} |", "| --- " * len(head) + "|", *map(_line, windows)])


def _line(window: Window) -> str:
    seen = f"{window.last_step} | {window.mebibytes:.1f} | {window.descriptors}"
    times = f"{window.median:.2f} | {window.fastest:.2f} | {window.fastest_read:.2f}"
    return f"| {seen} | {times} | {window.error_of_master:.1e} | {window.error_of_buffer:.1e} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--window", type=int, default=1000, help=f"steps a window, a multiple of {LOGGED}")
    parser.add_argument("--warm-up", type=int, default=2000, help="steps after which memory must be flat")
    parser.add_argument("--precision", choices=("32-true", "64-true"), default="32-true")
    parser.add_argument("--without-callbacks", action="store_true", help="the same run without monitor and adapter")
    given = parser.parse_args(arguments)
    if given.window % LOGGED or given.steps < max(4 * given.window, given.warm_up + given.window):
        parser.error(f"--window must be a multiple of {LOGGED}, --steps four windows and one more than the warm-up")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    torch.set_num_threads(1)
    run = train(given.steps, given.window, given.precision, not given.without_callbacks)
    judged = verdicts(run, given.warm_up)
    who = "without callbacks" if given.without_callbacks else "with both callbacks"
    print(f"{given.steps} steps, {given.precision}, {who}\n\n{table(run.windows)}\n")
    for name, answer, is_good in judged:
        print(f"{'ok    ' if is_good else 'FAILED'} {name}: {answer}")
    return int(not all(verdict.is_good for verdict in judged))


if __name__ == "__main__":
    sys.exit(main())
