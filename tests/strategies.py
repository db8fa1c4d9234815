"""Hypothesis strategies: every kind of (A, V, B, W) a layer may hold, drawn as kind, shape, scale and seed."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from lightning_leaky.functional import KNorm, SecondMoments, second_moments
from tests.references import ACTIVATIONS, sigma, squared_spectrum

KINDS = ("generic", "non_negative", "negative", "rank_deficient", "repeated_rows", "repeated_columns", "zero")
SCALES = (1.0, 1e6, 1e-6)
seeds = st.integers(0, 2**31 - 1)
effective_depths = st.one_of(st.just(0.0), st.floats(0.1, 20.0))


class Problem(NamedTuple):
    """One layer, or several along leading dimensions: everything a quantity may be a function of."""

    A: Tensor
    V: Tensor
    B: Tensor
    W: Tensor
    depth: float
    k_norm: KNorm
    S: Tensor | None = None
    """Features σ(A), as the functions take them."""

    @property
    def features(self) -> Tensor:
        """Those that are given, or those by default."""
        return sigma(self.A) if self.S is None else self.S

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Those that are given, by name."""
        return {name: getattr(self, name) for name in "AVBWS" if getattr(self, name) is not None}

    def moments(self) -> SecondMoments:
        return second_moments(self.A, self.V, self.S)

    def map(self, change: Callable[[Tensor], Tensor], names: str = "AVBS") -> "Problem":
        """The same problem with some tensors changed alike, by default all that have a row for each sample."""
        return self._replace(**{name: change(tensor) for name, tensor in self.tensors.items() if name in names})

    def to(self, place) -> "Problem":
        return self.map(lambda tensor: tensor.to(place), "AVBWS")


def generator_of(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, generator):
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def matrix_of_kind(kind, shape, generator):
    """A float64 matrix of shape (..., N, w)."""
    matrix = normal(*shape, generator=generator)
    *leading, num_samples, width = shape
    if kind == "non_negative":
        return matrix.abs()
    if kind == "negative":
        return -matrix.abs() - 0.1
    if kind == "rank_deficient":
        rank = max(1, min(num_samples, width) // 2)
        left, right = (normal(*leading, *sides, generator=generator) for sides in ((num_samples, rank), (rank, width)))
        return left @ right
    if kind == "repeated_rows":
        return matrix[..., torch.arange(num_samples) // 2, :]
    if kind == "repeated_columns":
        return matrix[..., torch.arange(width) // 2]
    return torch.zeros(shape, dtype=torch.float64) if kind == "zero" else matrix


@st.composite
def k_norms(draw, forms=("relative", "absolute", "raw")):
    """K-norms; γ of the absolute form is in units of ‖K‖ until `scaled_to` knows it."""
    form = draw(st.sampled_from(forms))
    strength = 10.0 ** draw(st.integers(-5, 1))
    return KNorm(gamma={"relative": None, "absolute": strength, "raw": 0.0}[form], gamma_rel=strength)


@st.composite
def features_of(draw, A, activations=tuple(ACTIVATIONS), constant_columns=(True, False)):
    """Features of a representation, ``None`` for those by default."""
    activation, constant_column = draw(st.sampled_from(activations)), draw(st.sampled_from(constant_columns))
    return None if activation == "relu" and constant_column else sigma(A, activation, constant_column)


def scaled_to(k_norm, S):
    """Give the absolute form its units, and a stabiliser to a layer whose features are all zero."""
    largest = squared_spectrum(S)[1][..., 0]
    # The tails of gelu and silu underflow: what is left of such features has no digits to test.
    assume(bool(((largest == 0) | (largest > 1e-100)).all()))
    if k_norm.gamma == 0 or (k_norm.gamma is None and bool((largest > 0).all())):
        return k_norm
    return KNorm(gamma=k_norm.gamma_rel * (float(largest.max()) or 1.0))


def assume_clear_cut_off(S, least_kept=1e-3):
    """Singular values of σ(A) near the raw form's cut-off, 1e-5, are kept or dropped by their rounding."""
    values = squared_spectrum(S)[1].sqrt()
    ratios = values / values[..., :1].clamp(min=1e-300)
    assume(not bool(((ratios > 2e-6) & (ratios < least_kept)).any()))


@st.composite
def problems(
    draw,
    kinds=KINDS,
    scales=SCALES,
    norms=None,
    depths=effective_depths,
    leading=((), (1,), (3,), (2, 2)),
    **features,
):
    shape = (*draw(st.sampled_from(leading)), draw(st.integers(1, 12)), draw(st.integers(1, 8)))
    generator = generator_of(draw(seeds))
    A, V, B = (
        draw(st.sampled_from(scales)) * matrix_of_kind(draw(st.sampled_from(kinds)), shape, generator) for _ in range(3)
    )
    S, k_norm = draw(features_of(A, **features)), draw(k_norms() if norms is None else norms)
    size = sigma(A) if S is None else S
    k_norm = scaled_to(k_norm, size)
    if k_norm.is_raw:
        assume_clear_cut_off(size)
    W = normal(*shape[:-2], shape[-1], size.shape[-1], generator=generator)
    return Problem(A, V, B, W, draw(depths), k_norm, S)
