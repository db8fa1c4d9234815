"""The base of our callbacks."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_leaky.callbacks._trainer import note_place


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
