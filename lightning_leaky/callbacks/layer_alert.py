"""The callback that acts on conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer

from lightning_leaky.callbacks import _loggers, _trainer
from lightning_leaky.callbacks._hooked import HookedCallback
from lightning_leaky.callbacks.energy_monitor import EnergyMonitor
from lightning_leaky.explain import conditions
from lightning_leaky.hooks.state import Span
from lightning_leaky.paths.layers import named_layers
from lightning_leaky.utilities.arguments import located
from lightning_leaky.utilities.harmless import harmless, warn_once
from lightning_leaky.utilities.optimizer_steps import held_parameters
from lightning_leaky.utilities.processes import warn

Action: TypeAlias = Callable[[Trainer, LightningModule, str, float], object]

# With the loggers that do it.
_ACTIONS = {
    "warn": (),
    "log": ("TensorBoardLogger", "MLFlowLogger"),
    "alert": ("WandbLogger",),
    "stop": (),
    "freeze": (),
}


class LayerAlert(HookedCallback):
    """Acts if a number that an `EnergyMonitor` beside it reads meets a condition, with hysteresis [ours].

    A number fires if `condition` holds at `patience` readings in a row, and is armed again after as many beyond
    `release`. A frozen layer has no gradients (LBFGS still moves it) until the fit ends or a `LayerRefiner` changes
    layers.

    Args:
        quantity: Key of all layers, ``"kinetic_energy"``, of one, ``"kinetic_energy/layer_03"``, of a summary,
            ``"hamiltonian/spread"``, or a verdict of `Diagnosis`, ``"verdict/has_bottleneck"``.
        condition: ``"< 0.01"`` (or ``<=``, ``>``, ``>=``), ``"is nan"``, ``"is true"``, ``"is false"``, or a function.
        patience: Number of readings in a row.
        action: ``"warn"``, ``"log"`` a text, ``"alert"`` by Weights & Biases, ``"stop"``, ``"freeze"``, a function
            ``(trainer, pl_module, key, value)``, or a list. In YAML functions are import paths.
        release: End of a comparison; by default a quarter of the threshold beyond it.
        stage: ``"train"``, ``"validate"`` or ``"validate/dataloader_idx_1"``.
        prefix: The monitor's.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[EnergyMonitor(), LayerAlert("kinetic_energy", "< 0.01")], logger=False)
    """

    def __init__(
        self,
        quantity: str,
        condition: str | conditions.Test,
        patience: int = 3,
        action: str | Action | Sequence[str | Action] = "warn",
        release: float | None = None,
        stage: str = "train",
        prefix: str = "",
    ) -> None:
        conditions.needed(quantity)
        self._condition = conditions.Condition.of(condition, release)
        told = [action] if isinstance(action, str) or callable(action) else action
        self._actions: list[Any] = [one if callable(one) or one in _ACTIONS else located(one) for one in told]
        is_refused = "freeze" in self._actions and not conditions.is_of_layers(quantity)
        if is_refused or not self._actions or None in self._actions:
            raise ValueError(f"`action` must be of {[*_ACTIONS]} (layers only) or a function, got {action!r}.")
        if patience < 1 or not stage.startswith(("train", "validate")):
            raise ValueError(f'`patience` must be >= 1, `stage` "train" or "validate", got {patience} and {stage!r}.')
        self.quantity, self.condition, self.patience, self.action = quantity, condition, patience, action
        self.release, self.stage, self.prefix = release, stage, prefix
        self._latches: dict[str, tuple[bool, int]] = {}
        self.frozen: list[str] = []
        self._said: set[str] = set()

    @property
    def state_key(self) -> str:
        """Key of all arguments."""
        told = (self.quantity, self.condition, self.patience, self.release, self.stage, self.prefix, *self._actions)
        return f"LayerAlert{[*map(_name, told)]}"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reset."""
        if stage == "fit":
            self._latches, self.frozen, self._said = {}, [], set()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if nothing will be read, and let monitors see gradients first."""
        _trainer.move_behind(trainer, self, EnergyMonitor)
        callbacks = _trainer.callbacks_of(trainer)
        observers = {one.prefix: one.observers for one in callbacks if isinstance(one, EnergyMonitor)}
        reader = "train" if self.stage == "train" else "evaluation" if _trainer.validates(trainer) else None
        if reader not in observers.get(self.prefix, ()):
            self._say_unseen([])

    def on_readings(self, trainer: Trainer, pl_module: LightningModule, monitor: EnergyMonitor, stage: str) -> None:
        """Count a reading, and act."""
        is_fit = trainer.state.fn == "fit" and not trainer.sanity_checking
        if not is_fit or (stage, monitor.prefix) != (self.stage, self.prefix):
            return
        readings, fired = monitor.readings[stage], {}
        with harmless("LayerAlert: a reading", self._said):
            found = conditions.watched(readings, self.quantity)
            if not found:
                self._say_unseen([*readings.quantities, *readings.summaries()])
            for key, value in found.items():
                with harmless("LayerAlert: a condition", self._said):
                    was_armed, count = self._latches.get(key, (True, 0))
                    self._latches[key] = self._condition.after(value, self.patience, was_armed, count)
                    if was_armed and not self._latches[key][0]:
                        fired[key] = value
        places = {key: readings.names[int(key.rpartition("_")[2]) - 1] for key in fired if "/layer_" in key}
        told = (f"{self.prefix}{key} ({places.get(key, 'path')}) is {value:.4g}" for key, value in fired.items())
        text = f"LayerAlert at step {monitor.step}, {stage}: {_name(self.condition)!r} holds, {', '.join(told)}."
        for action in self._actions if fired else ():
            with harmless(f"LayerAlert: the action {_name(action)!r}", self._said):
                if callable(action):
                    for key, value in fired.items():
                        action(trainer, pl_module, key, value)
                elif action == "freeze":
                    self._freeze(trainer, monitor, *places.values())
                else:
                    self._tell(trainer, action, text, monitor.step)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Remove gradients of frozen layers; DDP waits for them, so `requires_grad` stays."""
        for name in self.frozen:
            pl_module.get_parameter(name).grad = None

    def on_layers_changed(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset: names may be of other layers."""
        self.setup(trainer, pl_module, "fit")

    def state_dict(self) -> dict[str, Any]:
        """Return counts and frozen parameters."""
        return {"latches": {**self._latches}, "frozen": [*self.frozen]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self._latches, self.frozen = {**state_dict["latches"]}, [*state_dict["frozen"]]

    def _say_unseen(self, keys: list[str]) -> None:
        why = f"an EnergyMonitor with prefix={self.prefix!r} must read it in stage={self.stage!r}, and reads {keys}"
        warn_once(f"LayerAlert: {self.quantity!r} is not looked at: {why}.", "unseen", self._said)

    def _tell(self, trainer: Trainer, action: str, text: str, step: int) -> None:
        loggers = [one for _, one in _loggers._loggers(trainer, _ACTIONS[action])]
        if action == "log":
            _loggers.log_text(trainer, f"{self.prefix}alerts/{self.quantity}", text, step)
        for one in loggers if action == "alert" else ():
            one.experiment.alert(title=f"{self.prefix}{self.quantity} {_name(self.condition)}", text=text)
        if action == "stop":
            trainer.should_stop = True
            rank_zero_info(f"{text} The fit stops.")
        elif not loggers:
            warn(text)

    def _freeze(self, trainer: Trainer, monitor: EnergyMonitor, *layers: str) -> None:
        module, paths = trainer.lightning_module, [one.path for one in monitor.observers.values() if one.path]
        # A linear map names its span.
        spans = {id(layer[0]): layer for path in paths for layer in path.layers if isinstance(layer, Span)}
        modules, names = named_layers(module), {id(one): name for name, one in module.named_parameters()}
        chosen = [spans.get(id(modules[name]), modules[name]) for name in layers]
        frozen = dict.fromkeys([*self.frozen, *(names[id(one)] for layer in chosen for one in layer.parameters())])
        if all(names.get(held) in frozen for held in held_parameters(*trainer.optimizers)):
            raise ValueError('no parameter would be left to train. Choose one layer, or "stop".')
        self.frozen = [*frozen]
        rank_zero_info(f"LayerAlert: {self.frozen} are frozen.")


def _name(told: Any) -> Any:
    """A function's name, the same in every run, else `told`."""
    return getattr(told, "__qualname__", type(told).__qualname__) if callable(told) else told
