"""The callback that acts where a reading meets a condition: it warns, logs, stops the fit or freezes a layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer

from lightning_leaky.callbacks import _trainer
from lightning_leaky.callbacks._hooked import HookedCallback
from lightning_leaky.callbacks._loggers import log_text
from lightning_leaky.callbacks.energy_monitor import EnergyMonitor
from lightning_leaky.explain import conditions
from lightning_leaky.explain.conditions import Condition, Latch, layer_number, told_name
from lightning_leaky.hooks.steps import Span
from lightning_leaky.metrics.readings import Readings
from lightning_leaky.paths.layers import named_layers
from lightning_leaky.utilities.harmless import harmless, warn_once
from lightning_leaky.utilities.imports import located
from lightning_leaky.utilities.optimizer_steps import held_parameters
from lightning_leaky.utilities.processes import warn

Action: TypeAlias = Callable[[Trainer, LightningModule, str, float], object]
"""What to do of one's own: called with the trainer, the module, a log key and its value, on every process."""

_ACTIONS = ("warn", "log", "alert", "stop", "freeze")
_TAKE_TEXT = {"TensorBoardLogger", "MLFlowLogger"}


class LayerAlert(HookedCallback):
    """Acts where a number that an `EnergyMonitor` of the same trainer reads meets a condition, with hysteresis [ours].

    Each number, as that of each layer, is looked at by itself:

    - It fires once, at the last of `patience` readings in a row at which `condition` holds.
    - It is armed again at the last of `patience` readings in a row at which the condition is left: its number is beyond
      `release` too. Until then it fires no more.
    - A number between the threshold and `release` starts either count anew. So does NaN, unless the condition holds at
      NaN.

    So noise between the threshold and `release` fires at most once, and from one firing to the next there are at least
    ``2 * patience`` readings. Only readings of a fit count. They are the same on all processes, so that all decide
    alike. What fails is one warning; only the action ``"stop"`` stops a training.

    A frozen layer stays frozen to the end of the fit, in a resumed run too. Its gradients are taken away before each
    optimizer step that Lightning takes: gradient clipping does not count them, and neither momentum nor weight decay
    move its parameters. (LBFGS does, which moves all parameters as one.) The backward pass goes through it as before;
    buffers and step-sizes are not frozen. Where a `LayerRefiner` changes the layers, all thaw and count anew.

    Args:
        quantity: What to look at: the key of a quantity, as ``"kinetic_energy"``, of all layers; the log key of one
            layer, ``"kinetic_energy/layer_03"``, or of a summary, ``"hamiltonian/spread"``; or a verdict of `Diagnosis`
            that is yes or no, or a tuple of layers, as ``"verdict/has_bottleneck"`` or ``"verdict/moves_little"``.
        condition: ``"<"``, ``"<="``, ``">"`` or ``">="`` and a number, as ``"< 0.01"``; ``"is nan"`` or
            ``"is not finite"``; of a verdict ``"is true"`` or ``"is false"``; or a function of the number that returns
            whether it holds (in YAML its import path).
        patience: How many readings in a row it takes.
        action: What to do, or a list of such: ``"warn"``; ``"log"``, a text ``alerts/...`` for TensorBoard and MLflow;
            ``"alert"``, by a logger whose experiment has a method ``alert``, as that of Weights & Biases; (both warn
            where no logger can;) ``"stop"`` the fit; ``"freeze"`` the layer; or a function ``(trainer, pl_module, key,
            value)``, called on every process (in YAML its import path).
        layers: Numbers of the layers to look at, from 1; ``None`` for all.
        release: Where a comparison is left; ``None`` for the threshold and a quarter of its size: ``"< 0.01"`` is left
            from 0.0125 on. Give one for a threshold of 0, which has no size.
        stage: Which readings: ``"train"``, or ``"validate"`` (of a second loader ``"validate/dataloader_idx_1"``).
        prefix: That of the monitor, where it has one.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import lightning as L
        >>> alert = LayerAlert("kinetic_energy", "< 0.01", patience=5, action=["warn", "freeze"])
        >>> trainer = L.Trainer(callbacks=[EnergyMonitor(), alert], logger=False)
    """

    def __init__(
        self,
        quantity: str,
        condition: str | conditions.Test,
        patience: int = 3,
        action: str | Action | Sequence[str | Action] = "warn",
        layers: Sequence[int] | None = None,
        release: float | None = None,
        stage: str = "train",
        prefix: str = "",
    ) -> None:
        conditions.check_quantity(quantity)
        if patience < 1:
            raise ValueError(f"`patience` must be at least 1, got {patience!r}.")
        if not re.fullmatch(r"train|validate(/dataloader_idx_\d+)?", stage):
            raise ValueError(
                f'`stage` must be "train", "validate" or, of a further loader, "validate/dataloader_idx_1", got '
                f"{stage!r}."
            )
        self._condition = Condition.of(condition, release)
        self._actions = _resolved(action)
        if not conditions.is_of_layers(quantity) and (layers is not None or "freeze" in self._actions):
            argument, value = ("layers", layers) if layers is not None else ("action", action)
            raise ValueError(
                f"`{argument}` must name no layers where `quantity` is {quantity!r}, a number of the whole path, got "
                f"{value!r}; look at a quantity of layers, or leave it out."
            )
        if layers is not None and (not layers or min(layers) < 1):
            raise ValueError(f"`layers` must be numbers of layers, counted from 1, got {layers!r}; None takes all.")
        self.quantity, self.condition, self.patience, self.action = quantity, condition, patience, action
        self.layers, self.release, self.stage, self.prefix = layers, release, stage, prefix
        self._observer = "train" if stage == "train" else "evaluation"  # which of a monitor's
        self._latches: dict[str, Latch] = {}
        self._frozen: list[str] = []
        self._said: set[str] = set()

    @property
    def state_key(self) -> str:
        """Key of this callback's state in a checkpoint: of all of its arguments."""
        told = {name: getattr(self, name) for name in ("quantity", "patience", "release", "stage", "prefix")}
        chosen = None if self.layers is None else [*self.layers]
        actions = [told_name(one) for one in self._actions]
        return self._generate_state_key(**told, condition=told_name(self.condition), action=actions, layers=chosen)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the parameters that are frozen."""
        return tuple(self._frozen)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Count anew, with no layer frozen; a checkpoint that is restored afterwards brings its own back."""
        if stage == "fit":
            self._latches, self._frozen = {}, []
            self._said.clear()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where nothing will be looked at, and why."""
        with harmless("LayerAlert: a look at the monitor", self._said):
            why = self._why_blind(trainer)
            if why is not None:
                self._say_blind(why)

    def on_readings(self, trainer: Trainer, pl_module: LightningModule, monitor: EnergyMonitor, stage: str) -> None:
        """Count a reading of a fit, and act where it is time to."""
        is_fit = trainer.state.fn == "fit" and not trainer.sanity_checking
        if not is_fit or stage != self.stage or monitor.prefix != self.prefix:
            return
        fired: dict[str, float] = {}
        with harmless("LayerAlert: a look at a reading", self._said):
            readings = monitor.readings[stage]
            for key, value in self._watched(readings).items():
                with harmless("LayerAlert: a condition", self._said):
                    if self._latches.setdefault(key, Latch()).fires(value, self._condition, self.patience):
                        fired[key] = value
        if fired:
            self._act(trainer, pl_module, monitor, readings, fired)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Take the gradients of frozen layers away: what has none, no optimizer moves.

        `requires_grad` stays as it is: DDP has counted the parameters, and waits for the gradient of each.
        """
        for name in self._frozen:
            with harmless("LayerAlert: keeping a layer frozen", self._said):
                pl_module.get_parameter(name).grad = None

    def on_layers_changed(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew: a name, and a number, may now be another layer's."""
        self._latches.clear()
        if self._frozen:
            self._frozen.clear()
            warn_once("LayerAlert: the layers have changed, and none is frozen any more.", "thawed", self._said)

    def state_dict(self) -> dict[str, Any]:
        """Return what has been counted, and what is frozen."""
        latches = {key: (latch.is_armed, latch.count) for key, latch in self._latches.items()}
        return {"latches": latches, "frozen": list(self._frozen)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it, before or after the fit has started: strategies differ in the order."""
        self._latches = {key: Latch(*state) for key, state in state_dict["latches"].items()}
        self._frozen = list(state_dict["frozen"])

    def _say_blind(self, why: str) -> None:
        warn_once(f"LayerAlert: {self.quantity!r} is not looked at: {why}", "blind", self._said)

    def _why_blind(self, trainer: Trainer) -> str | None:
        """Why there will be nothing to look at, as far as is known before the first reading, and what to change."""
        monitors = [one for one in _trainer.callbacks_of(trainer) if isinstance(one, EnergyMonitor)]
        if not monitors:
            return "no EnergyMonitor reads it. Add one, as in callbacks=[EnergyMonitor(), LayerAlert(...)]."
        monitor = next((one for one in monitors if one.prefix == self.prefix), None)
        if monitor is None:
            return f"`prefix` must be that of a monitor, {[one.prefix for one in monitors]}, got {self.prefix!r}."
        observer = monitor.observers.get(self._observer)
        if self.stage != "train" and (observer is None or not _trainer.validates(trainer)):
            return 'no validation set is read. Give the fit one, leave `on_validation` set, or choose stage="train".'
        keys = [] if observer is None else [record.key for record in observer.quantities]
        return None if conditions.is_read(self.quantity, keys) else self._unread(keys)

    def _unread(self, keys: list[str]) -> str:
        return f"what is read is {keys}. Choose one of these, or ask EnergyMonitor for it by `quantities`."

    def _watched(self, readings: Readings) -> dict[str, float]:
        """The numbers to look at, by log key."""
        found, length = conditions.watched(readings, self.quantity), len(readings.step_sizes)
        if not found:
            self._say_blind(self._unread([*readings.quantities, *readings.summaries()]))
        if self.layers is None:
            return found
        if max(self.layers) > length:
            self._say_blind(f"`layers` must be at most {length}, the layers there are, got {self.layers!r}.")
        return {key: value for key, value in found.items() if layer_number(key) in self.layers}

    def _act(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        monitor: EnergyMonitor,
        readings: Readings,
        fired: Mapping[str, float],
    ) -> None:
        text = self._text(monitor, readings, fired)
        for action in self._actions:
            with harmless(f"LayerAlert: the action {told_name(action)!r}", self._said):
                if callable(action):
                    for key, value in fired.items():
                        action(trainer, pl_module, key, value)
                elif action == "warn":
                    warn(text)
                elif action == "log":
                    self._log(trainer, text, monitor.step)
                elif action == "alert":
                    self._alert(trainer, text)
                elif action == "stop":
                    trainer.should_stop = True
                    rank_zero_info(f"{text} The fit stops.")
                else:
                    self._freeze(trainer, monitor, readings, fired)
                    rank_zero_info(f"{text} Frozen from here on.")

    def _text(self, monitor: EnergyMonitor, readings: Readings, fired: Mapping[str, float]) -> str:
        """What has happened, in one line."""
        times = "1 reading" if self.patience == 1 else f"{self.patience} readings in a row"
        seen = []
        for key, value in fired.items():
            number = layer_number(key)
            name = f" ({readings.names[number - 1]})" if number and readings.names else ""
            seen.append(f"{self.prefix}{key}{name} is {value:.4g}")
        return (
            f"LayerAlert at step {monitor.step}: {told_name(self.condition)!r} holds for {times} ({self.stage}): "
            f"{', '.join(seen)}."
        )

    def _log(self, trainer: Trainer, text: str, step: int) -> None:
        if any(_TAKE_TEXT.intersection(_trainer.class_names(logger)) for logger in trainer.loggers):
            log_text(trainer, f"{self.prefix}alerts/{self.quantity}", text, step)
        else:
            warn(text)

    def _alert(self, trainer: Trainer, text: str) -> None:
        if not trainer.is_global_zero:
            return
        loggers: list[Any] = trainer.loggers
        experiments: list[Any] = [getattr(logger, "experiment", None) for logger in loggers]
        # By the class: the stand-in of a disabled logger answers to any name.
        able = [one for one in experiments if callable(getattr(type(one), "alert", None))]
        for experiment in able:
            experiment.alert(title=f"{self.prefix}{self.quantity} {told_name(self.condition)}", text=text)
        if not able:
            warn(text)

    def _freeze(self, trainer: Trainer, monitor: EnergyMonitor, readings: Readings, fired: Mapping[str, float]) -> None:
        """Freeze layers, unless an optimizer had nothing left to move: an fp16 scaler raises there."""
        module, path = trainer.lightning_module, monitor.observers[self._observer].path
        # A linear map of a plain stack, and what follows it, are one layer by the name of the map.
        spans = {id(layer[0]): layer for layer in (path.layers if path else ()) if isinstance(layer, Span)}
        modules, names = named_layers(module), {id(one): name for name, one in module.named_parameters()}
        chosen = [modules[readings.names[number - 1]] for number in filter(None, map(layer_number, fired))]
        found = [names[id(one)] for layer in chosen for one in spans.get(id(layer), layer).parameters()]
        frozen = dict.fromkeys([*self._frozen, *found])
        if all(names.get(held) in frozen for held in held_parameters(*trainer.optimizers)):
            raise ValueError('no parameter would be left to train. Choose fewer `layers`, or the action "stop".')
        self._frozen = list(frozen)


def _resolved(action: str | Action | Sequence[str | Action]) -> tuple[str | Action, ...]:
    """Actions, those that are import paths as functions."""
    told = [action] if isinstance(action, str) or callable(action) else list(action)
    found: list[Any] = [one if callable(one) or one in _ACTIONS else located(one) for one in told]
    if not found or not all(callable(one) or one in _ACTIONS for one in found):
        raise ValueError(
            f"`action` must be chosen from {list(_ACTIONS)}, be a function or its import path, or a list of such, got "
            f"{action!r}."
        )
    return tuple(found)
