"""What a monitor reads, and when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_leaky.callbacks import _trainer
from lightning_leaky.callbacks._trainer import (
    gradient_scale,
    is_accumulating,
    is_due,
    num_steps,
    optimizers_of,
    scaler_of,
)
from lightning_leaky.callbacks.strategies import check_records, data_parallel_rank
from lightning_leaky.metrics.quantity import Quantity
from lightning_leaky.metrics.readings import Readings
from lightning_leaky.paths.layers import LayerChoice
from lightning_leaky.reading import observers as reading_observers
from lightning_leaky.reading.observer import PathObserver
from lightning_leaky.reading.observers import evaluation_observer, training_observer
from lightning_leaky.reading.passed_batch import Batch
from lightning_leaky.reading.settings import ReadingOptions, ReadingSettings
from lightning_leaky.utilities.harmless import harmless, warn_once
from lightning_leaky.utilities.processes import warn


class StepReader:
    """Reads all training batches of an optimizer step."""

    def __init__(self, observer: PathObserver, said: set[str]) -> None:
        self.observer, self.said = observer, said
        observer.said = said
        self.unlogged: Readings | None = None
        self._is_collecting = False

    def start(self, trainer: Trainer, batch: object, period: int) -> None:
        """Arm if the batch is due, or may show the path."""
        observer = self.observer
        if is_due(trainer, period):
            if not self._is_collecting:
                observer.reset()
                self._num_batches = 0
            self._num_batches += 1
            self._is_collecting, self._awaited = True, optimizers_of(trainer, observer.path)
            self._version = self._version_now()
            self._adds_up: bool | None = None  # gradients of several batches
            observer.arm(Batch(batch))
        elif observer.path is None:
            observer.arm()

    def backward(self, trainer: Trainer) -> None:
        """Count gradients, and see whether earlier batches left some."""
        self.observer.capture.step_gradients.in_backward = True
        if self._is_collecting and not trainer.lightning_module.automatic_optimization and self._adds_up is not False:
            gradients = (parameter.grad for parameter in self._parameters())
            with harmless("EnergyMonitor: a look at gradients", self.said):
                self._adds_up = any(one is not None and bool(one.any()) for one in gradients)

    def step(self, trainer: Trainer, optimizer: Optimizer) -> None:
        # DeepSpeed calls this at each micro-batch.
        if self._is_collecting and optimizer in self._awaited and not is_accumulating(trainer):
            self._read(trainer, optimizer)

    def end(self, trainer: Trainer) -> None:
        """Add a micro-batch, read if no step was seen, or find the path."""
        if self._is_collecting and is_accumulating(trainer):
            self.observer.drain(gradient_scale(trainer))
        elif self._is_collecting:
            self._read(trainer)
        elif self.observer.path is None:
            self.observer.drain(None)
        say_notes(self.observer, self.said)

    def _read(self, trainer: Trainer, optimizer: Optimizer | None = None) -> None:
        """Read, unless momenta belong to no step."""
        self._is_collecting = False
        has_step = not self._adds_up and (optimizer is not None or self._version != self._version_now())
        is_left_out = not has_step and self.observer.reads_gradients
        if is_left_out and self.observer.path is not None:
            warn_once(
                "EnergyMonitor: a batch is not read, for momenta belong to a step, and no step of these layers is of "
                "this batch alone. Choose an `every_n_steps` at which one is, or leave out momenta.",
                "no step",
                self.said,
            )
        self.observer.drain(None if is_left_out else gradient_scale(trainer), is_last=True)
        step = num_steps(trainer)
        with harmless("EnergyMonitor: a reading", self.said, is_own=True, step=step):  # all processes together
            self.unlogged = self.observer.compute(self._parameter_scale(trainer, optimizer))
        self.observer.reset()  # it holds the batch

    def _parameter_scale(self, trainer: Trainer, optimizer: Optimizer | None) -> float | None:
        """Factor of the cost in the parameters' gradients, if known."""
        if optimizer is None or (scaler_of(trainer) is not None and len(self._awaited) > 1):
            if any(record.needs == "parameters" for record in self.observer.quantities):
                warn_once(
                    "EnergyMonitor: quantities of parameters are not read: their gradients belong to a step of one "
                    "optimizer of the layers, and none was seen. Step by Lightning's optimizers.",
                    "no gradients",
                    self.said,
                )
            return None
        is_mean = self.observer.settings.loss_reduction == "mean"
        return gradient_scale(trainer, optimizer) * (self._num_batches if is_mean else 1)

    def _version_now(self) -> int:
        """A number that steps change; 0 without a path."""
        return sum(parameter._version for parameter in self._parameters())

    def _parameters(self) -> list[Parameter]:
        return [] if self.observer.path is None else list(self.observer.path.layers.parameters())


