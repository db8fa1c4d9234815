"""What all metrics of a path share: sums over samples for all layers in one tensor a state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module
from torchmetrics import Metric

from lightning_leaky.functional._checks import working_dtype
from lightning_leaky.functional.k_norm import KNorm
from lightning_leaky.plotting import plot_along_path
from lightning_leaky.utilities.processes import summed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


class SumMetric(Metric):
    """Base of metrics whose states are sums over samples, reduced over processes and kept wide.

    Args:
        **kwargs: Arguments of `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"dist_sync_fn": summed_state, **kwargs})

    def add_sum(self, name: str, *shape: int) -> None:
        """Add a state that is a sum over samples."""
        self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Module:
        """Follow a move to another device, but not a cast: sums stay in the working dtype."""

        def move(tensor: Tensor) -> Tensor:
            device = fn(tensor.new_empty(0)).device
            return tensor.to(device, working_dtype(device) if tensor.dtype == torch.float64 else tensor.dtype)

        return super()._apply(move, *args, **kwargs)


class LayerMetric(SumMetric):
    """Base of the metrics of a path: one value per layer, exact over batches and processes.

    States are stacked over the layers, so the number of collectives does not depend on L. For a single layer `compute`
    returns a scalar: torchmetrics squeezes single values.

    Args:
        num_layers: L, the number of layers read.
        width: w, the common width of their representations.
        k_norm: Which K-norm; its activation and constant column shape the features even where no norm is taken.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: If `num_layers` or `width` is not positive.
    """

    def __init__(self, num_layers: int, width: int, k_norm: KNorm | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name, value in (("num_layers", num_layers), ("width", width)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value!r}.")
        self.num_layers = num_layers
        self.width = width
        self.k_norm = KNorm() if k_norm is None else k_norm
        self.feature_width = width + 1 if self.k_norm.constant_column else width

    def layers_of(self, **matrices: Sequence[Tensor] | Tensor) -> Iterator[list[Tensor]]:
        """Yield, layer by layer, the matrices of that layer on the metric's device, in float64 (float32 on MPS).

        One layer at a time, so that one layer's copies exist at a time. Values are not checked: a NaN belongs in the
        reading of its layer, not in a crash of the training it watches.
        """
        self.check_layers(**matrices)
        # All layers are checked by now: an update that is refused adds nothing.
        for group in zip(*matrices.values(), strict=True):
            yield [matrix.to(self.device, working_dtype(self.device)) for matrix in group]

    def check_layers(self, **matrices: Sequence[Tensor] | Tensor) -> None:
        """Raise ValueError unless each sequence holds one (N, w) floating-point matrix for each layer."""
        for name, sequence in matrices.items():
            if len(sequence) != self.num_layers:
                raise ValueError(
                    f"`{name}` must hold one matrix for each of {self.num_layers} layers, got {len(sequence)}."
                )
        for index, group in enumerate(zip(*matrices.values(), strict=True)):
            for name, matrix in zip(matrices, group, strict=True):
                self._check(f"{name}[{index}]", matrix, rows=_num_rows(group[0]))

    def _check(self, name: str, matrix: Tensor, rows: int) -> None:
        if not isinstance(matrix, Tensor):
            raise ValueError(f"`{name}` must be a torch.Tensor, got {type(matrix).__name__}.")
        if not matrix.is_floating_point():
            raise ValueError(f"`{name}` must be a floating-point tensor, got {matrix.dtype}.")
        if matrix.ndim != 2 or matrix.shape != (rows, self.width):
            raise ValueError(
                f"`{name}` must have shape ({rows}, {self.width}), got {tuple(matrix.shape)}; "
                "samples in rows, all matrices of a layer over the same samples, all layers of one width."
            )

    def plot(self, val: Tensor | None = None, ax: Axes | None = None) -> tuple[Figure | SubFigure, Axes]:
        """Draw the values along the layers.

        Args:
            val: Values to draw, as returned by `compute` or `forward`; what `compute` returns now by default.
            ax: Axes to draw on; a new figure where it is ``None``.

        Returns:
            The figure and its axes.

        Raises:
            ModuleNotFoundError: If matplotlib is missing.
        """
        values = self.compute() if val is None else val
        name = type(self).__name__
        curves = values if isinstance(values, dict) else {name: values}
        if isinstance(values, Tensor) and values.ndim == 2:
            curves = {f"{name}[{index}]": column for index, column in enumerate(values.unbind(1))}
        return plot_along_path({key: curve.reshape(-1) for key, curve in curves.items()}, ylabel=name, ax=ax)


class WeightsMetric(LayerMetric):
    """Base of metrics that are also told the weights: they are no sum over samples, and kept beside the states.

    Attributes:
        weights: W_1, …, W_L of the last update since the last reset.
    """

    weights: Sequence[Tensor] | Tensor | None = None

    def keep(self, weights: Sequence[Tensor] | Tensor | None) -> None:
        """Keep weights to read at `compute`: copies of tensors; another sequence as it is, for it makes them then."""
        if isinstance(weights, (list, tuple)):
            self.weights = [weight.detach().clone() for weight in weights]
        else:
            self.weights = weights.detach().clone() if isinstance(weights, Tensor) else weights

    def reset(self) -> None:
        """Forget samples and weights."""
        super().reset()
        self.weights = None


def summed_state(state: Tensor, group: Any = None) -> list[Tensor]:
    """Sum a state over processes, in place of torchmetrics' gather."""
    # torchmetrics gathers the states of all processes and then adds them: several times the memory and the collectives.
    return [summed(state, group)]


def _num_rows(matrix: Tensor) -> int:
    return matrix.shape[0] if isinstance(matrix, Tensor) and matrix.ndim else 0
