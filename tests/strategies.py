"""Hypothesis strategies: every kind of (A, V, B, W) a layer may hold, drawn as kind, shape, scale and seed."""

from typing import NamedTuple

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from lightning_leaky.functional import KNorm, SecondMoments, second_moments
from tests.references import ACTIVATIONS, sigma_of, squared_spectrum

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

    def moments(self) -> SecondMoments:
        return second_moments(self.A, self.V, self.k_norm.activation, self.k_norm.constant_column)

    def map_samples(self, change) -> "Problem":
        """The same problem with the rows of all matrices changed alike."""
        return self._replace(A=change(self.A), V=change(self.V), B=change(self.B))

    def to(self, dtype) -> "Problem":
        return self._replace(**{name: getattr(self, name).to(dtype) for name in "AVBW"})


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
def k_norms(
    draw, forms=("relative", "absolute", "raw"), activations=tuple(ACTIVATIONS), constant_columns=(True, False)
):
    """K-norms; γ of the absolute form is in units of ‖K‖ until `scaled_to` knows it."""
    form = draw(st.sampled_from(forms))
    strength = 10.0 ** draw(st.integers(-5, 1))
    return KNorm(
        gamma={"relative": None, "absolute": strength, "raw": 0.0}[form],
        gamma_rel=strength,
        activation=draw(st.sampled_from(activations)),
        constant_column=draw(st.sampled_from(constant_columns)),
    )


def scaled_to(k_norm, A):
    """Give the absolute form its units, and a stabiliser to a layer whose features are all zero."""
    largest = squared_spectrum(A, k_norm)[1][..., 0]
    # The tails of gelu and silu underflow: what is left of such features has no digits to test.
    assume(bool(((largest == 0) | (largest > 1e-100)).all()))
    if k_norm.gamma == 0 or (k_norm.gamma is None and bool((largest > 0).all())):
        return k_norm
    units = float(largest.max()) or 1.0
    return KNorm(gamma=k_norm.gamma_rel * units, activation=k_norm.activation, constant_column=k_norm.constant_column)


def assume_clear_cut_off(A, k_norm, least_kept=1e-3):
    """Singular values of σ(A) near the raw form's cut-off, 1e-5, are kept or dropped by their rounding."""
    values = squared_spectrum(A, k_norm)[1].sqrt()
    ratios = values / values[..., :1].clamp(min=1e-300)
    assume(not bool(((ratios > 2e-6) & (ratios < least_kept)).any()))


@st.composite
def problems(draw, kinds=KINDS, scales=SCALES, norms=None, depths=effective_depths, leading=((), (1,), (3,), (2, 2))):
    shape = (*draw(st.sampled_from(leading)), draw(st.integers(1, 12)), draw(st.integers(1, 8)))
    generator = generator_of(draw(seeds))
    A, V, B = (
        draw(st.sampled_from(scales)) * matrix_of_kind(draw(st.sampled_from(kinds)), shape, generator) for _ in range(3)
    )
    k_norm = scaled_to(draw(k_norms() if norms is None else norms), A)
    if k_norm.is_raw:
        assume_clear_cut_off(A, k_norm)
    W = normal(*shape[:-2], shape[-1], sigma_of(A, k_norm).shape[-1], generator=generator)
    return Problem(A, V, B, W, draw(depths), k_norm)