class LoaderReader:
    """Reads each data set when the next begins, as Lightning does."""

    def __init__(self, observer: PathObserver, said: set[str]) -> None:
        self.observer, self.said = observer, said
        observer.said = said
        self._readings: list[Readings | None] = []
        self.step = 0

    def reset(self, step: int) -> None:
        """Forget what was read before an optimizer step."""
        self.step = step
        self._readings.clear()
        self.observer.reset()

    def start(self, batch: Batch, loader: int) -> None:
        """Read earlier loaders, and arm for a batch."""
        self._read(loader)
        with harmless("EnergyMonitor: a look at a batch", self.said):
            self.observer.arm(batch)

    def end(self, loader: int) -> None:
        """Add a batch; steps that take an iterator know its loader only now."""
        self._read(loader)
        if self.observer.capture.armed:
            self.observer.drain()
            say_notes(self.observer, self.said)

    def finish(self, number: int) -> Iterator[tuple[int, str, Readings]]:
        """Read the last loader; yield index, end of keys, and reading of each."""
        self._read(number)
        for index, readings in enumerate(self._readings):
            if readings is not None:
                yield index, f"/dataloader_idx_{index}" if len(self._readings) > 1 else "", readings

    def _read(self, number: int) -> None:
        while len(self._readings) < number:
            self._readings.append(None)
            with harmless("EnergyMonitor: a reading", self.said, is_own=True, step=self.step):
                readings = self._readings[-1] = self.observer.compute()
                if readings is not None and readings.is_part:
                    self.observer.notes.append(f"Of a data set {readings.rows_read()} are read; exact=True reads all.")
            say_notes(self.observer, self.said)
            self.observer.reset()


@dataclass(frozen=True)
class MonitorArguments(ReadingOptions):
    """Arguments of `EnergyMonitor`, for type checkers."""

    layers: LayerChoice | None = None
    quantities: Sequence[str | Quantity] | None = None
    every_n_steps: int | None = None
    on_validation: bool = True
    print_layers: bool = False
    prefix: str = ""
    pool_loaders: bool = False
    allow_untested: bool = False


def observer_of_steps(
    trainer: Trainer, pl_module: LightningModule, layers: LayerChoice | None, settings: ReadingSettings
) -> PathObserver:
    is_flat, ranks = _trainer.has_flat_parameters(trainer), data_parallel_rank(trainer)
    optimizers = trainer.optimizers
    observer = training_observer(pl_module, layers, settings, optimizers, ranks, "EnergyMonitor", is_flat)
    check_records(trainer, observer.quantities)
    return observer.attach()


def observer_of_sets(
    trainer: Trainer, pl_module: LightningModule, layers: LayerChoice | None, settings: ReadingSettings
) -> PathObserver | None:
    """``None`` if nothing can be read without gradients."""
    is_flat, ranks = _trainer.has_flat_parameters(trainer), data_parallel_rank(trainer)
    observer = evaluation_observer(pl_module, layers, settings, trainer.optimizers, ranks, is_flat)
    if observer is not None and _trainer.may_skip_evaluation(trainer):
        warn(
            "EnergyMonitor reads no validation and test sets: `allow_zero_length_dataloader_with_multiple_devices` is "
            "set, so a process without batches skips them, and the others would wait. Give each a batch, or unset it."
        )
        return None
    return None if observer is None else observer.attach()


def say_if_unread(trainer: Trainer, every_n_steps: int | None, said: set[str]) -> None:
    """Warn if no training batch will be read, or no logger writes."""
    why = _trainer.why_unread(trainer, every_n_steps)
    if why is not None:
        warn_once(f"EnergyMonitor reads no training batch: {why}", "unread", said)
    elif trainer.train_dataloader is not None and not trainer.loggers:
        warn_once("EnergyMonitor has no logger to write to: readings are kept in its `readings` only.", "logger", said)


def say_notes(observer: PathObserver, said: set[str]) -> None:
    reading_observers.say_notes(observer, said, rank_zero_info, "EnergyMonitor")
