"""What our callbacks have in common: they let go of a model when a run ends."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class HookedCallback(Callback):
    """A callback that lets go of a model when a run ends; a copy of it leaves the model behind."""

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the hooks."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the hooks. Lightning calls no teardown after an exception."""
        self._detach()

    def _detach(self) -> None:
        """Remove what hooks there are."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what Lightning gives a callback: the module's own `log`, and with it the module."""
        return {name: value for name, value in vars(self).items() if name not in ("log", "log_dict")}
