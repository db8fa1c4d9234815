"""The training that the campaign of faults disturbs: one process, or one of several, and what it writes down."""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import partial, reduce, wraps
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.hooks import RemovableHandle

from lightning_leaky import EnergyMonitor, LeakyResNetModule, StepSizeAdapter
from lightning_leaky.utilities import processes
from tests.campaigns.settings import NUM_BATCHES as NUM_BATCHES  # for tests of resumed runs
from tests.campaigns.settings import Batches, Places, Setting


class Fault(Protocol):
    """What happens to a run. It is armed in the process that it hits."""

    rank: int
    resumes_here: bool
    last_clean_step: int | None

    def arm(self, session: Session) -> None: ...


class Clock:
    """Counts the calls and returns of Python's main thread: a moment anywhere in a run that a number can name."""

    def __init__(self) -> None:
        self.now, self.alarm, self.action = 0, -1, lambda: None

    def set(self, alarm: int, action: Callable[[], None]) -> None:
        self.alarm, self.action = alarm, action

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        self.now += 1
        if self.now == self.alarm:
            sys.setprofile(None)
            self.action()


class NotedIO(TorchCheckpointIO):
    """Lightning's own, which notes what it has written whole, and when."""

    def __init__(self, notes: Path, clock: Clock) -> None:
        self.notes, self.clock = notes, clock

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        begin = self.clock.now
        super().save_checkpoint(checkpoint, path, storage_options)
        append(self.notes, {"path": str(path), "begin": begin, "end": self.clock.now})


class Recorder(Callback):
    """Writes a line at each optimizer step: losses of its micro-batches, step-sizes, and a reading if there is one."""

    def __init__(self, monitor: EnergyMonitor) -> None:
        self.monitor, self.notes = monitor, Path()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.step, self.losses = trainer.global_step, []
        self.last = self.monitor.readings.get("train")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(outputs["loss"].item())
        if trainer.global_step == self.step:
            return
        reading = self.monitor.readings.get("train")
        fresh = {} if reading is None or reading is self.last else reading.quantities
        line = {
            "step": trainer.global_step,
            "losses": self.losses,
            "step_sizes": pl_module.network.step_sizes.tolist(),
            "reading": {name: values.tolist() for name, values in fresh.items()},
        }
        append(self.notes, line)
        self.step, self.losses, self.last = trainer.global_step, [], reading


