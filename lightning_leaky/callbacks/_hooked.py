"""The bases of our callbacks."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lightning_leaky.callbacks._trainer import note_place
from lightning_leaky.paths.leaky_path import path_name


class HookedCallback(Callback):
    """Releases the model when a run ends, and in copies."""

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say where a process ended; Lightning calls no teardown after an exception."""
        note_place(trainer, exception)
        self._detach()

    def _detach(self) -> None:
        """Remove the hooks."""

    def __getstate__(self) -> dict[str, Any]:
        """Drop the module's `log`, which Lightning adds."""
        return {name: value for name, value in vars(self).items() if name not in ("log", "log_dict")}


class PathFollower(HookedCallback):
    """A hook during a fit, and its state."""

    def __init__(self, settings: object, prefix: str) -> None:
        self.settings, self.prefix = dict(vars(settings)), prefix
        self._hook: Any = None
        self._restored: dict[str, Any] | None = None
        self._final_state: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the last fit; a learning-rate finder restores its state as if resumed."""
        if stage == "fit":
            self._detach()  # from a trial that broke
            self._final_state, path = {}, self.settings["path"]
            if isinstance(path, nn.Module):  # a checkpoint can hold its name
                self.settings["path"] = path_name(pl_module, path) or path

    def state_dict(self) -> dict[str, Any]:
        """Return the hook's state, or that at the end of a fit."""
        return self._final_state if self._hook is None else dict(self._hook.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the hook's state, before or after it exists: strategies differ."""
        if self._hook is not None:
            self._hook.load_state_dict(state_dict)
        elif state_dict:
            self._restored = state_dict

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_hook": None, "_final_state": self.state_dict()}

    @property
    def _path_key(self) -> dict[str, Any]:
        """What tells paths apart in a checkpoint; empty by default, as in earlier versions."""
        path = self.settings["path"]
        return {} if path is None else {"path": path if isinstance(path, str) else id(path)}

    def _restore(self) -> None:
        if self._restored is not None:
            self._hook.load_state_dict(self._restored)
            self._restored = None

    def _detach(self) -> None:
        if self._hook is not None:
            self._final_state = self.state_dict()
            self._hook.detach()
            self._hook = None
