"""Single quantities as torchmetrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from lightning_leaky.functional.k_norm import KNorm
from lightning_leaky.functional.step_sizes import check_segment_step_sizes, equidistant_step_sizes
from lightning_leaky.metrics.accumulator import Accumulator
from lightning_leaky.metrics.layer_batch import Matrices, check_layers
from lightning_leaky.metrics.recipe import LossReduction, Recipe
from lightning_leaky.plotting import plot_along_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


class _Quantity(Accumulator):
    """One quantity of every layer; torchmetrics squeezes that of a single layer to a scalar."""

    key: ClassVar[str]

    def compute(self) -> Tensor:
        """Return the values, shape (L,)."""
        return self.recipe.values(self.sums(), equidistant_step_sizes(self.num_layers))[self.key]

    def plot(self, val: Tensor | None = None, ax: Axes | None = None) -> tuple[Figure | SubFigure, Axes]:
        """Draw the values along the layers.

        Args:
            val: Values of `compute` or `forward`; `compute()` by default.
            ax: Axes to draw on; a new figure by default.

        Returns:
            The figure and its axes.

        Raises:
            ModuleNotFoundError: If matplotlib is missing.
        """
        values = self.compute() if val is None else val
        return plot_along_path({self.key: values.reshape(-1)}, ylabel=self.recipe.records[0].title, ax=ax)


class _OfRepresentation(_Quantity):
    """A quantity of representations alone."""

    def __init__(self, num_layers: int, width: int, k_norm: KNorm | None = None, **kwargs: Any) -> None:
        super().__init__(num_layers, width, Recipe([self.key], k_norm=k_norm or KNorm()), **kwargs)

    def update(self, representations: Matrices) -> None:
        """Add a batch.

        Args:
            representations: One matrix of shape (N, w) per layer.
        """
        check_layers([self.width] * self.num_layers, representations=representations)
        self.add([1.0] * self.num_layers, representations, representations)


class CostOfIdentity(_OfRepresentation):
    """Cost of identity ``‖A‖²_K`` of each layer over a data set; see `lightning_leaky.cost_of_identity`.

    Args:
        num_layers: Number of layers L.
        width: Width w of the representations.
        k_norm: Which K-norm.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Returns:
        From `compute`: shape (L,), no unit.

    Raises:
        ValueError: From `update`, if the matrices do not fit the layers.

    Example:
        >>> metric = CostOfIdentity(num_layers=1, width=2, k_norm=KNorm(gamma=4.0))
        >>> metric.update(torch.tensor([[[1.0, 2.0]]]))
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    key = "cost_of_identity"


class StableRank(_OfRepresentation):
    """Stable rank of each layer's representation over a data set; see `lightning_leaky.stable_rank`.

    Takes the arguments of `CostOfIdentity` (`k_norm` is unused); `compute` returns shape (L,), no unit.

    Example:
        >>> metric = StableRank(num_layers=1, width=2)
        >>> metric.update([torch.eye(2)])
        >>> metric.compute()
        tensor(2., dtype=torch.float64)
    """

    key = "stable_rank"


class KineticEnergy(_Quantity):
    """Kinetic energy ``(1/(2L̃))‖∂_pA‖²_K`` of each layer over a data set; see `lightning_leaky.kinetic_energy`.

    Args:
        num_layers: Number of layers L.
        width: Width w of the representations.
        effective_depth: L̃ ≥ 0.
        k_norm: Which K-norm.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Returns:
        From `compute`: shape (L,), an energy.

    Raises:
        ValueError: If L̃ is negative; from `update`, if the matrices or step-sizes do not fit the layers.

    Example:
        >>> metric = KineticEnergy(1, 2, effective_depth=0.5, k_norm=KNorm(gamma=4.0))
        >>> metric.update(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 7.0]]]), torch.ones(1))
        >>> metric.compute()
        tensor(2.5000, dtype=torch.float64)
    """

    key = "kinetic_energy"

    def __init__(
        self, num_layers: int, width: int, effective_depth: float, k_norm: KNorm | None = None, **kwargs: Any
    ) -> None:
        super().__init__(num_layers, width, Recipe([self.key], effective_depth, k_norm or KNorm()), **kwargs)

    def update(self, previous: Matrices, current: Matrices, step_sizes: Tensor) -> None:
        """Add a batch.

        Args:
            previous: A_0, …, A_{L−1}, each of shape (N, w).
            current: A_1, …, A_L, each of shape (N, w).
            step_sizes: ρ, shape (L,).
        """
        rho = check_segment_step_sizes(step_sizes, self.num_layers).tolist()
        check_layers([self.width] * self.num_layers, previous=previous, current=current)
        self.add(rho, previous, current)


class Hamiltonian(_Quantity):
    """Hamiltonian in momentum form of each layer over a data set; see `lightning_leaky.hamiltonian`.

    A mean loss puts 1/N into each row of its gradient, so each batch is weighted by its share of the samples.

    Args:
        num_layers: Number of layers L.
        width: Width w of the representations.
        effective_depth: L̃ ≥ 0.
        loss_reduction: ``"mean"`` or ``"sum"``, how the loss reduces the samples of a batch.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Returns:
        From `compute`: shape (L,), an energy.

    Raises:
        ValueError: If L̃ is negative or `loss_reduction` is neither; from `update`, if the matrices do not fit.

    Example:
        >>> metric = Hamiltonian(1, 2, effective_depth=2.0)
        >>> metric.update(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.0, 1.0]]]))
        >>> metric.compute()
        tensor(2., dtype=torch.float64)
    """

    key = "hamiltonian"

    def __init__(
        self,
        num_layers: int,
        width: int,
        effective_depth: float,
        loss_reduction: LossReduction = "mean",
        **kwargs: Any,
    ) -> None:
        recipe = Recipe([self.key], effective_depth, loss_reduction=loss_reduction)
        super().__init__(num_layers, width, recipe, **kwargs)

    def update(self, representations: Matrices, momenta: Matrices) -> None:
        """Add a batch.

        Args:
            representations: A_0, …, A_{L−1}, each of shape (N, w).
            momenta: B_1, …, B_L, each of shape (N, w).
        """
        check_layers([self.width] * self.num_layers, representations=representations, momenta=momenta)
        scaled = [momentum * self.recipe.share(momentum) for momentum in momenta]
        self.add([1.0] * self.num_layers, representations, representations, scaled)
