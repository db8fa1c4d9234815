"""The K-norm ‖M‖²_K = tr(Mᵀ K⁺ M), K = σ(A) σ(A)ᵀ."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_leaky.functional._checks import check_matrices, check_matrix, check_non_negative
from lightning_leaky.functional.features import given_features
from lightning_leaky.functional.moments import SecondMoments, entry_products, inner_products, moments_of


@dataclass(frozen=True)
class KNorm:
    """How to measure a matrix against the features of its layer (arXiv 2405.17573, sections 1.1 and 2.2).

    *Stable form* (default): ``‖M‖²_{K+γ} = tr(Mᵀ (K + γI)⁻¹ M)``. The part M_⊥ of M outside the column space of σ(A)
    counts as ``‖M_⊥‖²/γ``. *Raw form* (``gamma=0``): ``‖σ(A)⁺ M‖²_F``. M_⊥ counts zero, and singular values of σ(A)
    below `rtol` times the largest are dropped, so the norm jumps when one crosses that line.

    Args:
        gamma: The stabiliser γ ≥ 0, in units of K; 0 selects the raw form, ``None`` the relative stabiliser.
        gamma_rel: γ0 ≥ 0 of the relative stabiliser γ = γ0 ‖K‖_op, with which energies do not change if the data set is
            repeated or the representation rescaled.
        rtol: Relative cut-off of the raw form on the singular values of σ(A). From second moments, values below about
            1e-7 are rounding noise.

    Raises:
        ValueError: If `gamma`, `gamma_rel` or `rtol` is negative or not finite, or `gamma_rel` is 0 while it is in use.

    Example:
        >>> KNorm(gamma=0.0).is_raw
        True
    """

    gamma: float | None = None
    gamma_rel: float = 1e-3
    rtol: float = 1e-5

    def __post_init__(self) -> None:
        check_non_negative("rtol", self.rtol)
        check_non_negative("gamma_rel", self.gamma_rel)
        if self.gamma is not None:
            check_non_negative("gamma", self.gamma)
        elif self.gamma_rel == 0:
            raise ValueError("`gamma_rel` must be > 0, got 0; ask for the raw form with gamma=0.")

    @property
    def is_raw(self) -> bool:
        """Whether this is the raw form."""
        return self.gamma == 0

    def bears_float32(self, least: float = 1e-3) -> bool:
        """Whether rounding, which grows up to 1/γ0 times, stays small in float32."""
        return self.gamma is None and self.gamma_rel >= least

    def stabiliser(self, gram: Tensor) -> Tensor:
        """Stabiliser γ, shape (...), from σᵀσ or σσᵀ, shape (..., n, n)."""
        if self.gamma is not None:
            return gram.new_full(gram.shape[:-2], self.gamma)
        return self.gamma_rel * operator_norm(gram)


_DEFAULT = KNorm()

# Below this matrix size the whole spectrum is as fast.
_LEAST_SIDE = 48
# Powers per round, rounds, and vectors: several, because one may miss the right direction.
_POWERS, _ROUNDS, _VECTORS = 8, 12, 4


def operator_norm(gram: Tensor) -> Tensor:
    """Largest eigenvalue, shape (...), of symmetric non-negative matrices, shape (..., n, n).

    Power iteration of four vectors, many times cheaper than the spectrum. On a CPU the spectrum replaces it if the
    vectors disagree in the end, because leading eigenvalues are close. Elsewhere, to avoid a wait, the greatest after
    96 steps stands: too small by about ``g e^(−192 g)``, 0.002 at most, for leading eigenvalues a relative g apart. NaN
    if a matrix is not finite.

    Example:
        >>> operator_norm(torch.diag(torch.tensor([1.0, 3.0])))
        tensor(3.)
    """
    trace, is_cpu = _trace(gram), gram.device.type == "cpu"
    finite, size = torch.isfinite(trace), trace.clamp(min=torch.finfo(gram.dtype).tiny)
    if gram.shape[-1] < _LEAST_SIDE and is_cpu:  # LAPACK raises on NaN
        estimate: Tensor = torch.linalg.eigvalsh(torch.where(finite[..., None, None], gram, 0))[..., -1].clamp(min=0)
    else:
        estimate, disagree = _by_power_iteration(gram, size, finite, is_cpu)
        if is_cpu and disagree.any():
            estimate = estimate.masked_scatter(disagree, torch.linalg.eigvalsh(gram[disagree])[..., -1].clamp(min=0))
    return torch.where(finite, estimate, torch.nan)


def _trace(gram: Tensor) -> Tensor:
    """Trace of symmetric non-negative matrices; not finite if an entry is not, because then the diagonal is not."""
    return gram.diagonal(dim1=-2, dim2=-1).sum(-1)


def _by_power_iteration(matrices: Tensor, size: Tensor, finite: Tensor, may_look: bool) -> tuple[Tensor, Tensor]:
    """Greatest ‖Gv‖/‖v‖, and whether the vectors disagree, each of shape (...)."""
    # Equal on all processes, and the global random state stays.
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(matrices.shape[-1], _VECTORS, generator=generator, dtype=matrices.dtype).to(matrices.device)
    limits = torch.finfo(matrices.dtype)
    for _ in range(_ROUNDS):
        for _ in range(_POWERS):
            last, vectors = vectors, matrices @ vectors / size[..., None, None]  # against overflow
        sizes: Tensor = torch.linalg.vector_norm(vectors, dim=-2)
        estimates = sizes / torch.linalg.vector_norm(last, dim=-2).clamp(min=limits.tiny)
        vectors = vectors / sizes.clamp(min=limits.tiny)[..., None, :]
        greatest = estimates.amax(-1)
        disagree = finite & (greatest - estimates.amin(-1) > 32 * limits.eps * greatest)
        if may_look and not disagree.any():  # one look for all matrices
            break
    return greatest * size, disagree


def relative_gamma(representation: Tensor, gamma_rel: float = 1e-3, features: Tensor | None = None) -> Tensor:
    """Relative stabiliser ``γ = γ0 ‖K‖_op`` of a representation.

    Args:
        representation: A, shape (..., N, w).
        gamma_rel: γ0 ≥ 0.
        features: σ(A), shape (..., N, d); ``[relu(A), 1]`` by default.

    Returns:
        γ, shape (...), float64.

    Raises:
        ValueError: If a tensor is not floating-point, finite and of its shape.

    Example:
        >>> relative_gamma(torch.tensor([[-3.0, -1.0]]), gamma_rel=0.1)  # σ(A) = [0, 0, 1], ‖K‖ = 1
        tensor(0.1000, dtype=torch.float64)
    """
    sigma = given_features(check_matrix("representation", representation), features)
    norm: Tensor = torch.linalg.matrix_norm(sigma, ord=2)
    return check_non_negative("gamma_rel", gamma_rel) * norm.square()


def k_inner_products(
    representation: Tensor, *matrices: Tensor, k_norm: KNorm = _DEFAULT, features: Tensor | None = None
) -> Tensor:
    """Inner products ``⟨M_i, M_j⟩_K`` of matrices at one representation.

    One factorisation serves all: K (N × N) if N ≤ d, else σᵀσ (d × d).

    Args:
        representation: A, shape (..., N, w).
        *matrices: k matrices M_i, each of shape (..., N, w).
        k_norm: Which K-norm.
        features: σ(A), shape (..., N, d); ``[relu(A), 1]`` by default.

    Returns:
        Shape (..., k, k), float64 (float32 on MPS). NaN if γ/‖K‖_op is below that precision (about 1e-15).

    Raises:
        ValueError: If a tensor is not floating-point, finite and of its shape.

    Example:
        >>> A = torch.tensor([[1.0, 2.0]])  # σ(A) = [1, 2, 1], K = 6
        >>> k_inner_products(A, A, k_norm=KNorm(gamma=4.0))
        tensor([[0.5000]], dtype=torch.float64)
    """
    names = [f"matrices[{index}]" for index in range(len(matrices))]
    wide, *others = check_matrices(representation=representation, **dict(zip(names, matrices, strict=True)))
    return inner_products_of(k_norm, given_features(wide, features), *others)


def inner_products_of(k_norm: KNorm, features: Tensor, *matrices: Tensor) -> Tensor:
    """`k_inner_products` without checks, in the precision of the features.

    The N × N form multiplies float32 matrices in float32, for speed.
    """
    if has_smaller_kernel(features, k_norm):
        inverse, gamma = inverse_roots(features @ features.mT, k_norm)
        return without_features(inner_products([inverse.to(one.dtype) @ one for one in matrices]), gamma)
    wide = [matrix.to(features.dtype) for matrix in matrices]
    if k_norm.is_raw:
        return inner_products([_pseudo_inverse(features, k_norm.rtol) @ matrix for matrix in wide])
    return k_inner_products_from_moments(moments_of(features, wide), k_norm)


def has_smaller_kernel(features: Tensor, k_norm: KNorm) -> bool:
    """Whether to factorise K (N × N)."""
    return features.shape[-2] <= features.shape[-1] and not k_norm.is_raw


def inverse_roots(kernel: Tensor, k_norm: KNorm) -> tuple[Tensor, Tensor]:
    """Inverse of `factor_of` K, shape (..., N, N), and its γ, shape (...)."""
    factor, gamma = factor_of(kernel, k_norm)
    # A product with all of M is several times faster than a triangular solve.
    identity = torch.eye(kernel.shape[-1], dtype=kernel.dtype, device=kernel.device)
    return torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False), gamma


def _pseudo_inverse(features: Tensor, rtol: float) -> Tensor:
    # LAPACK raises on NaN.
    finite = torch.isfinite(features).all(-1).all(-1)[..., None, None]
    inverse = torch.linalg.pinv(torch.where(finite, features, 0), rtol=rtol)
    return torch.where(finite, inverse, torch.nan)


def k_inner_products_from_moments(moments: SecondMoments, k_norm: KNorm = _DEFAULT, has_cross: bool = True) -> Tensor:
    """Inner products ``⟨M_i, M_j⟩_K`` from second moments.

    With G = σᵀσ the stable form is ``(tr(M_iᵀM_j) − tr((σᵀM_i)ᵀ (G + γI)⁻¹ (σᵀM_j))) / γ``. The difference cancels, to
    a relative error of about 1e-15/γ0, so second moments need γ0 ≥ 1e-8.

    Args:
        moments: Second moments, as of `second_moments`.
        k_norm: Which K-norm.
        has_cross: Whether to compute i ≠ j; else NaN.

    Returns:
        Shape (..., k, k). NaN if the moments are not finite.

    Example:
        >>> from lightning_leaky.functional import second_moments
        >>> k_inner_products_from_moments(second_moments(torch.tensor([[1.0, 2.0]])), KNorm(gamma=4.0))
        tensor([[0.5000]], dtype=torch.float64)
    """
    if k_norm.is_raw:
        finite = torch.isfinite(moments.gram).all(-1).all(-1)[..., None, None]
        harmless = torch.eye(moments.gram.shape[-1], dtype=moments.gram.dtype, device=moments.gram.device)
        products = _raw_from_moments(torch.where(finite, moments.gram, harmless), moments.cross, k_norm.rtol)
    else:
        finite = torch.isfinite(_trace(moments.gram))[..., None, None]
        products = stable_from_factor(*factor_of(moments.gram, k_norm), moments, has_cross)
    return torch.where(finite, products, torch.nan)


def stable_from_factor(factor: Tensor, gamma: Tensor, moments: SecondMoments, has_cross: bool = True) -> Tensor:
    """⟨M_i, M_j⟩_{K+γ} by `factor_of` σᵀσ (d × d) and Woodbury's identity."""
    solved = torch.linalg.solve_triangular(factor, side_by_side(moments.cross), upper=False)
    halves = solved.chunk(moments.cross.shape[-3], dim=-1)
    left = moments.inner - entry_products(halves, has_cross)
    return without_features(left / divisor_of(gamma, left), gamma)


