"""``python -m benchmarks.walk``: how far one reading walks through the package, in calls and in changes of file.

A count, not a time: it says how many places a reader of the code must visit to follow one training reading of a
`LeakyResNet` of four layers, from the forward hooks to TensorBoard. What the same training step does without a reading
is taken off, and comprehensions are left out, which are calls on some versions of Python and not on others.
"""

from __future__ import annotations

import itertools
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader, TensorDataset

import lightning_leaky
from lightning_leaky import EnergyMonitor, LeakyResNetModule

_ROOT = str(Path(lightning_leaky.__file__).parent)
# The first reading also finds the path and explains itself; this one is like all that follow.
_STEP = 2


class Walk(NamedTuple):
    """What a reading passes.

    Attributes:
        files: Files of the package.
        functions: Functions of the package.
        calls: Calls of them.
        changes: How often a call is in another file than the one before.
    """

    files: int
    functions: int
    calls: int
    changes: int


class _Switch(Callback):
    """Switches the profiler before the monitor's hooks of one batch, or after them."""

    def __init__(self, before: Callable[..., None] | None = None, after: bool = False) -> None:
        self.before, self.after = before, after

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.before is not None and batch_idx == _STEP:
            sys.setprofile(self.before)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        if self.after:
            sys.setprofile(None)


def walk() -> Walk:
    """Count the calls of one reading."""
    read, unread = _calls(every_n_steps=1), _calls(every_n_steps=1000)
    new = {code for code in read if code not in unread}
    files = {code.co_filename for code in new}
    return Walk(len(files), len(new), len(read) - len(unread), _changes(read) - _changes(unread))


def _changes(calls: list[CodeType]) -> int:
    return sum(before.co_filename != after.co_filename for before, after in itertools.pairwise(calls))


def _calls(every_n_steps: int) -> list[CodeType]:
    """Calls of functions of the package in one training step, in order."""
    calls: list[CodeType] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(_ROOT) and not code.co_name.startswith("<"):
            calls.append(code)

    seed_everything(0, verbose=False)
    data = TensorDataset(torch.randn(256, 30), torch.randn(256, 30))
    module = LeakyResNetModule(30, 30, width=100, num_layers=4, effective_depth=2.0, weight_decay=0.01)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=_STEP + 1,
            accelerator="cpu",
            logger=TensorBoardLogger(folder),
            callbacks=[_Switch(before=note), EnergyMonitor(every_n_steps=every_n_steps), _Switch(after=True)],
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(data, batch_size=64))
    return calls


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    print(" · ".join(f"{number} {name}" for name, number in walk()._asdict().items()))
