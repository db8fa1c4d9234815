"""The LightningModule of a Leaky ResNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR
from torchmetrics import MeanSquaredError, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_leaky.functional._checks import check_non_negative, check_positive
from lightning_leaky.metrics.base import SampleMean
from lightning_leaky.models.leaky_resnet import LeakyResNet
from lightning_leaky.models.settings import NetworkSettings
from lightning_leaky.utilities.processes import summed


def default_learning_rate(effective_depth: float) -> float:
    """Adam's learning rate ``1e-3 · max(1, 1.5 L̃)``, because weights travel a distance of order L̃ [ours].

    Example:
        >>> default_learning_rate(0.0), round(default_learning_rate(7.0), 4)
        (0.001, 0.0105)
    """
    return 1e-3 * max(1.0, 1.5 * effective_depth)


class HalfCosine(CosineAnnealingLR):
    """Half a cosine over the optimizer steps of a fit, constant if a fit has no end.

    The first step asks for their number, because the trainer restores loaders after it configures optimizers.
    """

    def __init__(self, optimizer: Optimizer, num_steps: Callable[[], float], eta_min: float) -> None:
        self._num_steps = num_steps
        super().__init__(optimizer, T_max=0, eta_min=eta_min)

    def get_lr(self) -> list[float | Tensor]:
        """Return the rate of each group."""
        if self.last_epoch > 0 and not self.T_max:
            self.T_max = self._num_steps()  # type: ignore[assignment]  # may be infinite
        return super().get_lr()

    def state_dict(self) -> dict[str, Any]:
        """Leave out the callable."""
        return {name: value for name, value in super().state_dict().items() if name != "_num_steps"}


class RegularizedNetwork(Protocol):
    """A network with an L2 term."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the outputs."""

    def regularizer(self) -> Tensor:
        """Return the L2 term, a scalar."""


