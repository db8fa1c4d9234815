"""Readings over a data set, without a trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_leaky.metrics.quantity import Quantity
from lightning_leaky.metrics.readings import Readings
from lightning_leaky.metrics.records import QUANTITIES
from lightning_leaky.paths.block_path import path_of
from lightning_leaky.paths.layers import LayerChoice, device_of
from lightning_leaky.reading.block_parameters import ParameterReader
from lightning_leaky.reading.observer import PathObserver
from lightning_leaky.reading.passed_batch import Batch
from lightning_leaky.reading.sample import PathSample
from lightning_leaky.reading.settings import ReadingSettings, readable_quantities
from lightning_leaky.utilities.data_parallel import DataParallelRank
from lightning_leaky.utilities.progress import watched


def measure_path(
    model: nn.Module,
    batches: Iterable[Any],
    quantities: Sequence[str | Quantity] | None = None,
    cost: Callable[[Any, Any], Tensor] | None = None,
    weight_decay: float | None = None,
    layers: LayerChoice | None = None,
    progress: bool = False,
    data_parallel: DataParallelRank | None = None,
    **settings: Any,
) -> Readings:
    """Exact readings of a network over a data set, the momentum readings included.

    The network keeps its mode and its gradients.

    Args:
        model: Any network, a LightningModule included.
        batches: Pairs (inputs, targets), on the device of the model, or bare inputs without a cost. Inputs that are a
            dictionary are passed by keyword.
        quantities: Which readings, as of `ReadingSettings`; by default all of this package that can be read.
        cost: C(outputs, targets), a mean over the samples of its batch, for the readings of gradients and momenta.
        weight_decay: λ > 0, for the momentum readings and the Hamiltonian of any block, as of `ReadingSettings`.
        layers: Which layers, as of `EnergyMonitor`.
        progress: Whether to show a progress bar in a terminal.
        data_parallel: Which processes have the same samples, as in tensor parallelism; ``None`` if each has its own.
        **settings: As of `ReadingSettings`; by default `halves` is true and `precision` is ``"high"``, and
            `exact` is true unless `max_rows` is given.

    Returns:
        The readings.

    Raises:
        ValueError: If there are no batches, one cannot be read, a quantity is unknown, or momentum readings lack cost
            or weight decay.

    Example:
        >>> from lightning_leaky import LeakyResNet
        >>> network = LeakyResNet(3, 3, width=8, num_layers=4, effective_depth=2.0)
        >>> batch = (torch.eye(3), torch.eye(3))
        >>> readings = measure_path(network, [batch], cost=torch.nn.functional.mse_loss, weight_decay=0.1)
        >>> readings["hamiltonian"].shape
        torch.Size([4])
    """
    usual = {"halves": True, "precision": "high", "exact": settings.get("max_rows") is None}
    chosen = ReadingSettings(quantities, weight_decay=weight_decay or None, **{**usual, **settings})
    path = path_of(model, layers, chosen.effective_depth)
    if quantities is None:
        has_gradients = cost is not None and chosen.reads_all_positions
        keys = readable_quantities(chosen.fits_weights_of(path), has_gradients, has_gradients and bool(weight_decay))
        records, modules = [QUANTITIES[key] for key in keys], model if path is None else path.layers
        if chosen.branches or ParameterReader(None, adds_up=False, is_measured=True).why_not(
            records, modules, weight_decay
        ):
            keys = [key for key in keys if QUANTITIES[key].needs != "parameters"]
        chosen = chosen.reading(keys)
    observer = PathObserver(model, path, chosen, strict=True, data_parallel=data_parallel)
    if observer.reads_gradients and cost is None:
        wanted = [record.key for record in observer.quantities if record.has_gradients]
        raise ValueError(f"`cost` must be given to read {wanted}, got None.")
    read_batches(observer, model, watched(batches) if progress else batches, cost if observer.reads_gradients else None)
    readings = observer.compute()
    if readings is None:
        raise ValueError("`batches` must hold at least one batch, got none.")
    return readings


def sample_path(
    model: nn.Module, batch: Any, num_samples: int = 200, layers: LayerChoice | None = None, **settings: Any
) -> list[PathSample]:
    """A few samples along a path, for pictures.

    Args:
        model: As of `measure_path`; it is left as it was.
        batch: One batch, as of `measure_path`.
        num_samples: Rows to keep at most.
        layers: As of `measure_path`.
        **settings: As of `ReadingSettings`.

    Returns:
        One sample per segment of the path.

    Raises:
        ValueError: If the batch cannot be read.

    Example:
        >>> from lightning_leaky import LeakyResNet
        >>> network = LeakyResNet(3, 3, width=8, num_layers=4, effective_depth=2.0)
        >>> sample_path(network, (torch.eye(3), torch.arange(3)))[0].labels
        tensor([0, 1, 2])
    """
    chosen = ReadingSettings(["cost_of_identity"], **settings)
    observer = PathObserver(model, path_of(model, layers, chosen.effective_depth), chosen, strict=True)
    observer.num_shown = num_samples
    read_batches(observer, model, [batch], cost=None)
    return observer.samples


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode, and restore each module's own."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, was_training in modes.items():
            module.training = was_training


def same_noise(model: nn.Module) -> AbstractContextManager[None]:
    """Restore the random generators on exit, so that the network draws the same numbers each time."""
    device = device_of(model)
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def read_batches(
    observer: PathObserver, model: nn.Module, batches: Iterable[Any], cost: Callable[[Any, Any], Tensor] | None
) -> None:
    """Let an observer read batches of a model in evaluation mode."""
    observer.attach()
    reads_parameters = any(record.needs == "parameters" for record in observer.quantities)
    try:
        with evaluating(model):
            for given in batches:
                inputs, targets = inputs_and_targets(given)
                batch = Batch(inputs, None, targets, {} if reads_parameters else None)
                if observer.arm(batch):
                    _run_batch(observer, model, batch, cost)
                    observer.drain()
    finally:
        observer.detach()


def inputs_and_targets(batch: Any) -> tuple[Any, Any]:
    """Split a pair, or inputs alone."""
    if not isinstance(batch, (tuple, list)):
        return batch, None
    if len(batch) not in (1, 2):
        raise ValueError(f"`batches` must hold inputs, or pairs of inputs and targets, got {len(batch)} parts.")
    return batch[0], batch[1] if len(batch) == 2 else None


def run_model(model: nn.Module, inputs: Any) -> Any:
    """Return a model's outputs; a dictionary of inputs is passed by keyword."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def _run_batch(
    observer: PathObserver, model: nn.Module, batch: Batch, cost: Callable[[Any, Any], Tensor] | None
) -> None:
    inputs = batch.data
    named = dict(inputs) if isinstance(inputs, Mapping) else {"": inputs}
    # Inputs need gradients too, so that these pass every layer even if parameters are frozen.
    for name, value in named.items():
        if isinstance(value, Tensor):
            named[name] = value.detach().requires_grad_(cost is not None and value.is_floating_point())
    possible = [*named.values(), *model.parameters()]
    sources = [source for source in possible if isinstance(source, Tensor) and source.requires_grad]
    with torch.set_grad_enabled(cost is not None):
        outputs = run_model(model, named if isinstance(inputs, Mapping) else named[""])
        if cost is not None:
            gradients = _run_backward(observer, cost(outputs, batch.targets), sources)
            if batch.gradients is not None:
                found = zip(map(id, sources), gradients, strict=True)
                batch.gradients.update({source: one for source, one in found if one is not None})


def _run_backward(observer: PathObserver, cost: Tensor, sources: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Return the gradients, and keep every `.grad`."""
    try:
        return torch.autograd.grad(cost, sources, allow_unused=True, retain_graph=True)
    except RuntimeError as error:
        if "checkpoint" not in str(error):
            raise
        # Reentrant checkpointing refuses `grad`, perhaps halfway.
        observer.capture.step_gradients.forget()
        kept = [(source, source.grad) for source in sources]
        for source in sources:
            source.grad = None
        try:
            cost.backward()  # type: ignore[no-untyped-call]
            return [source.grad for source in sources]
        finally:
            for source, gradient in kept:
                source.grad = gradient
