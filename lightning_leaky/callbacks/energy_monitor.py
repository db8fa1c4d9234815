"""The callback that reads the energies of a network while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_leaky.callbacks import _observers
from lightning_leaky.callbacks._trainer import (
    add_callback,
    callbacks_of,
    fresh_samples,
    gradient_scale,
    is_accumulating,
    is_due,
    log_period,
    log_scalars,
    num_steps,
    without_log,
)
from lightning_leaky.callbacks.reading_guide import ReadingGuide
from lightning_leaky.explain.console import check_rich, print_layers
from lightning_leaky.explain.diagnosis import rank_scalars
from lightning_leaky.explain.guide import with_key_table
from lightning_leaky.metrics.quantity import Quantity
from lightning_leaky.metrics.readings import Readings
from lightning_leaky.paths.layers import LayerChoice
from lightning_leaky.paths.leaky_path import LeakyPath
from lightning_leaky.reading.observer import PathObserver
from lightning_leaky.reading.passed_batch import Batch
from lightning_leaky.reading.sample import PathSample
from lightning_leaky.reading.settings import ReadingSettings
from lightning_leaky.utilities.arguments import takes


class EnergyMonitor(Callback):
    """Logs cost of identity, kinetic energy and other readings of every layer (arXiv 2405.17573, section 1).

    Two kinds of readings, both also kept in `readings`:

    - ``readings["train"]``: of the training batch (all micro-batches of an accumulated one), every `every_n_steps`
      optimizer steps, taken after the backward pass and before the optimizer moves the weights.
    - ``readings["validate"]`` and ``readings["test"]``: of the whole data set, exactly. No gradients flow there, so no
      momentum quantities. The keys start with ``val_`` and ``test_``.

    Callbacks with a method ``on_readings(trainer, pl_module, monitor, stage)`` are told of each reading: `step` is then
    its place on the x-axis of the loss, and `samples` are `num_shown` rows of the batch on their way. `ReadingGuide`,
    which explains the keys on a board, is one and is added where there is none.

    Training is not touched: losses are bit-equal with and without the monitor. A layer that diverged reads NaN, with
    one warning; a batch that cannot be read is left out, with one warning that says why.

    Log keys, with ``layer_03`` for the third layer, read at A_2 with V_3 and B_3; where the path has several segments,
    summaries are per segment, as ``cost_of_identity/segment_2/min``:

    {keys}

    Args:
        layers: Which modules to read: a glob over their names, as ``"encoder.layers.*"``, where ``*`` stops at a dot; a
            regular expression after ``"re:"``; a type of module (in YAML its import path); or a predicate
            ``(name, module) -> bool`` (in YAML its import path). ``None`` takes the leaky path of the model or, where
            it has none, the longest run of shape-preserving blocks of one class, found on the first batch and named in
            the log. Blocks that change the shape are left out and split the path into segments.
        quantities: Which readings to take, as of `ReadingSettings`. ``None``: cost of identity and kinetic energy; with
            a leak (L̃ > 0) potential energy and the sum of both; of a `LeakyResNet`, where λ is known, the Hamiltonian
            in momentum form with its criticality residual.
        every_n_steps: Optimizer steps between two training readings; ``None`` follows the trainer's
            ``log_every_n_steps``.
        on_validation: Whether to read whole validation and test sets.
        print_layers: Whether to print a table of the last training reading at the end of a fit (needs rich).
        prefix: What all log keys begin with, as ``"encoder/"``: for the second of two monitors.
        **settings: How to read, as of `ReadingSettings`: `gamma`, `weight_decay`, `effective_depth`, `layout`,
            `padding_mask`, `form` and others. A `weight_decay` of ``None`` takes that of the optimizer, converted as
            `lightning_leaky.functional.objective_weight_decay` says, and of a leaky path that knows its weights the
            module's ``weight_decay``; where there are both, their sum, with a warning.

    Attributes:
        settings: How it reads.
        observers: What reads in a run, by ``"train"`` and ``"evaluation"``.
        readings: The last readings, by ``"train"``, ``"validate"`` and ``"test"``.
        step: Where the last of them is on the x-axis of the loss.
        num_shown: Rows of each training batch to keep in `samples`; a callback that wants some raises it in ``setup``.

    Raises:
        ModuleNotFoundError: If a table is wanted and rich is missing.
        ValueError: If an argument is out of range; at the start of a run if no module matches `layers`, one that does
            contains another, or momentum quantities are asked for without a weight decay.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[EnergyMonitor()], logger=False)
    """

    __doc__ = with_key_table(__doc__)

    @takes(_observers.MonitorArguments)
    def __init__(
        self,
        layers: LayerChoice | None = None,
        quantities: Sequence[str | Quantity] | None = None,
        every_n_steps: int | None = None,
        on_validation: bool = True,
        print_layers: bool = False,
        prefix: str = "",
        **settings: Any,
    ) -> None:
        if print_layers:
            check_rich()  # here, and not after an hour of training
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"`every_n_steps` must be at least 1, got {every_n_steps!r}.")
        self.settings = ReadingSettings(quantities=quantities, **settings)
        self.layers, self.prefix = layers, prefix
        self.every_n_steps, self.on_validation = every_n_steps, on_validation
        self.print_layers = print_layers
        self.readings: dict[str, Readings] = {}
        self.num_shown, self.step = 0, 0
        self.observers: dict[str, PathObserver] = {}
        self._is_collecting = False
        self._unlogged: Readings | None = None
        self._said: set[str] = set()
        self._warned_of_nan = False

    @property
    def path(self) -> LeakyPath | None:
        """The layers that are read in a fit; ``None`` outside of one, and where none has been found yet."""
        return self.observers["train"].path if "train" in self.observers else None

    @property
    def samples(self) -> list[PathSample]:
        """`num_shown` samples of the last training batch that was read, one entry a segment, for pictures."""
        return self.observers["train"].samples if "train" in self.observers else []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have the readings explained, where nobody does yet."""
        if not any(isinstance(callback, ReadingGuide) for callback in callbacks_of(trainer)):
            add_callback(trainer, ReadingGuide())

    # Hooks exist between the start of a run and its end, or its exception.

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Register the forward hooks; layers may not exist earlier."""
        self.readings.pop("train", None)  # of another fit
        self._detach()
        self._start(trainer, pl_module)
        others = [one for one in callbacks_of(trainer) if isinstance(one, EnergyMonitor) and one is not self]
        _observers.warn_of_settings(trainer, self.prefix, [one.prefix for one in others])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Register the forward hooks of a run without a fit, and start the sums anew."""
        if not self.observers:
            self._start(trainer, pl_module)
        if "evaluation" in self.observers:
            self.observers["evaluation"].reset()

    on_test_start = on_validation_start

    def on_layers_changed(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the layers that there are now, after a step whose reading may still have to be logged."""
        unlogged = self._unlogged
        self._detach()
        self._start(trainer, pl_module)
        self._unlogged = unlogged

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the forward hooks."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the forward hooks: after an exception there is no teardown."""
        self._detach()

    # Training: armed over the micro-batches of one optimizer step, computed before the weights move.

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Arm for a batch whose optimizer step is to be read."""
        observer = self.observers.get("train")
        if observer is None:
            return
        if is_due(trainer, self.every_n_steps or log_period(trainer)):
            if not self._is_collecting:
                observer.reset()
                self._is_collecting = True
            observer.arm(Batch(batch))
        elif observer.path is None:
            observer.arm()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Ignore forward passes made inside backward, as activation checkpointing does."""
        observer = self.observers.get("train")
        if observer is not None:
            observer.disarm()
            if not self._is_collecting and observer.path is None:
                observer.forget()
                _observers.say_notes(observer, self._said)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Read while weights and step-sizes are still those of the forward pass."""
        if self._is_collecting:
            self._finish(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a micro-batch that did not step, or log the reading of the one that did."""
        if self._is_collecting:
            if is_accumulating(trainer):
                self.observers["train"].drain(gradient_scale(trainer))
            else:  # manual optimization around Lightning's optimizers: no hook was called before the step
                self._finish(trainer)
        if self._unlogged is not None:
            readings, self._unlogged = self._unlogged, None
            if log_period(trainer):
                log_scalars(trainer, readings.scalars(self.prefix) | rank_scalars(readings, self.prefix))
            self._publish(trainer, pl_module, "train", readings)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table that was asked for."""
        if self.print_layers and "train" in self.readings and trainer.is_global_zero:
            print_layers(self.readings["train"])

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Arm for a batch, except of the sanity check."""
        if "evaluation" in self.observers and not trainer.sanity_checking:
            self.observers["evaluation"].arm(Batch(batch, fresh_samples(trainer, batch_idx, dataloader_idx)))

    on_test_batch_start = on_validation_batch_start

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Add a batch."""
        if "evaluation" in self.observers and not trainer.sanity_checking:
            self.observers["evaluation"].drain()
            _observers.say_notes(self.observers["evaluation"], self._said)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the readings of the whole validation set."""
        self._finish_evaluation(trainer, pl_module, "validate", "val_")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the readings of the whole test set."""
        self._finish_evaluation(trainer, pl_module, "test", "test_")

    def __getstate__(self) -> dict[str, Any]:
        """Leave the observers behind: a copy has no hooks until its run starts."""
        return without_log({**self.__dict__, "observers": {}, "_is_collecting": False, "_unlogged": None})

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the observers of a run."""
        if trainer.state.fn == "fit":
            self.observers["train"] = _observers.training_observer(trainer, pl_module, self.layers, self.settings)
            self.observers["train"].num_shown = self.num_shown
        if self.on_validation:
            observer = _observers.evaluation_observer(trainer, pl_module, self.layers, self.settings)
            self.observers |= {} if observer is None else {"evaluation": observer}

    def _detach(self) -> None:
        for observer in self.observers.values():
            observer.detach()
        self.observers, self._is_collecting, self._unlogged = {}, False, None

    def _finish(self, trainer: Trainer) -> None:
        self._is_collecting, observer = False, self.observers["train"]
        observer.drain(gradient_scale(trainer))
        _observers.say_notes(observer, self._said)
        self._unlogged = observer.compute()

    def _finish_evaluation(self, trainer: Trainer, pl_module: LightningModule, stage: str, prefix: str) -> None:
        if "evaluation" not in self.observers or trainer.sanity_checking:
            return
        readings = self.observers["evaluation"].compute()
        if readings is not None:
            prefix = self.prefix + prefix
            log_scalars(trainer, readings.layers(prefix))
            # What `validate` and `test` print and return. They are of all processes already: the two flags together
            # reduce nothing and keep Lightning from advising to, once a key.
            summaries = {key: value.to(torch.float32) for key, value in readings.summaries(prefix).items()}
            pl_module.log_dict(summaries, batch_size=1, sync_dist=True, rank_zero_only=True)
            self._publish(trainer, pl_module, stage, readings)

    def _publish(self, trainer: Trainer, pl_module: LightningModule, stage: str, readings: Readings) -> None:
        """Keep the readings, warn once of what is not finite, and tell callbacks that look at readings."""
        self.readings[stage], self.step = readings, num_steps(trainer)
        for callback in callbacks_of(trainer):
            tell = getattr(callback, "on_readings", None)
            if callable(tell):
                tell(trainer, pl_module, self, stage)
        if not self._warned_of_nan:
            self._warned_of_nan = _observers.warn_of_nan(readings, stage)
