"""The callback that draws what an EnergyMonitor reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_leaky.callbacks._hooked import HookedCallback
from lightning_leaky.callbacks._loggers import log_figure, log_text, shows_pictures
from lightning_leaky.callbacks._trainer import callbacks_of, has_flat_parameters
from lightning_leaky.callbacks.energy_monitor import EnergyMonitor
from lightning_leaky.explain.diagnosis import paragraphs
from lightning_leaky.explain.figures import figures_of
from lightning_leaky.explain.shown import TRAINING, shown_readings
from lightning_leaky.functional.spectrum import singular_values
from lightning_leaky.metrics.quantity import Quantity
from lightning_leaky.metrics.readings import Readings
from lightning_leaky.metrics.records import STEP_SIZE, records_at
from lightning_leaky.paths.leaky_path import knows_weights
from lightning_leaky.plotting import Limits, plot_heat_map, plot_singular_values
from lightning_leaky.plotting.heat_map import History
from lightning_leaky.plotting.style import new_figure
from lightning_leaky.utilities.harmless import harmless
from lightning_leaky.utilities.processes import is_sharded

# Inches: text of ten points is 11 pixels high at TensorBoard's width of 350.
_INCHES = (4.4, 3.0)


class PathFigures(HookedCallback):
    """Draws what an `EnergyMonitor` reads, for TensorBoard, Weights & Biases and MLflow.

    Limits of axes and colours only grow over a run, so that drawings can be compared:

    ===============================  ===================================================================================
    tag                              what it shows
    ===============================  ===================================================================================
    ``layers/energies``              kinetic energy and, with a leak, potential energy and the Hamiltonian along p
    ``layers/singular_values_of_A``  singular values of A_p along p, of some samples of the batch
    ``layers/singular_values_of_W``  those of W_p after the step, of a `LeakyResNet` that is not sharded
    ``layers/path``                  way of some samples, by class or target, in the plane that holds most of it
    ``layers/cost_of_identity``      cost of identity, layer × training step
    ``layers/kinetic_energy``        kinetic energy, layer × training step
    ``layers/step_size``             ρ, layer × training step, once it has changed
    ===============================  ===================================================================================

    A text ``layers/diagnosis`` says what the readings mean (`lightning_leaky.diagnose`). Energies and text are of
    validation data once read, with momenta of a training batch; all else is of training batches. The first process
    draws, if a logger shows pictures. Spectra and path are of the longest segment, figures of the first monitor.

    Args:
        every_n_steps: Optimizer steps between drawings, about a second each; the last reading is drawn too.
        num_samples: Samples to draw the path and the spectra of A from, at most.

    Raises:
        ValueError: If an argument is below 1, or a fit starts without an `EnergyMonitor`.
        ModuleNotFoundError: If matplotlib is missing.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[EnergyMonitor(), PathFigures(every_n_steps=200)], logger=False)
    """

    def __init__(self, every_n_steps: int = 500, num_samples: int = 200) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("num_samples", num_samples)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value!r}.")
        new_figure()  # fails now if matplotlib is missing
        self.every_n_steps, self.num_samples = every_n_steps, num_samples
        self._limits = Limits()
        self._history: dict[str, History] = {}
        self._drawn_at = -every_n_steps  # draws the first reading
        self._monitor: EnergyMonitor | None = None
        self._said: set[str] = set()
        self._undrawn: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ask for samples, and reset."""
        if stage != "fit":
            return
        callbacks = callbacks_of(trainer)
        monitor = next((one for one in callbacks if isinstance(one, EnergyMonitor)), None)
        if monitor is None:
            names = [type(one).__name__ for one in callbacks]
            raise ValueError(f"`callbacks` must hold an EnergyMonitor to draw, got {names}; add EnergyMonitor().")
        monitor.num_shown = max(monitor.num_shown, self.num_samples)
        self._monitor = monitor
        self._limits, self._history, self._drawn_at, self._undrawn = Limits(), {}, -self.every_n_steps, None
        self._said.clear()

    def on_readings(self, trainer: Trainer, pl_module: LightningModule, monitor: EnergyMonitor, stage: str) -> None:
        """Keep a reading of a fit, and draw if due."""
        if trainer.state.fn != "fit" or monitor is not self._monitor or not shows_pictures(trainer):
            return
        readings = monitor.readings[stage]
        if stage == "train":
            for name in _heat_maps(readings):
                values = readings.step_sizes if name == STEP_SIZE.key else readings[name]
                self._history.setdefault(name, History()).add(monitor.step, values)
        if stage == ("validate" if "validate" in monitor.readings else "train"):
            self._undrawn = monitor.step
            if monitor.step - self._drawn_at >= self.every_n_steps:
                self._draw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last reading."""
        self._draw(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return limits and history."""
        return {
            "limits": self._limits.known,
            "history": {name: history.state_dict() for name, history in self._history.items()},
            "drawn_at": self._drawn_at,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self._limits = Limits(state_dict["limits"])
        self._history = {name: History.of(state) for name, state in state_dict["history"].items()}
        self._drawn_at = int(state_dict["drawn_at"])

    def __getstate__(self) -> dict[str, Any]:
        """Drop the monitor."""
        return super().__getstate__() | {"_monitor": None, "_undrawn": None}

    def _draw(self, trainer: Trainer) -> None:
        if self._undrawn is None or self._monitor is None:
            return
        self._drawn_at, self._undrawn = self._undrawn, None
        with harmless("PathFigures: drawing", self._said):
            readings, source = shown_readings(self._monitor.readings)
            sources = {"energies": source, "singular_values_of_A": TRAINING, "path": TRAINING}
            for name, figure in self._figures(trainer, self._monitor, readings):
                if name in sources:
                    figure.axes[0].set_title(f"{figure.axes[0].get_title()},\n{sources[name]}", fontsize="medium")
                self._limits.widen(name, figure.axes[0])
                figure.set_size_inches(*_INCHES)
                log_figure(trainer, f"layers/{name}", figure, self._drawn_at)
            log_text(trainer, "layers/diagnosis", "\n\n".join(paragraphs(readings, source)), self._drawn_at)

    def _figures(self, trainer: Trainer, monitor: EnergyMonitor, readings: Readings) -> Iterator[tuple[str, Any]]:
        yield from figures_of(readings, monitor.samples)
        weights = None if has_flat_parameters(trainer) else _weights_of(monitor)
        if weights is not None and len(weights) == len(readings.step_sizes):  # else refined
            yield "singular_values_of_W", plot_singular_values(singular_values(weights), readings.positions, "W")
        for name, record in _heat_maps(readings).items():
            if name not in self._history or record.heat_map is None:
                continue
            steps, rows = self._history[name].table()
            if name == STEP_SIZE.key and torch.allclose(rows, rows[:1].expand_as(rows), rtol=1e-6, equal_nan=True):
                continue  # never changed
            label = f"{record.title} ρ" if name == STEP_SIZE.key else record.title
            yield name, plot_heat_map(rows, steps, label, f"{label} of training batches", record.heat_map)


def _heat_maps(readings: Readings) -> dict[str, Quantity]:
    shown = records_at((*readings.records.values(), STEP_SIZE), readings.effective_depth)
    return {name: record for name, record in shown.items() if record.heat_map is not None}


def _weights_of(monitor: EnergyMonitor) -> Tensor | None:
    """All W_l, shape (L, w, d), if the path knows them and they are not sharded."""
    path: Any = monitor.path
    if not knows_weights(path) or any(map(is_sharded, path.layers.parameters())):
        return None
    weights: Tensor = path.weights().detach()
    return weights if bool(torch.isfinite(weights).all()) else None