class LeakyResNetModule(LightningModule):
    """Trains a `LeakyResNet` on ``C + (λ/(2L̃)) Σ_l ρ_l ‖W_l‖²_F`` (arXiv 2405.17573, section 1.1).

    Each learned input and output map M adds ``(λ/2) ‖M‖²_F``.

    Subclasses may override `cost`, `loss`, `configure_metrics`, `configure_optimizers`, `step` and `configure_network`.
    `load_from_checkpoint` also restores adapted step-sizes.

    Log keys: ``train/loss`` at logging steps; ``val/cost``, ``test/cost`` and metrics (``val/mse`` or ``val/accuracy``)
    over whole data sets. Overrides of ``on_{validation,test}_epoch_{start,end}`` must call ``super()``.

    Args:
        in_features: Size of a flattened input.
        out_features: Size of an output, or the number of classes.
        width: Width w of the path.
        num_layers: Number of layers L.
        effective_depth: L̃ ≥ 0.
        weight_decay: λ ≥ 0, part of the loss. Do not add an optimizer's own.
        task: ``"regression"``, the paper's squared error, summed over outputs and averaged over samples, or
            ``"classification"``, cross-entropy of integer classes.
        learning_rate: Adam's initial rate, which falls to 1 % by half a cosine; ``None`` for `default_learning_rate`.
        **network: Further arguments of `LeakyResNet`.

    Raises:
        ValueError: If a number is out of range or a name unknown.

    Example:
        >>> module = LeakyResNetModule(in_features=30, out_features=30, width=100, num_layers=20, effective_depth=7.0)
        >>> module(torch.zeros(5, 30)).shape
        torch.Size([5, 30])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        width: int = 100,
        num_layers: int = 20,
        effective_depth: float = 7.0,
        weight_decay: float = 0.0,
        task: Literal["regression", "classification"] = "regression",
        learning_rate: float | None = None,
        **network: Any,
    ) -> None:
        super().__init__()
        settings = NetworkSettings(in_features, out_features, width, num_layers, effective_depth, **network)
        if task not in ("regression", "classification"):
            raise ValueError(f'`task` must be "regression" or "classification", got {task!r}.')
        if learning_rate is not None:
            check_positive("learning_rate", learning_rate)
        # A subclass may save its own argument of that name.
        self.network_arguments = dict(vars(settings))
        self.save_hyperparameters(self.network_arguments)
        self.save_hyperparameters()
        self.out_features = out_features
        self.weight_decay = check_non_negative("weight_decay", weight_decay)
        self.task = task
        self.network: RegularizedNetwork = self.configure_network()
        self.learning_rate = default_learning_rate(effective_depth) if learning_rate is None else learning_rate
        self.val_cost, self.val_metrics = SampleMean(), self.configure_metrics("val")
        self.test_cost, self.test_metrics = SampleMean(), self.configure_metrics("test")

    def configure_network(self) -> RegularizedNetwork:
        """Return a `LeakyResNet` of `network_arguments`."""
        return LeakyResNet(**self.network_arguments)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs, shape (N, out_features)."""
        return self.network(inputs.flatten(1))

    def cost(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the data cost C, a mean over samples, which momentum readings differentiate."""
        if self.task == "classification":
            return F.cross_entropy(outputs, targets)
        return (outputs - targets).square().sum(-1).mean()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return C plus λ times the network's L2 term."""
        return self.cost(outputs, targets) + self.weight_decay * self.network.regularizer()

    def configure_metrics(self, stage: str) -> MetricCollection:
        """Return metrics of ``"val"`` or ``"test"``, logged as ``val/…`` over the data set."""
        if self.task == "classification":
            accuracy = MulticlassAccuracy(self.out_features, average="micro")
            return MetricCollection({"accuracy": accuracy}, prefix=f"{stage}/")
        return MetricCollection({"mse": MeanSquaredError()}, prefix=f"{stage}/")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return Adam with half a cosine to 1 % of the learning rate."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        # Lightning cannot clip fused gradients under an fp16 scaler.
        fused = all(parameter.device.type == "cpu" for parameter in parameters) or None
        optimizer = torch.optim.Adam(parameters, lr=self.learning_rate, fused=fused)
        scheduler = HalfCosine(optimizer, self._num_steps, self.learning_rate / 100)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def step(self, batch: Sequence[Tensor], stage: str) -> Tensor:
        """Return the loss, or update metrics of ``"val"`` or ``"test"``."""
        inputs, targets = batch
        outputs = self(inputs)
        if stage == "train":
            loss = self.loss(outputs, targets)
            self.log("train/loss", loss)
            return loss
        cost, (mean_cost, metrics) = self.cost(outputs, targets), self._metrics(stage)
        mean_cost.update(cost, num_samples=len(targets))
        metrics.update(outputs, targets)
        return cost

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        return self.step(batch, "train")

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Update the validation metrics."""
        self.step(batch, "val")

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Update the test metrics."""
        self.step(batch, "test")

    def on_validation_epoch_start(self) -> None:
        """Reset the validation metrics."""
        self._reset_metrics("val")

    def on_test_epoch_start(self) -> None:
        """Reset the test metrics."""
        self._reset_metrics("test")

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics that were updated."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics that were updated."""
        self._log_metrics("test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the outputs."""
        inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
        outputs: Tensor = self(inputs)
        return outputs

    def _num_steps(self) -> float:
        return self.trainer.estimated_stepping_batches

    def _reset_metrics(self, stage: str) -> None:
        # Lightning does not after an exception, and its own resets break later fits.
        for metric in self._metrics(stage):
            metric.reset()

    def _log_metrics(self, stage: str) -> None:
        # Not in `step`: others would wait on a process without batches.
        mean_cost, metrics = self._metrics(stage)
        updates = [mean_cost.update_count, sum(metric.update_count for metric in metrics.values())]
        of_cost, of_metrics = summed(torch.tensor(updates, device=self.device)).tolist()
        if of_cost:
            self.log(f"{stage}/cost", mean_cost)
        if of_metrics:
            self.log_dict(metrics)

    def _metrics(self, stage: str) -> tuple[SampleMean, MetricCollection]:
        return (self.val_cost, self.val_metrics) if stage == "val" else (self.test_cost, self.test_metrics)
