"""The K-norm ‖M‖²_K = tr(Mᵀ K⁺ M), K = σ(A) σ(A)ᵀ, in which the energies are measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lightning_leaky.functional._checks import check_matrices, check_matrix, check_non_negative
from lightning_leaky.functional.features import given_features
from lightning_leaky.functional.moments import SecondMoments, inner_products, moments_of


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

    @property
    def bears_float32(self) -> bool:
        """Whether float32 matrices may be measured in float32 products, which err by about 1e-9/√γ0."""
        return self.gamma is None and self.gamma_rel >= 1e-6

    def stabiliser(self, gram: Tensor) -> Tensor:
        """Stabiliser γ, shape (...), for σᵀσ or σσᵀ, shape (..., n, n): both have the operator norm of K."""
        if self.gamma is not None:
            return gram.new_full(gram.shape[:-2], self.gamma)
        return self.gamma_rel * operator_norm(gram)


_DEFAULT = KNorm()

# Of a matrix: below it the whole spectrum is found as fast.
_LEAST_SIDE = 48
# Powers between two looks at the estimate, and looks.
_POWERS, _ROUNDS = 8, 12


def operator_norm(gram: Tensor) -> Tensor:
    """Largest eigenvalue, shape (...), of symmetric non-negative matrices, shape (..., n, n).

    Power iteration, many times cheaper than the spectrum; the spectrum where it does not settle, as for many leading
    eigenvalues that nearly agree. Where it settles between two that do, at relative distance g, the estimate is too
    small by at most ``min(g, √(2 eps s₂/s₁))``, with s₁ and s₂ the shares of their directions in the vector that it
    starts from.

    Example:
        >>> operator_norm(torch.diag(torch.tensor([1.0, 3.0])))
        tensor(3.)
    """
    if gram.shape[-1] >= _LEAST_SIDE:
        found = _by_power_iteration(gram)
        if found is not None:
            return found
    eigenvalues: Tensor = torch.linalg.eigvalsh(gram)
    return eigenvalues[..., -1].clamp(min=0)


def _by_power_iteration(gram: Tensor) -> Tensor | None:
    """‖Gv‖/‖v‖ for what powers of G turn a random vector into; ``None`` where it still grows."""
    # A fixed vector of its own generator: equal on all processes, and nobody's random numbers are used up.
    vector = torch.randn(gram.shape[-1], 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(gram)
    limits = torch.finfo(gram.dtype)
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None].clamp(min=limits.tiny)
    scaled, before = gram / trace, torch.zeros_like(trace)  # so that no power overflows
    for _ in range(_ROUNDS):
        for _ in range(_POWERS):
            last, vector = vector, scaled @ vector
        size: Tensor = torch.linalg.vector_norm(vector, dim=-2, keepdim=True)
        estimate: Tensor = size / torch.linalg.vector_norm(last, dim=-2, keepdim=True).clamp(min=limits.tiny)
        vector = vector / size.clamp(min=limits.tiny)
        if bool(((estimate - before).abs() <= 32 * limits.eps * estimate).all()):
            return (estimate * trace)[..., 0, 0]
        before = estimate
    return None


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
    """All inner products ``⟨M_i, M_j⟩_K``, shape (..., k, k), at features in the working dtype, without checks.

    In N × N form float32 matrices are multiplied by the factor of K in float32, half of the work in half of the time;
    K itself is not, for what rounding does to it counts 1/γ0 times.
    """
    rows, width = features.shape[-2:]
    if rows <= width and not k_norm.is_raw:
        kernel = features @ features.mT
        return _stable_from_kernel(kernel, matrices, k_norm.stabiliser(kernel))
    wide = [matrix.to(features.dtype) for matrix in matrices]
    if k_norm.is_raw:
        pseudo_inverse = torch.linalg.pinv(features, rtol=k_norm.rtol)
        return inner_products([pseudo_inverse @ matrix for matrix in wide])
    return k_inner_products_from_moments(moments_of(features, wide), k_norm)


def k_inner_products_from_moments(moments: SecondMoments, k_norm: KNorm = _DEFAULT) -> Tensor:
    """All inner products ``⟨M_i, M_j⟩_K`` of the matrices of some second moments.

    With G = σᵀσ the stable form is ``(tr(M_iᵀM_j) − tr((σᵀM_i)ᵀ (G + γI)⁻¹ (σᵀM_j))) / γ``. The difference cancels:
    its relative error is about 1e-15/γ0, so second moments want γ0 ≥ 1e-8.

    Args:
        moments: Second moments, as of `second_moments`.
        k_norm: Which K-norm.

    Returns:
        Shape (..., k, k). NaN where the moments are not finite.

    Example:
        >>> from lightning_leaky.functional import second_moments
        >>> k_inner_products_from_moments(second_moments(torch.tensor([[1.0, 2.0]])), KNorm(gamma=4.0))
        tensor([[0.5000]], dtype=torch.float64)
    """
    finite = torch.isfinite(moments.gram).all(-1).all(-1)
    # LAPACK raises on NaN: a diverged layer is read through a harmless matrix and masked, its neighbours survive.
    harmless = torch.eye(moments.gram.shape[-1], dtype=moments.gram.dtype, device=moments.gram.device)
    gram = torch.where(finite[..., None, None], moments.gram, harmless)
    if k_norm.is_raw:
        products = _raw_from_moments(gram, moments.cross, k_norm.rtol)
    else:
        products = _stable_from_moments(gram, moments.cross, moments.inner, k_norm.stabiliser(gram))
    return torch.where(finite[..., None, None], products, torch.nan)


def _stable_from_kernel(kernel: Tensor, matrices: Sequence[Tensor], gamma: Tensor) -> Tensor:
    """⟨M_i, M_j⟩_{K+γ} by a Cholesky factor of K + γI (N × N)."""
    factor, info = torch.linalg.cholesky_ex(_add_to_diagonal(kernel, gamma))
    # Inverted, for a product with all of M runs several times faster than a triangular solve.
    identity = torch.eye(kernel.shape[-1], dtype=kernel.dtype, device=kernel.device)
    inverse = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
    inverse = inverse.to(matrices[0].dtype)
    halves = [inverse @ matrix for matrix in matrices]
    return _mask(inner_products(halves, kernel.dtype), partial(inner_products, matrices, kernel.dtype), gamma, info)


def _stable_from_moments(gram: Tensor, cross: Tensor, inner: Tensor, gamma: Tensor) -> Tensor:
    """⟨M_i, M_j⟩_{K+γ} by a Cholesky factor of σᵀσ + γI (d × d) and Woodbury's identity."""
    factor, info = torch.linalg.cholesky_ex(_add_to_diagonal(gram, gamma))
    half = torch.linalg.solve_triangular(factor.unsqueeze(-3), cross, upper=False).flatten(-2)
    return _mask((inner - half @ half.mT) / gamma[..., None, None], lambda: inner, gamma, info)


