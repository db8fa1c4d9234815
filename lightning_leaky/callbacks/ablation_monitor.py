"""The callback that measures what each block is worth."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_leaky.callbacks import _trainer
from lightning_leaky.callbacks._hooked import HookedCallback
from lightning_leaky.callbacks.strategies import check_strategy
from lightning_leaky.metrics.readings import layer_key
from lightning_leaky.paths.layers import LayerChoice
from lightning_leaky.reading.ablate import Ablation, Order, ablate_path
from lightning_leaky.reading.removal import Cost
from lightning_leaky.utilities.arguments import located
from lightning_leaky.utilities.harmless import harmless, warn_once


class AblationMonitor(HookedCallback):
    """Measures what leaving out each block costs; see `ablate_path`.

    It runs L + 1 passes over a few validation batches, in evaluation mode and without gradients, and logs as
    ``removal_cost/layer_03`` what leaving out the third block adds to the cost. Training does not change.

    Args:
        cost: C(outputs, targets) of a batch that is a pair, a mean over samples, or a metric; a function or its import
            path. ``forward`` gives outputs; dictionaries of inputs become keywords. ``None`` takes the module's method
            ``cost``, or the ``loss`` of outputs, as of Hugging Face.
        every_n_epochs: Epochs between two measurements; ``None`` for the end of the fit only.
        max_batches: Batches of the first validation loader to use, per process.
        layers: Which blocks, as of `EnergyMonitor`.
        order: Which blocks to leave out together, as of `ablate_path`.
        prefix: Start of the log keys.
        **settings: How to find blocks, as of `ReadingSettings`.

    Attributes:
        ablation: The last measurement.

    Raises:
        ValueError: If a number is below 1 or an import path names no function.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[AblationMonitor(every_n_epochs=5)], logger=False)
    """

    def __init__(
        self,
        cost: Cost | str | None = None,
        every_n_epochs: int | None = None,
        max_batches: int = 8,
        layers: LayerChoice | None = None,
        order: Order = (),
        prefix: str = "",
        **settings: Any,
    ) -> None:
        for name, value in (("every_n_epochs", every_n_epochs), ("max_batches", max_batches)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value!r}.")
        if isinstance(cost, str) and not callable(located(cost)):
            raise ValueError(f"`cost` must be a function, or the import path of one, got {cost!r}.")
        self.cost, self.every_n_epochs, self.max_batches = cost, every_n_epochs, max_batches
        self.layers, self.order, self.prefix, self.settings = layers, order, prefix, settings
        self.ablation: Ablation | None = None
        self._measured_at: int | None = None
        self._said: set[str] = set()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset."""
        self.ablation, self._measured_at = None, None
        self._said.clear()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure if due."""
        if self.every_n_epochs is not None and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._measure(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure unless the last epoch did."""
        if self._measured_at != _trainer.num_steps(trainer):
            self._measure(trainer, pl_module)

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A loader draws a random number; `isolate_rng` restores nothing after an error.
        step = _trainer.num_steps(trainer)
        with isolate_rng(), harmless("AblationMonitor: measuring", self._said, step=step):
            check_strategy(trainer, "AblationMonitor", said=self._said)
            batches = list(self._batches(trainer))
            is_flat = _trainer.has_flat_parameters(trainer)
            if is_flat or not batches:
                why = "there are no validation batches. Give the fit a validation loader."
                if is_flat:
                    why = "FSDPStrategy leaves pieces of the weights; use ModelParallelStrategy."
                warn_once(f"AblationMonitor measures nothing: {why}", why, self._said)
                return
            with trainer.precision_plugin.forward_context():
                self.ablation = ablate_path(
                    pl_module, batches, self._cost_of(pl_module), self.layers, self.order, **self.settings
                )
            self._measured_at = _trainer.num_steps(trainer)
            _trainer.log_scalars(trainer, self._scalars(self.ablation))

    def _batches(self, trainer: Trainer) -> Iterator[Any]:
        given = trainer.val_dataloaders
        loaders = [] if given is None else CombinedLoader(given).flattened
        for batch in islice(next(iter(loaders), ()), self.max_batches):
            converted = trainer.precision_plugin.convert_input(batch)
            converted = trainer.lightning_module._on_before_batch_transfer(converted, dataloader_idx=0)
            yield trainer.strategy.batch_to_device(converted, dataloader_idx=0)

    def _cost_of(self, pl_module: LightningModule) -> Cost:
        cost: Any = located(self.cost) if isinstance(self.cost, str) else self.cost or getattr(pl_module, "cost", None)
        return cost or _loss_of

    def _scalars(self, ablation: Ablation) -> dict[str, torch.Tensor]:
        number = len(ablation.names)
        keys = [f"{self.prefix}removal_cost/{layer_key(index, number)}" for index in range(number)]
        return dict(zip(keys, ablation.increases, strict=True))


def _loss_of(outputs: Any, targets: Any) -> torch.Tensor:
    loss = outputs.get("loss") if isinstance(outputs, dict) else getattr(outputs, "loss", None)
    if loss is None:
        raise ValueError("`cost` must be given for a module that has no method `cost`, as F.cross_entropy; got None.")
    return torch.as_tensor(loss)
