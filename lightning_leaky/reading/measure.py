"""Exact readings of a network over a data set, without a trainer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_leaky.metrics.path_reader import MOMENTA, QUANTITIES, Readings
from lightning_leaky.metrics.segments import Form
from lightning_leaky.paths.block_path import path_of
from lightning_leaky.paths.layers import LayerChoice
from lightning_leaky.paths.leaky_path import knows_weights
from lightning_leaky.reading.layout import ATTENTION_MASK, Layout, PaddingMask
from lightning_leaky.reading.observer import PathObserver
from lightning_leaky.reading.sample import PathSample
from lightning_leaky.utilities.progress import watched


def measure_path(
    model: nn.Module,
    batches: Iterable[Any],
    quantities: Collection[str] | None = None,
    cost: Callable[[Any, Any], Tensor] | None = None,
    weight_decay: float | None = None,
    gamma: float | None = None,
    gamma_rel: float = 1e-3,
    layers: LayerChoice | None = None,
    effective_depth: float = 0.0,
    layout: Layout | None = None,
    padding_mask: PaddingMask = ATTENTION_MASK,
    form: Form = "auto",
    progress: bool = False,
) -> Readings:
    """Exact readings of a network over a data set, the momentum readings included.

    The network is left as it was: its mode is restored and its gradients are not touched.

    Args:
        model: Any network, a LightningModule included.
        batches: Pairs (inputs, targets), on the device of the model; bare inputs where no cost is given. Inputs that
            are a dictionary are passed by keyword.
        quantities: Names from `lightning_leaky.metrics.path_reader.QUANTITIES`; all that can be read by default.
        cost: C(outputs, targets), a mean over the samples of its batch, for the momentum readings.
        weight_decay: λ > 0, for the momentum readings.
        gamma: The stabiliser of the K-norm, or ``None`` for a relative one.
        gamma_rel: γ0 of the relative stabiliser.
        layers: Which layers, see `lightning_leaky.paths.layers.choose_layers`; ``None`` for the leaky path of the
            model, or for its longest run of shape-preserving blocks where it has none.
        effective_depth: L̃ of layers that are no leaky path's.
        layout: How a representation becomes a matrix.
        padding_mask: Where the inputs say which positions are real, see `real_positions`; ``None`` reads padding too.
        form: ``"auto"``, ``"moments"`` or ``"samples"``; see `lightning_leaky.metrics.segments.SegmentReaders`.
        progress: Whether to show a bar of the batches, in a terminal.

    Returns:
        The readings.

    Raises:
        ValueError: If there are no batches, one cannot be read, a quantity is not known, or momentum readings lack cost
            or weight decay.

    Example:
        >>> from lightning_leaky import LeakyResNet
        >>> network = LeakyResNet(3, 3, width=8, num_layers=4, effective_depth=2.0)
        >>> batch = (torch.eye(3), torch.eye(3))
        >>> readings = measure_path(network, [batch], cost=torch.nn.functional.mse_loss, weight_decay=0.1)
        >>> readings["hamiltonian"].shape
        torch.Size([4])
    """
    path = path_of(model, layers, effective_depth)
    if quantities is None:
        can_read_momenta = cost is not None and bool(weight_decay) and (layout is None or layout.reads_all_positions)
        quantities = [name for name in QUANTITIES if name not in MOMENTA or can_read_momenta]
        if not knows_weights(path):
            quantities = [name for name in quantities if name != "criticality_residual"]
    observer = PathObserver(
        model,
        path,
        quantities,
        gamma,
        gamma_rel,
        weight_decay,
        effective_depth=effective_depth,
        layout=layout,
        form=form,
        padding_mask=padding_mask,
        strict=True,
    )
    if observer.reads_momenta and cost is None:
        raise ValueError(f"`cost` must be given to read {sorted(set(MOMENTA) & set(quantities))}, got None.")
    _observe(observer, model, watched(batches) if progress else batches, cost if observer.reads_momenta else None)
    readings = observer.compute()
    if readings is None:
        raise ValueError("`batches` must hold at least one batch, got none.")
    return readings


def sample_path(
    model: nn.Module,
    batch: Any,
    num_samples: int = 200,
    layers: LayerChoice | None = None,
    effective_depth: float = 0.0,
    layout: Layout | None = None,
    padding_mask: PaddingMask = ATTENTION_MASK,
) -> list[PathSample]:
    """A few samples on their way through a network, for pictures.

    Args:
        model: Any network, a LightningModule included; it is left as it was.
        batch: A pair (inputs, targets), or bare inputs, as one of `measure_path`.
        num_samples: Rows to keep at most.
        layers: As of `measure_path`, and so are the others.
        effective_depth: L̃ of layers that are no leaky path's.
        layout: How a representation becomes a matrix.
        padding_mask: Where the inputs say which positions are real.

    Returns:
        One sample a segment of the path.

    Raises:
        ValueError: If the batch cannot be read.

    Example:
        >>> from lightning_leaky import LeakyResNet
        >>> network = LeakyResNet(3, 3, width=8, num_layers=4, effective_depth=2.0)
        >>> sample_path(network, (torch.eye(3), torch.arange(3)))[0].labels
        tensor([0, 1, 2])
    """
    path = path_of(model, layers, effective_depth)
    observer = PathObserver(
        model,
        path,
        ["cost_of_identity"],
        effective_depth=effective_depth,
        layout=layout,
        padding_mask=padding_mask,
        strict=True,
    )
    observer.num_shown = num_samples
    _observe(observer, model, [batch], cost=None)
    return observer.samples


def _observe(
    observer: PathObserver, model: nn.Module, batches: Iterable[Any], cost: Callable[[Any, Any], Tensor] | None
) -> None:
    """Run batches through a model in evaluation mode, and its observer with them."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    observer.attach()
    try:
        for batch in batches:
            inputs, targets = _inputs_and_targets(batch)
            observer.arm(inputs, targets=targets)
            _run_batch(model, inputs, targets, cost)
            observer.drain()
    finally:
        observer.detach()
        for module, was_training in modes.items():  # parts may have modes of their own, as a frozen batch norm
            module.training = was_training


def _inputs_and_targets(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, (tuple, list)):
        return batch, None
    if len(batch) not in (1, 2):
        raise ValueError(f"`batches` must hold inputs, or pairs of inputs and targets, got {len(batch)} parts.")
    return batch[0], batch[1] if len(batch) == 2 else None


def _run_batch(model: nn.Module, inputs: Any, targets: Any, cost: Callable[[Any, Any], Tensor] | None) -> None:
    """Run a batch forward and, where there is a cost, backward."""
    named = dict(inputs) if isinstance(inputs, Mapping) else {"": inputs}
    # Towards the inputs too, so that the gradient passes every layer even where parameters are frozen.
    named = {
        name: value.detach().requires_grad_(cost is not None and value.is_floating_point())
        if isinstance(value, Tensor)
        else value
        for name, value in named.items()
    }
    possible = [*named.values(), *model.parameters()]
    sources = [source for source in possible if isinstance(source, Tensor) and source.requires_grad]
    with torch.set_grad_enabled(cost is not None):
        outputs = model(**named) if isinstance(inputs, Mapping) else model(named[""])
        if cost is not None:  # `grad` returns gradients and leaves `.grad` alone
            torch.autograd.grad(cost(outputs, targets), sources, allow_unused=True)
