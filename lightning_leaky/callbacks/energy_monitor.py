"""The callback that reads energies during training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_leaky.callbacks import _trainer
from lightning_leaky.callbacks._hooked import HookedCallback
from lightning_leaky.callbacks._readers import (
    LoaderReader,
    MonitorArguments,
    StepReader,
    observer_of_sets,
    observer_of_steps,
    say_if_unread,
)
from lightning_leaky.callbacks.reading_guide import ReadingGuide
from lightning_leaky.callbacks.strategies import check_strategy
from lightning_leaky.explain.console import check_rich, print_layers
from lightning_leaky.explain.diagnosis import rank_scalars
from lightning_leaky.explain.guide import with_key_table
from lightning_leaky.explain.shown import shown_readings
from lightning_leaky.metrics.quantity import Quantity
from lightning_leaky.metrics.readings import Readings
from lightning_leaky.paths.layers import LayerChoice
from lightning_leaky.paths.leaky_path import LeakyPath
from lightning_leaky.reading.observer import PathObserver
from lightning_leaky.reading.observers import warn_of_nan
from lightning_leaky.reading.passed_batch import Batch
from lightning_leaky.reading.sample import PathSample
from lightning_leaky.reading.settings import ReadingSettings
from lightning_leaky.utilities.arguments import takes
from lightning_leaky.utilities.harmless import harmless
from lightning_leaky.utilities.processes import warn


class EnergyMonitor(HookedCallback):
    """Logs cost of identity, kinetic energy and other readings per layer (arXiv 2405.17573, section 1).

    `readings` keeps the last ones:

    - ``readings["train"]``: of a training batch with all its micro-batches, every `every_n_steps` optimizer steps,
      before the first optimizer that trains the layers steps. A batch without such a step is read at its end or, if
      momenta are asked for, left out.
    - ``readings["validate"]`` and ``readings["test"]``: of the data set, or of a part of a large one unless
      ``exact=True`` (see `ReadingSettings`), without momenta. Keys start with ``val_`` and ``test_``. With several
      loaders they end with ``/dataloader_idx_0``, and the second reading is ``readings["validate/dataloader_idx_1"]``.

    Callbacks with a method ``on_readings(trainer, pl_module, monitor, stage)`` get each reading. A `ReadingGuide`,
    which explains the keys on a board, is added if there is none.

    It leaves losses bit-equal. A diverged layer reads NaN, and an unreadable batch is left out, each with one warning.

    In log keys ``layer_03`` is the third layer, read at A_2 with V_3 and B_3. Several segments have own summaries, as
    ``cost_of_identity/segment_2/min``.

    {keys}

    Args:
        layers: Modules to read: a glob over names, as ``"encoder.layers.*"`` (``*`` stops at a dot), a regular
            expression after ``"re:"``, a type of module or a predicate ``(name, module) -> bool`` (in YAML the import
            path). ``None`` takes the leaky path of the model or else the longest run of shape-preserving blocks of one
            class, found on the first batch and logged. Blocks that change the shape are left out and split the path
            into segments.
        quantities: As of `ReadingSettings`. ``None``: cost of identity and kinetic energy; with a leak (L̃ > 0)
            potential energy and the sum of both; for a `LeakyResNet` with known λ the Hamiltonian in momentum form and
            its criticality residual.
        every_n_steps: Optimizer steps between two training readings; ``None`` for the trainer's ``log_every_n_steps``.
        on_validation: Whether to read validation and test sets.
        print_layers: Whether to print a table of the last reading at the end of a fit (needs rich).
        prefix: Start of all log keys, as ``"encoder/"``, to tell two monitors apart.
        pool_loaders: Whether to read all loaders of a stage as one set.
        allow_untested: Whether to say nothing under a strategy that nobody has tested, see `StrategySupport`.
        **settings: Other arguments of `ReadingSettings`. A `weight_decay` of ``None`` sums the optimizer's (see
            `lightning_leaky.functional.objective_weight_decay`) and, if the path knows its weights, the module's
            ``weight_decay``, with a warning if there are both.

    Attributes:
        settings: How it reads.
        readings: The last readings.
        step: Their place on the x-axis of the loss.
        num_shown: Rows of each training batch to keep in `samples`; callbacks raise it in ``setup``.

    Raises:
        ModuleNotFoundError: If `print_layers` is set and rich is missing.
        ValueError: If an argument is out of range; at the start of a run if no module matches `layers`, a match
            contains another, or momenta lack a weight decay.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[EnergyMonitor()], logger=False)
    """

    __doc__ = with_key_table(__doc__)

    @takes(MonitorArguments)
    def __init__(
        self,
        layers: LayerChoice | None = None,
        quantities: Sequence[str | Quantity] | None = None,
        every_n_steps: int | None = None,
        on_validation: bool = True,
        print_layers: bool = False,
        prefix: str = "",
        pool_loaders: bool = False,
        allow_untested: bool = False,
        **settings: Any,
    ) -> None:
        if print_layers:
            check_rich()  # before an hour of training
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"`every_n_steps` must be at least 1, got {every_n_steps!r}.")
        self.settings = ReadingSettings(quantities=quantities, **settings)
        self.layers, self.prefix = layers, prefix
        self.every_n_steps, self.on_validation = every_n_steps, on_validation
        self.print_layers, self.pool_loaders, self.allow_untested = print_layers, pool_loaders, allow_untested
        self.readings: dict[str, Readings] = {}
        self.num_shown, self.step = 0, 0
        self._steps: StepReader | None = None
        self._loaders: LoaderReader | None = None
        self._said: set[str] = set()

    @property
    def observers(self) -> dict[str, PathObserver]:
        """By ``"train"`` and ``"evaluation"``."""
        readers = {"train": self._steps, "evaluation": self._loaders}
        return {name: reader.observer for name, reader in readers.items() if reader is not None}

    @property
    def path(self) -> LeakyPath | None:
        """The layers read in a fit, once found."""
        return None if self._steps is None else self._steps.observer.path

    @property
    def samples(self) -> list[PathSample]:
        """Samples of the last training batch read, one entry per segment."""
        return [] if self._steps is None else self._steps.observer.samples

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add a `ReadingGuide` if there is none."""
        callbacks = _trainer.callbacks_of(trainer)
        if not any(isinstance(one, ReadingGuide) for one in callbacks):
            callbacks.append(ReadingGuide())

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the hooks."""
        self.readings.clear()
        self._detach()
        self._said.clear()
        self._start(trainer, pl_module)
        _trainer.warn_of_prefix(trainer, self)
        say_if_unread(trainer, self.every_n_steps, self._said)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if no batch will be read."""
        say_if_unread(trainer, self.every_n_steps, self._said)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn that nothing is read."""
        warn("EnergyMonitor reads nothing in `trainer.predict`: call `trainer.validate`, or `measure_path`.")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the hooks unless a fit has done so, and forget what was read."""
        if not self.observers:
            self._said.clear()
            self._start(trainer, pl_module)
        if self._loaders is not None:
            self._loaders.reset(_trainer.num_steps(trainer))

    on_test_start = on_validation_start

    def on_layers_changed(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the new layers."""
        before = self._steps
        self._detach()
        self._start(trainer, pl_module)
        if before is not None and self._steps is not None:
            self._steps.unlogged = before.unlogged

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Arm for a batch that is due."""
        if self._steps is not None:
            self._steps.start(trainer, batch, _trainer.reading_period(trainer, self.every_n_steps))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Count gradients."""
        if self._steps is not None:
            self._steps.backward(trainer)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count no more: other gradients move no weights."""
        if self._steps is not None:
            self._steps.observer.capture.step_gradients.in_backward = False

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Read before weights change."""
        if self._steps is not None:
            self._steps.step(trainer, optimizer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Add a micro-batch, or log a reading."""
        if self._steps is None:
            return
        self._steps.end(trainer)
        readings, self._steps.unlogged = self._steps.unlogged, None
        if readings is not None:
            with harmless("EnergyMonitor: logging", self._said):
                if _trainer.log_period(trainer):
                    _trainer.log_scalars(trainer, readings.scalars(self.prefix) | rank_scalars(readings, self.prefix))
            self._publish(trainer, "train", readings)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table."""
        if self.print_layers and "train" in self.readings and trainer.is_global_zero:
            readings, source = shown_readings(self.readings)
            with harmless("EnergyMonitor: printing", self._said):
                print_layers(readings, source=source)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Arm for a batch."""
        if self._loaders is not None and not trainer.sanity_checking:
            fresh = _trainer.fresh_samples(trainer, batch_idx, dataloader_idx)
            self._loaders.start(Batch(batch, fresh), 0 if self.pool_loaders else dataloader_idx)

    on_test_batch_start = on_validation_batch_start

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch."""
        if self._loaders is not None and not trainer.sanity_checking:
            self._loaders.end(0 if self.pool_loaders else dataloader_idx)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the readings of the set."""
        if self._loaders is None or trainer.sanity_checking:
            return
        stage, start = ("test", f"{self.prefix}test_") if trainer.testing else ("validate", f"{self.prefix}val_")
        self.readings = {name: one for name, one in self.readings.items() if name.split("/")[0] != stage}
        for index, end, readings in self._loaders.finish(1 if self.pool_loaders else _trainer.num_loaders(trainer)):
            layers, summaries = readings.layers(start), readings.summaries(start)
            with harmless("EnergyMonitor: logging", self._said):
                _trainer.log_summaries(trainer, {f"{key}{end}": value for key, value in summaries.items()}, index)
                _trainer.log_scalars(trainer, {f"{key}{end}": value for key, value in layers.items()})
            self._publish(trainer, f"{stage}{end}" if index else stage, readings)

    on_test_epoch_end = on_validation_epoch_end

    def __getstate__(self) -> dict[str, Any]:
        """Drop the observers."""
        return super().__getstate__() | {"_steps": None, "_loaders": None}

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_strategy(trainer, "EnergyMonitor", self.allow_untested, self._said)
        if trainer.state.fn == "fit":
            observer = observer_of_steps(trainer, pl_module, self.layers, self.settings)
            observer.num_shown = self.num_shown
            self._steps = StepReader(observer, self._said)
        if self.on_validation:
            other = observer_of_sets(trainer, pl_module, self.layers, self.settings)
            self._loaders = None if other is None else LoaderReader(other, self._said)

    def _detach(self) -> None:
        for observer in self.observers.values():
            observer.detach()
        self._steps = self._loaders = None

    def _publish(self, trainer: Trainer, stage: str, readings: Readings) -> None:
        """Keep readings, tell callbacks, and warn of NaN."""
        self.readings[stage], self.step = readings, _trainer.num_steps(trainer)
        _trainer.tell_callbacks(trainer, "on_readings", self, stage)
        warn_of_nan(readings, self._said, "EnergyMonitor", f" in the {stage} reading")
