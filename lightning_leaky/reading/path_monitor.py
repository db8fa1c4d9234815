"""Readings in a training loop of one's own, without a trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_leaky.metrics.quantity import Quantity
from lightning_leaky.metrics.readings import Readings
from lightning_leaky.paths.layers import LayerChoice
from lightning_leaky.paths.leaky_path import LeakyPath
from lightning_leaky.reading.observer import PathObserver
from lightning_leaky.reading.observers import evaluation_observer, say_notes, training_observer, warn_of_nan
from lightning_leaky.reading.passed_batch import Batch
from lightning_leaky.reading.settings import ReadingOptions, ReadingSettings
from lightning_leaky.utilities.arguments import takes_first
from lightning_leaky.utilities.data_parallel import DataParallelRank
from lightning_leaky.utilities.harmless import harmless, warn_once
from lightning_leaky.utilities.optimizer_steps import heard_optimizer
from lightning_leaky.utilities.processes import is_flattened, is_sharded

_MANY_BATCHES = 1000
_PERIOD = 50


@dataclass(frozen=True)
class PathMonitorArguments(ReadingOptions):
    """Arguments of `PathMonitor` after the model, for type checkers."""

    layers: LayerChoice | None = None
    quantities: Sequence[str | Quantity] | None = None
    every_n_steps: int | None = None
    optimizer: Optimizer | Sequence[Optimizer] | None = None
    evaluation: bool = False
    data_parallel: DataParallelRank | None = None


class PathMonitor:
    """Reads a path in a training loop of your own, as `EnergyMonitor` does under a trainer.

    Call `batch` around the passes of each (micro-)batch, `read` before each optimizer step, and `detach` at the end.
    The readings are those of `EnergyMonitor`, bit for bit, and losses stay bit-equal. Each of several processes must
    call `read` equally often. Make the monitor after the process group, and before the first pass of a compiled model.

    A reading that fails is a warning, once; only a lost process stops the loop.

    Args:
        model: The network, wrapped or not.
        layers: As of `EnergyMonitor`.
        quantities: As of `EnergyMonitor`.
        every_n_steps: Calls of `read` between two readings; ``None`` for 50.
        optimizer: One or several that train the model. Their weight decay is part of λ.
        evaluation: Whether each `read` is of a data set, all batches since the last one, without gradients.
        data_parallel: Which processes have the same samples; ``None`` if each has its own.
        **settings: Other arguments of `ReadingSettings`.

    Attributes:
        readings: The last readings; ``None`` before the first.
        num_steps: How often `read` was called in training. Set it if you resume a run.

    Raises:
        ValueError: If an argument is out of range, no module matches `layers`, a match contains another, or momenta
            lack a weight decay.

    Example:
        >>> import torch
        >>> from lightning_leaky import LeakyResNet
        >>> network = LeakyResNet(3, 3, width=8, num_layers=4, effective_depth=2.0)
        >>> optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        >>> monitor = PathMonitor(network, every_n_steps=2, optimizer=optimizer)
        >>> for inputs in torch.randn(4, 16, 3):
        ...     with monitor.batch(inputs):
        ...         network(inputs).square().mean().backward()
        ...     if readings := monitor.read():
        ...         print(monitor.num_steps, list(readings.quantities))
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        2 ['cost_of_identity', 'kinetic_energy', 'block_influence', 'potential_energy', 'energy_hamiltonian']
        4 ['cost_of_identity', 'kinetic_energy', 'block_influence', 'potential_energy', 'energy_hamiltonian']
        >>> monitor.detach()
    """

    @takes_first(nn.Module, PathMonitorArguments)
    def __init__(
        self,
        model: nn.Module,
        layers: LayerChoice | None = None,
        quantities: Sequence[str | Quantity] | None = None,
        every_n_steps: int | None = None,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        evaluation: bool = False,
        data_parallel: DataParallelRank | None = None,
        **settings: Any,
    ) -> None:
        if every_n_steps is not None and (evaluation or every_n_steps < 1):
            raise ValueError(
                "`every_n_steps` must be at least 1, and left out of an evaluation, where every `read` reads; got "
                f"{every_n_steps!r} and evaluation={evaluation}."
            )
        self.every_n_steps = 1 if evaluation else every_n_steps or _PERIOD
        self.evaluation, self.num_steps = evaluation, 0
        self.readings: Readings | None = None
        chosen = ReadingSettings(quantities=quantities, **settings)
        several = optimizer if isinstance(optimizer, Sequence) else [] if optimizer is None else [optimizer]
        kind = evaluation_observer if evaluation else training_observer
        observer = kind(model, layers, chosen, [heard_optimizer(one) for one in several], data_parallel)
        if observer is None:
            raise ValueError(
                f"`quantities` must hold one without gradients if evaluation=True, got {chosen.quantities}; "
                "measure_path(..., cost=...) reads these of a data set."
            )
        self._said: set[str] = set()
        observer.said = self._said
        self._observer: PathObserver | None = observer.attach()
        self._num_batches, self._num_unread = 0, 0
        self._scale: float | None = None
        self._is_waiting = False  # a batch has passed that is not drained
        self._versions: dict[nn.Parameter, int] = {}

    @property
    def is_due(self) -> bool:
        """Whether the next `read` returns readings."""
        return self.evaluation or (self.num_steps + 1) % self.every_n_steps == 0

    @property
    def path(self) -> LeakyPath | None:
        """The layers read, once found."""
        return None if self._observer is None else self._observer.path

    @contextmanager
    def batch(self, data: Any = None, gradient_scale: float = 1.0, fresh: Tensor | None = None) -> Iterator[None]:
        """Context of a batch's passes; a batch that raises is not read.

        Args:
            data: The batch, for its padding mask, and for an `evaluation`.
            gradient_scale: Factor of its cost in the backward pass, for gradients and momenta.
            fresh: Which samples a `DistributedSampler` does not repeat, shape (batch,).
        """
        self.arm(data, gradient_scale, fresh)
        try:
            yield
        except BaseException:
            self._drop()
            raise
        if self._observer is not None:
            self._observer.capture.armed = False  # what passes from now on is of no batch

    def arm(self, data: Any = None, gradient_scale: float = 1.0, fresh: Tensor | None = None) -> None:
        """Keep what passes until `read` or the next `arm`; for a framework that calls you before and after a batch.

        Arguments are as of `batch`.
        """
        observer = self._observer
        if observer is None:
            self._say_detached()
            return
        self._drain()
        self._count_batch()
        if not self.is_due and observer.path is not None:
            return
        with harmless("PathMonitor: a look at a batch", self._said):
            if self.is_due:
                self._scale = gradient_scale
                self._is_waiting = observer.arm(Batch(data, fresh))
                self._num_batches += 1
            else:  # any batch shows where the blocks are
                self._scale, self._is_waiting = None, observer.arm()
            observer.capture.step_gradients.in_backward = True
            self._versions = self._versions or self._versions_now()

    def read(self, parameter_scale: float | None = None) -> Readings | None:
        """Return the readings since the last call, before an optimizer step: a collective if they are due.

        Args:
            parameter_scale: Factor of the mean cost in `.grad`, for Pontryagin's quantities: 1 after
                ``scaler.unscale_``. ``None`` if gradients still have the `gradient_scale`.

        Returns:
            The readings, the same on every process; ``None`` if none are due or no batch could be read.
        """
        observer, is_due = self._observer, self.is_due
        if observer is None:
            self._say_detached()
            return None
        self._drain(is_last=not self.evaluation)
        self.num_steps, self._num_unread = self.num_steps + 1, 0
        if not is_due:
            self._versions = {}
            return None
        readings = None
        with harmless("PathMonitor: a reading", self._said, is_own=True):  # all processes together
            scale = self._scale_of_parameters() if parameter_scale is None else parameter_scale
            readings = observer.compute(None if self._have_weights_moved() else scale)
            readings = self._checked(readings)
        self._num_batches, self._versions = 0, {}
        observer.reset()
        say_notes(observer, self._said)
        self.readings = self.readings if readings is None else readings
        return readings

    def detach(self) -> None:
        """Remove all hooks; the last `readings` stay."""
        if self._observer is not None:
            self._observer.detach()
        self._observer, self._is_waiting, self._versions = None, False, {}

    def _drain(self, is_last: bool = False) -> None:
        """Add the batch that has passed."""
        if self._observer is not None and self._is_waiting:
            self._is_waiting, self._observer.capture.armed = False, True
            self._observer.drain(self._scale, is_last)
            say_notes(self._observer, self._said)

    def _drop(self) -> None:
        """Forget a batch that has passed in part."""
        if self._observer is not None and self._is_waiting:
            self._is_waiting, self._observer.capture.armed = False, False
            self._observer.capture.clear()
            self._num_batches -= self._scale is not None

    def _scale_of_parameters(self) -> float | None:
        """Factor of the mean cost in the parameters' gradients."""
        if self._scale is None or self._observer is None:
            return None
        return self._scale * (self._num_batches if self._observer.settings.loss_reduction == "mean" else 1)

    def _versions_now(self) -> dict[nn.Parameter, int]:
        """Numbers that a change of weights raises, of the layers that quantities compare with their weights."""
        observer = self._observer
        if observer is None or not any(one.needs in ("parameters", "weights") for one in observer.quantities):
            return {}
        held = dict.fromkeys(one for layer in observer.capture.layers for one in layer.parameters())
        return {one: one._version for one in held if not (is_lazy(one) or is_sharded(one) or is_flattened(one))}

    def _have_weights_moved(self) -> bool:
        own = set() if self.path is None else set(self.path.layers.parameters())
        return any(one in own and one._version != version for one, version in self._versions.items())

    def _checked(self, readings: Readings | None) -> Readings | None:
        """Return readings unless weights have moved, and warn of what is not finite."""
        if self._have_weights_moved():
            warn_once(
                "PathMonitor: a step is not read, because the weights moved between its batch and `read`. Call `read` "
                "before `optimizer.step()`.",
                "moved",
                self._said,
            )
            return None
        if readings is not None:
            hint = ": the backward pass belongs inside `batch`, and before `read`"
            warn_of_nan(readings, self._said, "PathMonitor", hint=hint)
        return readings

    def _count_batch(self) -> None:
        self._num_unread += 1
        if self._num_unread == _MANY_BATCHES and not self.evaluation:
            warn_once(
                f"PathMonitor: {_MANY_BATCHES} batches have passed without a call of `read`, and nothing is read. Call "
                "it before each optimizer step; for a data set pass evaluation=True.",
                "unread",
                self._said,
            )

    def _say_detached(self) -> None:
        warn_once("PathMonitor is detached, or a copy, and reads nothing. Make a new one.", "detached", self._said)

    def __getstate__(self) -> dict[str, Any]:
        """Drop the hooks and the model: a copy is detached."""
        return {**self.__dict__, "_observer": None, "_is_waiting": False, "_versions": {}}
