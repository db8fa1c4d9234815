"""The K-norm ‖M‖²_K = tr(Mᵀ K⁺ M), K = σ(A) σ(A)ᵀ, in which the energies are measured."""

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
    counts as ``‖M_⊥‖²/γ``. *Raw form* (``gamma=0``): ``‖σ(A)⁺ M‖²_F``, where M_⊥ counts zero and singular values of
    σ(A) below `rtol` times the largest are dropped; it jumps when one of them crosses that line.

    Args:
        gamma: The stabiliser γ ≥ 0 itself, in units of K; 0 selects the raw form. ``None`` makes it relative.
        gamma_rel: γ0 ≥ 0 of the relative stabiliser γ = γ0 ‖K‖_op, used where `gamma` is ``None``. Relative, the
            energies do not change when the data set is repeated or the representation is rescaled.
        rtol: Relative cut-off of the raw form on the singular values of σ(A). From second moments values below about
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
        """Whether the stabiliser is relative, with γ0 at least so large: what rounding does counts up to 1/γ0 times."""
        return self.gamma is None and self.gamma_rel >= least

    def stabiliser(self, gram: Tensor) -> Tensor:
        """Stabiliser γ, shape (...), for σᵀσ or σσᵀ, shape (..., n, n): both have the operator norm of K."""
        if self.gamma is not None:
            return gram.new_full(gram.shape[:-2], self.gamma)
        return self.gamma_rel * operator_norm(gram)


_DEFAULT = KNorm()

# Of a matrix: below it the whole spectrum is found as fast.
_LEAST_SIDE = 48
# Powers between two looks, looks, and vectors: several, for one may begin with little of the right direction.
_POWERS, _ROUNDS, _VECTORS = 8, 12, 4