class Session:
    """Module and callbacks of one process, through a fit that is disturbed and one that resumes it."""

    def __init__(self, places: Places, setting: Setting, rank: int = 0) -> None:
        self.places, self.setting, self.rank = places, setting, rank
        torch.manual_seed(0)
        sizes = {"in_features": 3, "out_features": 2, "width": 6, "num_layers": 4, "effective_depth": 2.0}
        self.module = LeakyResNetModule(**sizes, weight_decay=0.1).to(setting.dtype)
        self.processes = processes
        monitor = EnergyMonitor()
        self.recorder = Recorder(monitor)
        ours = [monitor, StepSizeAdapter(every_n_steps=3, damping=0.5)] if setting.with_callbacks else []
        self.callbacks: list[Callback] = [*ours, self.recorder]

    def fit(self, attempt: int, checkpoint: Path | None, fault: Fault | None) -> None:
        """Train to the end or to an exception, and write down how it ended and what it left."""
        self.module.train()  # an exception in validation has left it in evaluation mode, and Lightning only warns
        self.clock, self.batches = Clock(), Batches(self.rank, self.setting.processes, self.setting)
        logs, version = self.places.logs, str(attempt)
        # They reach the disk often, for something to be there when a process is killed.
        self.csv = CSVLogger(logs, "csv", version, flush_logs_every_n_steps=10)
        self.tensorboard = TensorBoardLogger(logs, "tensorboard", version, flush_secs=0.05)
        self.has_happened, self.calls = False, {}
        self.recorder.notes = self.places.notes("steps", attempt, self.rank)
        trainer = self.make_trainer(attempt)
        eye = torch.eye(3, dtype=self.setting.dtype)
        validation = DataLoader(TensorDataset(eye, eye[:, :2]), batch_size=3)
        weighting = self.weigh_gradients()
        if fault is not None:
            fault.arm(self)
        error: BaseException | None = None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sys.setprofile(self.clock)
            try:
                trainer.fit(self.module, self.batches, validation, ckpt_path=checkpoint, weights_only=False)
            except BaseException as exception:  # SIGTERM is a SystemExit
                error = exception
            sys.setprofile(None)
        for handle in weighting:
            handle.remove()
        end = {
            "error": error and repr(error),
            "notes": getattr(error, "__notes__", []),
            "resumed_from": checkpoint and checkpoint.name,
            "has_happened": self.has_happened,
            "hooks": hooks_left(self.module, trainer),
            "warnings": [str(one.message) for one in caught],
            "calls": {**self.calls, "python": self.clock.now},
        }
        if error is None:
            torch.save(self.module.state_dict(), self.places.notes("weights", attempt, self.rank))
        append(self.places.notes("end", attempt, self.rank), end)

    def weigh_gradients(self) -> list[RemovableHandle]:
        """Let uneven shares have the gradient of the mean over all rows, of which DDP takes the mean over processes."""
        if self.setting.cut is None:
            return []

        def weigh(gradient: Tensor) -> Tensor:
            return gradient * self.setting.weight(self.rank, self.batches.position - 1)

        return [parameter.register_hook(weigh) for parameter in self.module.parameters() if parameter.requires_grad]

    def make_trainer(self, attempt: int) -> Trainer:
        """A new one for each fit."""
        checkpoints = ModelCheckpoint(self.places.checkpoints, "{step}", every_n_train_steps=5, save_top_k=-1)
        parallel: dict[str, Any] = {"plugins": [NotedIO(self.places.notes("saved", attempt, self.rank), self.clock)]}
        if self.setting.processes > 1:
            parallel["plugins"].append(TorchElasticEnvironment())  # processes are started by the campaign
            parallel["strategy"] = DDPStrategy(
                process_group_backend="gloo", timeout=timedelta(seconds=self.setting.patience)
            )
        return Trainer(
            accelerator="cpu",
            devices=self.setting.processes,
            max_epochs=self.setting.max_epochs,
            accumulate_grad_batches=self.setting.accumulate,
            logger=[self.csv, self.tensorboard],
            callbacks=[*self.callbacks, checkpoints],
            log_every_n_steps=2,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=self.places.root,
            **parallel,
        )

    def intercept(self, path: str, action: Callable[[int, Callable[[], Any]], Any]) -> None:
        """Let an action, given its number, stand between a method of one of our attributes and those who call it."""
        *parents, name = path.split(".")
        owner = reduce(getattr, parents, self)
        original, numbers = getattr(owner, name), itertools.count(1)

        @wraps(original)
        def intercepted(*args: Any, **kwargs: Any) -> Any:
            return action(next(numbers), partial(original, *args, **kwargs))

        setattr(owner, name, intercepted)


def hooks_left(module: nn.Module, trainer: Trainer) -> list[str]:
    """Names of what still carries a hook."""
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    left = [f"{name}.{kind}" for name, child in module.named_modules() for kind in kinds if getattr(child, kind)]
    kinds = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    return left + [kind for optimizer in trainer.optimizers for kind in kinds if getattr(optimizer, kind)]


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line of JSON by one write."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Complete lines of a file, in which floats keep all their bits."""
    return (
        [json.loads(line) for line in path.read_text().splitlines(True) if line.endswith("\n")] if path.exists() else []
    )


def loadable(checkpoints: Path) -> dict[Path, dict[str, Any]]:
    """Checkpoints that can be loaded, by their files, from the first step to the last."""
    found = {path: loaded(path) for path in checkpoints.glob("*.ckpt")}
    return dict(
        sorted(((path, state) for path, state in found.items() if state), key=lambda one: one[1]["global_step"])
    )


def loaded(path: Path) -> dict[str, Any] | None:
    """What a file holds, ``None`` if it cannot be loaded, whatever error that is."""
    try:
        return torch.load(path, weights_only=False)
    except Exception:
        return None


def newest(checkpoints: Path, last_step: int | None = None) -> Path | None:
    """The last checkpoint to resume from, up to a step."""
    found = [
        path for path, state in loadable(checkpoints).items() if last_step is None or state["global_step"] <= last_step
    ]
    return found[-1] if found else None


def work(
    rank: int,
    port: int,
    places: Places,
    setting: Setting,
    attempt: int = 0,
    checkpoint: Path | None = None,
    fault: Fault | None = None,
) -> None:
    """The main function of a process; one that resumes here does so as a notebook would, with what it has."""
    output = os.open(places.notes("output", attempt, rank), os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(setting.processes)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    for folder in (places.checkpoints, places.temporary, places.logs):
        folder.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(places.temporary)
    session = Session(places, setting, rank)
    session.fit(attempt, checkpoint, fault)
    if fault is not None and fault.resumes_here:
        checkpoint = newest(places.checkpoints, fault.last_clean_step)
        if checkpoint is not None:
            session.fit(attempt + 1, checkpoint, None)
