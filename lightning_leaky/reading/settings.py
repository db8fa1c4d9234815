"""How a path is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from lightning_leaky.functional._checks import check_non_negative, check_positive
from lightning_leaky.functional.features import Activation, features, resolve_features
from lightning_leaky.functional.k_norm import KNorm
from lightning_leaky.functional.leaky_step import leak_scale, objective_weight_decay
from lightning_leaky.hooks.state import StateChoice
from lightning_leaky.metrics.layer_store import Form, check_form
from lightning_leaky.metrics.path_reader import PathReader
from lightning_leaky.metrics.quantity import Quantity
from lightning_leaky.metrics.recipe import (
    LossReduction,
    Precision,
    Recipe,
    check_loss_reduction,
    check_precision,
    plain_quantities,
    resolve_quantities,
)
from lightning_leaky.metrics.records import QUANTITIES
from lightning_leaky.paths.branches import BranchChoice
from lightning_leaky.paths.leaky_path import LeakyPath, knows_weights
from lightning_leaky.reading.layout import GIVEN, Layout, PaddingMask, check_layout
from lightning_leaky.utilities.arguments import located

# Rows read of a data set: times the width, and at least. `docs/readings.md` has their error.
_ROWS_OF_WIDTH, _LEAST_ROWS = 8, 2048


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """The fields of `ReadingSettings` except the quantities, which a callback takes by position."""

    gamma: float | None = None
    gamma_rel: float = 1e-3
    rtol: float = 1e-5
    features: Activation | None = None
    constant_column: bool | None = None
    weight_decay: float | None = None
    effective_depth: float = 0.0
    loss_reduction: LossReduction = "mean"
    layout: Layout | None = None
    padding_mask: PaddingMask = GIVEN
    state: StateChoice = None
    branches: BranchChoice = False
    form: Form = "auto"
    halves: bool = False
    precision: Precision = "default"
    exact: bool = False
    max_rows: int | None = None


@dataclass(frozen=True)
class ReadingSettings(ReadingOptions):
    """How to read a path.

    Args:
        quantities: First parts of keys, `Quantity` records, or their import paths. ``None`` takes the reader's default.
        gamma: Stabiliser γ of the `KNorm`; 0 for the raw form, ``None`` for a relative one.
        gamma_rel: γ0 of the relative stabiliser γ = γ0 ‖K‖_op.
        rtol: Relative cut-off of the raw form.
        features: Features σ(A) of a layer: ``"relu"`` as in the paper, ``"linear"`` for A itself, ``"crelu"`` for both
            signs of A, another activation by name, or a function from shape (N, w) to (N, d), or its import path.
            ``None`` takes the path's, as of a `LeakyResNet`, or else relu if the path leaks and linear if not.
        constant_column: Whether to append a column of ones; ``None`` takes the path's choice, or else true.
        weight_decay: λ > 0 of the objective C + (λ/(2L̃)) Σ ρ_l ‖W_l‖². The momentum readings need it, and so do the
            Hamiltonian of any block and its residual, which take all trainable parameters θ_l of a block: W_l if the
            path knows it, else ρ_l W_l. In training λ is a term of the loss, or stands for an optimizer's decay.
        effective_depth: L̃ ≥ 0 of layers that are not a leaky path; a leaky path has its own.
        loss_reduction: ``"mean"`` or ``"sum"``: how the cost combines the samples of a batch.
        layout: How the axes of a representation become samples and neurons; ``None`` is `Layout()`.
        padding_mask: Which positions are real. ``"given"`` takes the padding mask that the layers, or the modules
            around them, are given (`attention_mask`, `src_key_padding_mask` and the like). Else the key of a mask in
            the batch or a part of it, non-zero if a position is real, or a function of the batch that returns such a
            mask, or its import path. ``None`` reads padding too.
        state: Which tensor is the state, if a layer takes or returns several of its shape: an argument by name or
            position, a pair of an argument and an output (its number, key or attribute), ``"sum"`` of all (hidden and
            residual), or a function of either side. ``None`` takes what one layer passes to the next.
        branches: Whether the branches of each block (attention, MLP) are layers of their own. True finds the states
            between them in the first batch. Or the names of the modules in each block that take a state, as
            ``("norm1", "norm2")``; the last branch ends with the block.
        form: ``"moments"`` sums second moments, exact over any data set, in ``8 L (d² + 2dw)`` bytes for the energies,
            ``8 L w²`` for the stable rank and ``8 L dw`` for the momenta (d = w + 1). ``"samples"`` keeps N samples,
            ``2 N L w`` float32 (``3 N L w`` with momenta), and works with N × N matrices. ``"auto"`` keeps samples
            while all processes have at most w, and then sums moments. If these would take more than 1 GiB, it keeps as
            many samples as fill that, and says so once.
        halves: Whether to also read two halves of the samples of each batch, which doubles the work. Their difference
            shows how readings vary with the samples.
        precision: ``"default"`` multiplies float32 representations in float32 if γ is relative with γ0 ≥ 1e-3:
            energies err by up to 5e-5. ``"high"`` uses float64 if samples outnumber neurons, and in N × N form for the
            factor alone: they err by less than 1e-6. With other stabilisers ``"default"`` is ``"high"``. Float64
            representations always use float64.
        exact: Whether to read all samples of a validation or test set. By default at most `max_rows` rows per layer
            are read, of samples spread evenly over the set, the same for any batch size and number of processes; other
            samples cost nothing. Training batches are always read whole.
        max_rows: Rows, at least w + 1; ``None`` takes the greater of 8 w and 2048. Fewer if they take more than 1 GiB.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> ReadingSettings(gamma=0.0).k_norm.is_raw
        True
    """

    quantities: Sequence[str | Quantity] | None = None

    def __post_init__(self) -> None:
        _ = self.k_norm  # refuses bad stabilisers
        if self.quantities is not None:
            resolve_quantities(self.quantities)
            object.__setattr__(self, "quantities", plain_quantities(self.quantities))
        if self.features is not None:
            if isinstance(self.features, str) and callable(found := located(self.features)):
                object.__setattr__(self, "features", found)
            resolve_features(self.features)
        if self.weight_decay is not None:
            check_positive("weight_decay", self.weight_decay)
        check_non_negative("effective_depth", self.effective_depth)
        check_loss_reduction(self.loss_reduction)
        check_layout(self.layout, self.padding_mask)
        check_form(self.form)
        check_precision(self.precision)
        if self.max_rows is not None and self.max_rows < 2:
            raise ValueError(f"`max_rows` must be at least w + 1 of the width w of the layers, got {self.max_rows!r}.")

    @property
    def k_norm(self) -> KNorm:
        """The K-norm of the energies."""
        return KNorm(self.gamma, self.gamma_rel, self.rtol)

    @property
    def sample_layout(self) -> Layout:
        """The layout, or the default one."""
        return Layout() if self.layout is None else self.layout

    @property
    def reads_all_positions(self) -> bool:
        """Whether every position is a sample, as the momentum readings need."""
        return self.sample_layout.reads_all_positions

    def reading(self, quantities: Iterable[str | Quantity]) -> ReadingSettings:
        """Return these settings with other quantities."""
        return replace(self, quantities=tuple(quantities))

    def most_rows(self, width: int) -> int | None:
        """Rows to read of a data set at most, ``None`` for all."""
        if self.exact:
            return None
        return max(_ROWS_OF_WIDTH * width, _LEAST_ROWS) if self.max_rows is None else self.max_rows

    def state_of(self, path: LeakyPath | None) -> StateChoice:
        """The `state` of the settings, or else of the path."""
        return getattr(path, "state", None) if self.state is None else self.state

    def fits_weights_of(self, path: LeakyPath | None) -> bool:
        """Whether a path knows its W_l, and they act on the features read."""
        own = (getattr(path, "activation", None), getattr(path, "constant_column", True))
        told = zip((self.features, self.constant_column), own, strict=True)
        return knows_weights(path) and all(one is None or one == other for one, other in told)

    def recipe(self, path: LeakyPath, weight_decay: float = 1.0) -> Recipe:
        """What to compute of a path, with momenta of this λ."""
        # Without a leak, a block reads A through a normalisation, not a ReLU.
        usual = "relu" if path.effective_depth > 0 else "linear"
        chosen = getattr(path, "activation", usual) if self.features is None else self.features
        constant = getattr(path, "constant_column", True) if self.constant_column is None else self.constant_column
        return Recipe(
            self.quantities or (),
            path.effective_depth,
            self.k_norm,
            partial(features, activation=resolve_features(chosen), constant_column=constant),
            self.loss_reduction,
            weight_decay,
            self.precision,
        )


def readable_quantities(has_weights: bool, has_gradients: bool, has_momenta: bool) -> list[str]:
    """Return the keys of all that can be read of a path.

    The Hamiltonian of features σ(A) needs leaky steps; that of any block replaces it elsewhere.
    """
    return [
        key
        for key, record in QUANTITIES.items()
        if (has_gradients or not record.has_gradients)
        and (has_momenta or not record.has_momenta)
        and (has_weights or not (record.needs == "weights" or key == "hamiltonian"))
    ]


def default_quantities(leaks: bool, has_weights: bool) -> list[str]:
    """Return the keys that a monitor reads by default."""
    # Without a leak the potential energy is 0, and the energy form is the kinetic energy.
    wanted = {"all", "leak" if leaks else "all", "weights" if has_weights else "all"}
    return [key for key, record in QUANTITIES.items() if record.default in wanted]


def check_quantities_of(path: LeakyPath | None, settings: ReadingSettings, weight_decay: float | None) -> None:
    """Raise ValueError if a path lacks a quantity, or momenta a weight decay or positions."""
    records = resolve_quantities(settings.quantities or ())
    with_weights = [f'"{record.key}"' for record in records if record.needs == "weights"]
    if with_weights and not knows_weights(path):
        raise ValueError(
            f"`quantities` cannot include {', '.join(with_weights)} for these layers, without the W_l of a leaky path "
            "that has a method `weights`, as `LeakyResNet` has. Leave them out."
        )
    if with_weights and not settings.fits_weights_of(path):
        raise ValueError(
            f"`features` must be those of the path to read {', '.join(with_weights)}, which compare them with its "
            f"weights, got {settings.features!r} and constant_column={settings.constant_column!r}. Leave either out."
        )
    of_parameters = [record.key for record in records if record.needs == "parameters"]
    if settings.branches and of_parameters:
        raise ValueError(
            f"`quantities` cannot include {of_parameters} of `branches`: which parameters of a block belong to which "
            "is not told. Leave either out."
        )
    momenta = [record.key for record in records if record.has_momenta]
    if momenta and (weight_decay is None or not 0 < weight_decay < float("inf")):
        raise ValueError(
            f"`weight_decay` must be a finite number > 0 to read {momenta}, got {weight_decay!r}; give the λ of the "
            "objective, or leave these quantities out. (`EnergyMonitor` takes it from an optimizer that has one weight "
            "decay > 0 on all matrices of these layers.)"
        )
    gradients = [record.key for record in records if record.has_gradients]
    if gradients and not settings.reads_all_positions:
        raise ValueError(
            f"`layout` must read every position for {gradients}, sums over all of them, got {settings.layout}; leave "
            "`max_samples` and `per_sample` out, or these quantities."
        )


def layer_weight_decays(settings: ReadingSettings, path: LeakyPath, step_sizes: Tensor) -> Tensor:
    """d_l of Σ (d_l/2)‖θ_l‖² = (λ/(2L̃)) Σ ρ_l ‖W_l‖²; 0 without a λ.

    θ_l is W_l if the path knows its weights, else ρ_l W_l, as in `objective_weight_decay`.
    """
    leak = (settings.weight_decay or 0.0) * leak_scale(path.effective_depth)
    return leak * step_sizes if knows_weights(path) else leak / step_sizes


def momentum_weight_decay(
    settings: ReadingSettings, path: LeakyPath, num_layers: int, optimizer_weight_decay: float | None
) -> float:
    """Return λ of the momenta: that of the settings plus `objective_weight_decay` of an optimizer's."""
    own = settings.weight_decay or 0.0
    if not optimizer_weight_decay:
        return own
    acts_per_layer = not knows_weights(path)
    return own + objective_weight_decay(optimizer_weight_decay, num_layers, path.effective_depth, acts_per_layer)


def reader_of(
    settings: ReadingSettings, recipe: Recipe, widths: Sequence[tuple[int, int]]
) -> tuple[PathReader, str | None]:
    """Return a reader of segments, given by width and number of layers, and what to tell a user once.

    Raises:
        ValueError: If fewer rows are to be read than there are features.
    """
    # Gradients need whole batches.
    most = None if recipe.has_gradients else settings.most_rows(max(width for width, _ in widths))
    reader = PathReader(widths, recipe, settings.form, settings.halves, most)
    if reader.form != "samples" or most is not None:
        return reader, None
    size = reader.moments_in_bytes / 2**30
    return reader, f"The samples themselves are kept, in the N × N form: second moments would take {size:.2f} GiB."