def operator_norm(gram: Tensor) -> Tensor:
    """Largest eigenvalue, shape (...), of symmetric non-negative matrices, shape (..., n, n).

    Power iteration of four vectors, many times cheaper than the spectrum; the spectrum where they do not agree in the
    end, as for many leading eigenvalues that nearly do. Elsewhere than on a CPU, where a look at them would wait for
    the device, all 96 steps are made and the greatest stands: at a relative distance g between the two leading
    eigenvalues too small by about ``g e^(−192 g)``, 0.002 at most. NaN where a matrix is not finite.

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
    """Trace of symmetric non-negative matrices: NaN or infinite where an entry is, for then the diagonal has one."""
    total: Tensor = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    return total


def _by_power_iteration(matrices: Tensor, size: Tensor, finite: Tensor, may_look: bool) -> tuple[Tensor, Tensor]:
    """‖Gv‖/‖v‖ for what powers of G turn random vectors into, and whether they disagree, each of shape (...)."""
    # Fixed vectors of their own generator: equal on all processes, and nobody's random numbers are used up.
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(matrices.shape[-1], _VECTORS, generator=generator, dtype=matrices.dtype).to(matrices.device)
    limits = torch.finfo(matrices.dtype)
    for _ in range(_ROUNDS):
        for _ in range(_POWERS):
            last, vectors = vectors, matrices @ vectors / size[..., None, None]  # so that no power overflows
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
        gamma_rel: γ0.
        features: σ(A), shape (..., N, d); those of `features`, ``[relu(A), 1]``, by default.

    Returns:
        γ, shape (...), float64.

    Raises:
        ValueError: If the representation is not floating-point, finite and of shape (..., N, w).

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
    """All inner products ``⟨M_i, M_j⟩_K`` of some matrices at one representation.

    The smaller of the two sides is factorised, once for all matrices: K (N × N) where N ≤ d, else σᵀσ (d × d).

    Args:
        representation: A, shape (..., N, w).
        *matrices: k matrices M_i, each of shape (..., N, w).
        k_norm: Which K-norm.
        features: σ(A), shape (..., N, d); those of `features`, ``[relu(A), 1]``, by default.

    Returns:
        Shape (..., k, k), float64 (float32 on MPS). NaN where γ is too small beside ‖K‖_op to be seen in that
        precision (about 1e-15).

    Raises:
        ValueError: If a tensor is not floating-point, finite and of shape (..., N, w), or the shapes differ.

    Example:
        >>> A = torch.tensor([[1.0, 2.0]])  # σ(A) = [1, 2, 1], K = 6
        >>> k_inner_products(A, A, k_norm=KNorm(gamma=4.0))
        tensor([[0.5000]], dtype=torch.float64)
    """
    names = [f"matrices[{index}]" for index in range(len(matrices))]
    wide, *others = check_matrices(representation=representation, **dict(zip(names, matrices, strict=True)))
    return inner_products_of(k_norm, given_features(wide, features), *others)


def inner_products_of(k_norm: KNorm, features: Tensor, *matrices: Tensor) -> Tensor:
    """All inner products ``⟨M_i, M_j⟩_K``, shape (..., k, k), without checks.

    In the precision of the features. In N × N form float32 matrices may come with float64 features: they are multiplied
    by the factor of K in float32, half of the work in half of the time.
    """
    if has_smaller_kernel(features, k_norm):
        inverse, gamma = inverse_roots(features @ features.mT, k_norm)
        return without_features(inner_products([inverse.to(one.dtype) @ one for one in matrices]), gamma)
    wide = [matrix.to(features.dtype) for matrix in matrices]
    if k_norm.is_raw:
        return inner_products([_pseudo_inverse(features, k_norm.rtol) @ matrix for matrix in wide])
    return k_inner_products_from_moments(moments_of(features, wide), k_norm)


def has_smaller_kernel(features: Tensor, k_norm: KNorm) -> bool:
    """Whether to factorise K (N × N): it is no larger than σᵀσ, and the form is not raw."""
    return features.shape[-2] <= features.shape[-1] and not k_norm.is_raw


def inverse_roots(kernel: Tensor, k_norm: KNorm) -> tuple[Tensor, Tensor]:
    """Inverse of a Cholesky factor of K + γI, shape (..., N, N), and γ, shape (...), NaN where there is no factor.

    Where K is 0, and γ with it, the inverse is the identity.
    """
    factor, gamma = factor_of(kernel, k_norm)
    # A product with all of M runs several times faster than a triangular solve.
    identity = torch.eye(kernel.shape[-1], dtype=kernel.dtype, device=kernel.device)
    return torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False), gamma


def _pseudo_inverse(features: Tensor, rtol: float) -> Tensor:
    # LAPACK raises on NaN: a diverged layer is read through zeros and masked.
    finite = torch.isfinite(features).all(-1).all(-1)[..., None, None]
    inverse = torch.linalg.pinv(torch.where(finite, features, 0), rtol=rtol)
    return torch.where(finite, inverse, torch.nan)


def k_inner_products_from_moments(moments: SecondMoments, k_norm: KNorm = _DEFAULT, has_cross: bool = True) -> Tensor:
    """All inner products ``⟨M_i, M_j⟩_K`` of the matrices of some second moments.

    With G = σᵀσ the stable form is ``(tr(M_iᵀM_j) − tr((σᵀM_i)ᵀ (G + γI)⁻¹ (σᵀM_j))) / γ``. The difference cancels:
    its relative error is about 1e-15/γ0, so second moments want γ0 ≥ 1e-8.

    Args:
        moments: Second moments, as of `second_moments`.
        k_norm: Which K-norm.
        has_cross: Whether those of different matrices are wanted; else they are NaN.

    Returns:
        Shape (..., k, k). NaN where the moments are not finite.

    Example:
        >>> from lightning_leaky.functional import second_moments
        >>> k_inner_products_from_moments(second_moments(torch.tensor([[1.0, 2.0]])), KNorm(gamma=4.0))
        tensor([[0.5000]], dtype=torch.float64)
    """
    if k_norm.is_raw:
        finite = torch.isfinite(moments.gram).all(-1).all(-1)[..., None, None]
        # LAPACK raises on NaN: a diverged layer is read through a harmless matrix and masked, its neighbours survive.
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
    """σᵀM_i of all i in one matrix, shape (..., d, k w), as `split_moments` has taken it apart."""
    return cross.movedim(-3, -2).flatten(-2)


def divisor_of(gamma: Tensor, products: Tensor) -> Tensor:
    """γ to divide products by, shape (..., 1, 1); 1 where it is 0."""
    return torch.where(gamma == 0, 1, gamma).to(products)[..., None, None]


def _raw_from_moments(gram: Tensor, cross: Tensor, rtol: float) -> Tensor:
    """⟨σ⁺M_i, σ⁺M_j⟩ from the eigenvalues of σᵀσ, the squares of the singular values of σ."""
    eigenvalues, eigenvectors = torch.linalg.eigh(gram)
    kept = eigenvalues > rtol**2 * eigenvalues[..., -1:].clamp(min=0)
    inverse = torch.where(kept, 1 / torch.where(kept, eigenvalues, 1.0), 0.0)
    half: Tensor = (inverse[..., None, :, None] * (eigenvectors.mT.unsqueeze(-3) @ cross)).flatten(-2)
    return half @ half.mT


def factor_of(matrix: Tensor, k_norm: KNorm) -> tuple[Tensor, Tensor]:
    """Cholesky factor of K or σᵀσ plus γI, and γ, NaN where there is none; of a 0 with γ = 0 the identity."""
    shifted, gamma = matrix.clone(), k_norm.stabiliser(matrix)
    shifted.diagonal(dim1=-2, dim2=-1).add_(torch.where(gamma == 0, 1, gamma)[..., None])
    factor, info = torch.linalg.cholesky_ex(shifted)
    return factor, torch.where(info == 0, gamma, torch.nan)


def without_features(products: Tensor, gamma: Tensor) -> Tensor:
    """NaN where γ is, and the limit γ → 0 of tr(M_iᵀM_j)/γ where it is 0: there `products` are tr(M_iᵀM_j)."""
    limit = torch.where(products == 0, 0.0, torch.copysign(torch.full_like(products, torch.inf), products))
    stabiliser = gamma[..., None, None]
    return torch.where(stabiliser == 0, limit, torch.where(stabiliser.isnan(), torch.nan, products))