def side_by_side(cross: Tensor) -> Tensor:
    """All σᵀM_i in one matrix, shape (..., d, k w)."""
    return cross.movedim(-3, -2).flatten(-2)


def divisor_of(gamma: Tensor, products: Tensor) -> Tensor:
    """γ, or 1 for 0, shape (..., 1, 1)."""
    return torch.where(gamma == 0, 1, gamma).to(products)[..., None, None]


def _raw_from_moments(gram: Tensor, cross: Tensor, rtol: float) -> Tensor:
    """⟨σ⁺M_i, σ⁺M_j⟩ from the eigenvalues of σᵀσ."""
    eigenvalues, eigenvectors = torch.linalg.eigh(gram)
    kept = eigenvalues > rtol**2 * eigenvalues[..., -1:].clamp(min=0)
    inverse = torch.where(kept, 1 / torch.where(kept, eigenvalues, 1.0), 0.0)
    half: Tensor = (inverse[..., None, :, None] * (eigenvectors.mT.unsqueeze(-3) @ cross)).flatten(-2)
    return half @ half.mT


def factor_of(matrix: Tensor, k_norm: KNorm) -> tuple[Tensor, Tensor]:
    """Return the Cholesky factor of K or σᵀσ plus γI, or plus I if γ = 0, and γ, or NaN without a factor."""
    shifted, gamma = matrix.clone(), k_norm.stabiliser(matrix)
    shifted.diagonal(dim1=-2, dim2=-1).add_(torch.where(gamma == 0, 1, gamma)[..., None])
    factor, info = torch.linalg.cholesky_ex(shifted)
    return factor, torch.where(info == 0, gamma, torch.nan)


def without_features(products: Tensor, gamma: Tensor) -> Tensor:
    """`products`, but NaN if γ is NaN, and the limit γ → 0 of `products`/γ if γ is 0."""
    limit = torch.where(products == 0, 0.0, torch.copysign(torch.full_like(products, torch.inf), products))
    stabiliser = gamma[..., None, None]
    return torch.where(stabiliser == 0, limit, torch.where(stabiliser.isnan(), torch.nan, products))