def _raw_from_moments(gram: Tensor, cross: Tensor, rtol: float) -> Tensor:
    """⟨σ⁺M_i, σ⁺M_j⟩ from the eigenvalues of σᵀσ, the squares of the singular values of σ."""
    eigenvalues, eigenvectors = torch.linalg.eigh(gram)
    kept = eigenvalues > rtol**2 * eigenvalues[..., -1:].clamp(min=0)
    inverse = torch.where(kept, 1 / torch.where(kept, eigenvalues, 1.0), 0.0)
    half: Tensor = (inverse[..., None, :, None] * (eigenvectors.mT.unsqueeze(-3) @ cross)).flatten(-2)
    return half @ half.mT


def _add_to_diagonal(matrix: Tensor, gamma: Tensor) -> Tensor:
    shifted = matrix.clone()
    shifted.diagonal(dim1=-2, dim2=-1).add_(gamma[..., None])
    return shifted


def _mask(products: Tensor, inner: Callable[[], Tensor], gamma: Tensor, info: Tensor) -> Tensor:
    """Set NaN where the factorisation failed, and the limit γ → 0 of M_iᵀM_j/γ where there are no features at all."""
    failed = info != 0
    if not bool(failed.any()):
        return products
    products, found = torch.where(failed[..., None, None], torch.nan, products), inner()
    limit = torch.where(found == 0, 0.0, torch.copysign(torch.full_like(found, torch.inf), found))
    return torch.where((gamma == 0)[..., None, None], limit, products)
