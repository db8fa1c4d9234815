"""Reading a path, without a trainer: from forward hooks to `Readings`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_leaky.capture import PathCapture
from lightning_leaky.functional.k_norm import KNorm
from lightning_leaky.functional.moments import momentum_of
from lightning_leaky.functional.step_sizes import equidistant_step_sizes
from lightning_leaky.leaky_path import LeakyPath, find_leaky_path, step_sizes_of
from lightning_leaky.metrics.momenta import LossReduction
from lightning_leaky.metrics.path_reader import MOMENTA, QUANTITIES, PathReader, Readings, check_quantities
from lightning_leaky.processes import greatest


class BlockPath(nn.Module):
    """Layers of any network, read as a path with equidistant step-sizes (a plain ResNet where L̃ = 0).

    Args:
        layers: Shape-preserving layers in the order in which they run.
        effective_depth: L̃ ≥ 0 for the energies.
    """

    step_sizes: Tensor

    def __init__(self, layers: Sequence[nn.Module], effective_depth: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.effective_depth = effective_depth
        self.register_buffer("step_sizes", equidistant_step_sizes(len(self.layers)))


class PathObserver:
    """Hooks on a path and the sums they feed: arm it, run batches, drain after each, compute.

    Args:
        path: What to read.
        quantities: Names from `lightning_leaky.metrics.path_reader.QUANTITIES`.
        gamma: The stabiliser of the K-norm, or ``None`` for a relative one; see `KNorm`.
        gamma_rel: γ0 of the relative stabiliser.
        weight_decay: λ > 0, where a momentum quantity is read.
        loss_reduction: ``"mean"`` where the cost is a mean over the samples of a batch, ``"sum"`` where it is a sum.

    Raises:
        ValueError: If a quantity is not known, or a momentum quantity is wanted without a weight decay.
    """

    def __init__(
        self,
        path: LeakyPath,
        quantities: Collection[str],
        gamma: float | None = None,
        gamma_rel: float = 1e-3,
        weight_decay: float | None = None,
        loss_reduction: LossReduction = "mean",
    ) -> None:
        self.path = path
        self.quantities = check_quantities(quantities)
        self.weight_decay = weight_decay
        self.loss_reduction: LossReduction = loss_reduction
        self.reads_momenta = bool(set(MOMENTA) & set(self.quantities))
        if self.reads_momenta:
            check_weight_decay(weight_decay, self.quantities)
        self.k_norm = KNorm(
            gamma, gamma_rel, getattr(path, "activation", "relu"), getattr(path, "constant_column", True)
        )
        self.capture = PathCapture(list(path.layers), gradients=self.reads_momenta)
        self._reader: PathReader | None = None
        self._is_empty = True
        self._warned_of_silence = False
        self._step_sizes = step_sizes_of(path)

    def attach(self) -> PathObserver:
        """Register the forward hooks and return this observer."""
        self.capture.attach()
        return self

    def detach(self) -> None:
        """Remove the hooks and forget every tensor."""
        self.capture.detach()
        self.capture.clear()

    def arm(self) -> None:
        """Keep what passes from now on."""
        self.capture.clear()
        self.capture.armed = True
        self._step_sizes = step_sizes_of(self.path)

    def disarm(self) -> None:
        """Keep nothing that passes from now on; gradients still arrive for what has passed."""
        self.capture.armed = False

    def drain(self, gradient_scale: float = 1.0) -> None:
        """Add what has passed to the sums, and forget it; a batch in which a layer was silent is left out.

        Args:
            gradient_scale: What the cost was multiplied by before its backward pass (AMP, accumulation).

        Raises:
            ValueError: If a layer changes the shape, or a representation is neither (N, w) nor (batch, tokens, w).
        """
        self.disarm()
        previous, current = _present(self.capture.previous), _present(self.capture.current)
        if len(current) == len(self.path.layers):
            self._update(previous, current, self._momenta(current, gradient_scale) if self.reads_momenta else None)
        else:
            self._warn_of_silence()
        self.capture.clear()

    def reset(self) -> None:
        """Forget every batch."""
        self._is_empty = True
        if self._reader is not None:
            self._reader.reset()

    def compute(self) -> Readings | None:
        """Return the readings of all batches since the last reset, or ``None`` if no process has ever read one.

        Under torch.distributed every process must call it: one without a batch joins the others with an empty one.
        """
        width = greatest(0 if self._reader is None else self._reader.width, self.path.step_sizes.device)
        if width == 0:
            return None
        if self._is_empty:
            nothing = [torch.zeros(0, width, device=self.path.step_sizes.device)] * len(self.path.layers)
            self._update(nothing, nothing, nothing)
        return self._reader_for(width, self.path.step_sizes.device).compute()

    def _update(self, previous: list[Tensor], current: list[Tensor], momenta: list[Tensor] | None) -> None:
        reader = self._reader_for(current[0].shape[-1], current[0].device)
        reader.update(previous, current, self._step_sizes, momenta, self._weights())
        self._is_empty = False

    def _warn_of_silence(self) -> None:
        if not self._warned_of_silence:
            self._warned_of_silence = True
            silent = [index + 1 for index, seen in enumerate(self.capture.current) if seen is None]
            warnings.warn(
                f"A batch is not read: layers {silent} of the path did not run in it, or ran in code that was compiled "
                "before they were watched.",
                stacklevel=2,
            )

    def _reader_for(self, width: int, device: torch.device) -> PathReader:
        if self._reader is None:
            self._reader = PathReader(
                len(self.path.layers),
                width,
                self.path.effective_depth,
                self.quantities,
                self.k_norm,
                self.loss_reduction,
            )
        # MPS has no float64: there the sums live on the CPU.
        return self._reader.to("cpu" if device.type == "mps" else device)

    def _momenta(self, current: list[Tensor], gradient_scale: float) -> list[Tensor]:
        """B_l = −(1/λ) ∂C/∂A_l; NaN where no gradient came."""
        scaled_weight_decay = check_weight_decay(self.weight_decay, self.quantities) * gradient_scale
        return [
            momentum_of(
                torch.full_like(representation, torch.nan) if gradient is None else _rows(gradient), scaled_weight_decay
            )
            for representation, gradient in zip(current, self.capture.gradients, strict=True)
        ]

    def _weights(self) -> Tensor | None:
        weights: Callable[[], Tensor] | None = getattr(self.path, "weights", None)
        return weights() if weights is not None and "criticality_residual" in self.quantities else None


def check_weight_decay(weight_decay: float | None, quantities: Collection[str]) -> float:
    """Return a weight decay λ > 0, or raise ValueError naming the quantities that need one."""
    if weight_decay is None or not 0 < weight_decay < float("inf"):
        wanted = sorted(set(MOMENTA) & set(quantities))
        raise ValueError(
            f"`weight_decay` must be a finite number > 0 to read {wanted}, got {weight_decay!r}; give the λ of the "
            "objective, or leave these quantities out."
        )
    return weight_decay


def measure_path(
    model: nn.Module,
    batches: Iterable[Any],
    quantities: Collection[str] | None = None,
    cost: Callable[[Tensor, Tensor], Tensor] | None = None,
    weight_decay: float | None = None,
    gamma: float | None = None,
    gamma_rel: float = 1e-3,
) -> Readings:
    """Exact readings of a network over a data set, the momentum readings included.

    The network is left as it was: its mode is restored and its gradients are not touched.

    Args:
        model: A network with step-sizes, or a module (a LightningModule, say) that contains one and calls it.
        batches: Pairs (inputs, targets), on the device of the model; bare inputs where no cost is given.
        quantities: Names from `lightning_leaky.metrics.path_reader.QUANTITIES`; all that can be read by default.
        cost: C(outputs, targets), a mean over the samples of its batch, for the momentum readings.
        weight_decay: λ > 0, for the momentum readings.
        gamma: The stabiliser of the K-norm, or ``None`` for a relative one.
        gamma_rel: γ0 of the relative stabiliser.

    Returns:
        The readings.

    Raises:
        ValueError: If there are no batches, a quantity is not known, or momentum readings lack cost or weight decay.

    Example:
        >>> from lightning_leaky import LeakyResNet
        >>> network = LeakyResNet(3, 3, width=8, num_layers=4, effective_depth=2.0)
        >>> batch = (torch.eye(3), torch.eye(3))
        >>> readings = measure_path(network, [batch], cost=torch.nn.functional.mse_loss, weight_decay=0.1)
        >>> readings["hamiltonian"].shape
        torch.Size([4])
    """
    if quantities is None:
        quantities = [name for name in QUANTITIES if name not in MOMENTA or (cost is not None and weight_decay)]
    observer = PathObserver(find_leaky_path(model), quantities, gamma, gamma_rel, weight_decay)
    if observer.reads_momenta and cost is None:
        raise ValueError(f"`cost` must be given to read {sorted(set(MOMENTA) & set(quantities))}, got None.")
    was_training = model.training
    model.eval()
    observer.attach()
    try:
        for batch in batches:
            inputs, targets = batch if isinstance(batch, (tuple, list)) else (batch, None)
            _run_batch(model, observer, inputs, targets, cost if observer.reads_momenta else None)
    finally:
        observer.detach()
        model.train(was_training)
    readings = observer.compute()
    if readings is None:
        raise ValueError("`batches` must hold at least one batch, got none.")
    return readings


def _run_batch(
    model: nn.Module,
    observer: PathObserver,
    inputs: Tensor,
    targets: Any,
    cost: Callable[[Tensor, Tensor], Tensor] | None,
) -> None:
    observer.arm()
    # Towards the inputs too, so that the gradient passes every layer even where parameters are frozen.
    inputs = inputs.detach().requires_grad_(cost is not None and inputs.is_floating_point())
    sources = [tensor for tensor in (inputs, *model.parameters()) if tensor.requires_grad]
    with torch.set_grad_enabled(cost is not None):
        outputs = model(inputs)
        if cost is not None:  # `grad` returns gradients and leaves `.grad` alone
            torch.autograd.grad(cost(outputs, targets), sources, allow_unused=True)
    observer.drain()


def _present(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    return [_rows(tensor) for tensor in tensors if tensor is not None]


def _rows(tensor: Tensor) -> Tensor:
    """Samples in rows: (N, w) as it is, (batch, tokens, w) with all positions as samples."""
    if tensor.ndim not in (2, 3):
        raise ValueError(
            f"`layers` must map (N, w) or (batch, tokens, w) to the same shape, got {tuple(tensor.shape)}; "
            "choose other layers."
        )
    return tensor.reshape(-1, tensor.shape[-1])
