"""The callback that explains an EnergyMonitor's tags on a board."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer

from lightning_leaky.callbacks import _trainer
from lightning_leaky.callbacks._hooked import HookedCallback
from lightning_leaky.callbacks._loggers import announce_final, log_final, log_text, tell_tensorboard
from lightning_leaky.explain.guide import Charts, custom_charts, guide_page, merged_charts, summary_keys
from lightning_leaky.metrics.quantity import Quantity
from lightning_leaky.metrics.readings import Readings
from lightning_leaky.metrics.records import STEP_SIZE
from lightning_leaky.utilities.harmless import harmless

if TYPE_CHECKING:  # it imports this file
    from lightning_leaky.callbacks.energy_monitor import EnergyMonitor


class ReadingGuide(HookedCallback):
    """Explains the tags of every `EnergyMonitor`, which adds a guide if there is none.

    It writes for each a text ``layers/guide`` on tags and settings, and a layout of TensorBoard's custom scalars.
    A fit ends with the last summaries as ``final_*`` in the table of hyper-parameters, of each segment and the longest.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[ReadingGuide()], logger=False)
    """

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._written: dict[str, object] = {}
        self._layouts: dict[str, Charts] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Announce the final numbers."""
        self._said.clear()
        self._layouts.clear()
        if _trainer.log_period(trainer):
            keys: list[str] = []
            for monitor in _monitors_of(trainer):
                leaks = (monitor.settings if monitor.path is None else monitor.path).effective_depth > 0
                keys += [f"{monitor.prefix}final_{key}" for key in summary_keys(_read(monitor, "train"), leaks)]
            with harmless("ReadingGuide: announcing", self._said):
                announce_final(trainer, keys)

    def on_readings(self, trainer: Trainer, pl_module: LightningModule, monitor: EnergyMonitor, stage: str) -> None:
        """Write guide and layout once."""
        if monitor.prefix not in self._layouts and _trainer.log_period(trainer) and trainer.is_global_zero:
            self._layouts[monitor.prefix] = {}
            with harmless("ReadingGuide: writing", self._said):
                self._explain(trainer, monitor, monitor.readings[stage])

    def _explain(self, trainer: Trainer, monitor: EnergyMonitor, readings: Readings) -> None:
        training, evaluation = _read(monitor, "train"), _read(monitor, "evaluation")
        names = {name for callback in _trainer.callbacks_of(trainer) for name in _trainer.class_names(callback)}
        adapts = (STEP_SIZE,) if "StepSizeAdapter" in names else ()
        # Several segments have a key each.
        has_rank = readings.effective_depth > 0 and len(readings.segments) <= 1
        validated = evaluation if _trainer.validates(trainer) or trainer.state.fn == "test" else ()
        layout = custom_charts((*training, *adapts), validated, has_rank, monitor.prefix)
        explained = dict.fromkeys((*training, *evaluation, *adapts))
        text = guide_page(explained, self._settings(trainer, monitor, readings), names, readings)
        self._layouts[monitor.prefix] = layout
        written = ([(logger.name, logger.version) for logger in trainer.loggers], layout, text)
        if written == self._written.get(monitor.prefix):  # the log has it
            return
        self._written[monitor.prefix] = written
        if layout:
            tell_tensorboard(trainer, "add_custom_scalars", merged_charts(self._layouts))
        log_text(trainer, f"{monitor.prefix}layers/guide", text)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the final numbers."""
        for monitor in _monitors_of(trainer):
            readings = monitor.readings.get("train")
            if readings is not None and _trainer.log_period(trainer):
                longest = max(readings.split(), key=lambda part: len(part.step_sizes))
                found = longest.summaries() | readings.summaries()
                finals = {f"{monitor.prefix}final_{key}": float(value) for key, value in found.items()}
                with harmless("ReadingGuide: writing", self._said):
                    log_final(trainer, finals, _trainer.num_steps(trainer))

    def _settings(self, trainer: Trainer, monitor: EnergyMonitor, readings: Readings) -> dict[str, object]:
        settings, observer = monitor.settings, monitor.observers.get("train")
        decay = None if observer is None else observer.weight_decay_read
        named = f", {readings.names[0]} … {readings.names[-1]}" if readings.names else ""
        said = {
            "layers": f"{len(readings.step_sizes)} layers{named}",
            "segments": readings.segments or "one",
            "effective depth L̃": f"{readings.effective_depth:g}",
            "weight decay λ": "no momenta are read" if decay is None else f"{decay:g}",
            "stabiliser γ": f"{settings.gamma_rel:g} ‖K‖" if settings.gamma is None else f"{settings.gamma:g}",
            "optimizer steps between two training readings": _trainer.reading_period(trainer, monitor.every_n_steps),
            "validation and test sets are read": "evaluation" in monitor.observers,
        }
        shown = "rtol features constant_column loss_reduction layout padding_mask form halves branches"
        told = {name: getattr(settings, name) for name in shown.split()}
        return said | told | _trainer.settings_of_others(trainer, *_monitors_of(trainer), self)


def _monitors_of(trainer: Trainer) -> list[EnergyMonitor]:
    found: list[Any] = _trainer.callbacks_of(trainer)
    return [callback for callback in found if "EnergyMonitor" in _trainer.class_names(callback)]


def _read(monitor: EnergyMonitor, reader: str) -> tuple[Quantity, ...]:
    observer = monitor.observers.get(reader)
    return () if observer is None else observer.quantities
