"""Independent float64 references: the formulas of arXiv 2405.17573 with explicit N × N kernels and full SVDs.

Nothing here calls the package. A reference comes with the size of its largest terms, against which rounding is
measured: a difference of large terms has their rounding, not its own.
"""

from typing import NamedTuple

import torch
from torch import Tensor

ACTIVATIONS = {
    "relu": lambda x: torch.where(x > 0, x, 0.0),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "gelu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


class Reference(NamedTuple):
    value: Tensor
    size: Tensor


def sigma(A, activation="relu", constant_column=True):
    activated = ACTIVATIONS[activation](A)
    return torch.cat([activated, torch.ones_like(A[..., :1])], dim=-1) if constant_column else activated


def sigma_of(A, k_norm):
    return sigma(A, k_norm.activation, k_norm.constant_column)


def squared_norm(M):
    return (M * M).sum((-2, -1))


def squared_spectrum(A, k_norm):
    """Eigenvectors and eigenvalues of K = σ(A)σ(A)ᵀ, all N of them, by a full SVD of σ(A)."""
    S = sigma_of(A, k_norm)
    vectors, values, _ = torch.linalg.svd(S, full_matrices=True)
    missing = torch.zeros(*A.shape[:-2], S.shape[-2] - values.shape[-1], dtype=S.dtype)
    return vectors, torch.cat([values, missing], dim=-1) ** 2


def k_product(A, M, other, k_norm):
    """tr(Mᵀ (K + γI)⁻¹ other), or tr(Mᵀ K⁺ other) with an explicit relative cut-off."""
    vectors, eigenvalues = squared_spectrum(A, k_norm)
    largest = eigenvalues[..., :1]
    if k_norm.gamma == 0:
        kept = eigenvalues > k_norm.rtol**2 * largest
        inverse = torch.where(kept, 1 / torch.where(kept, eigenvalues, 1.0), 0.0)
    else:
        inverse = 1 / (eigenvalues + (k_norm.gamma_rel * largest if k_norm.gamma is None else k_norm.gamma))
    return (inverse[..., None] * (vectors.mT @ M) * (vectors.mT @ other)).sum((-2, -1))


def k_square(A, M, k_norm):
    """‖M‖²_K and its size: at least what it would be if all of M lay along the leading eigenvector."""
    _, eigenvalues = squared_spectrum(A, k_norm)
    largest = eigenvalues[..., 0]
    square = k_product(A, M, M, k_norm)
    return Reference(square, square + torch.where(largest > 0, squared_norm(M) / largest, 0.0))


def leak_scale(depth):
    return 1 / depth if depth > 0 else 1.0


def cost_of_identity(A, k_norm):
    return k_square(A, A, k_norm)


def potential_energy(A, depth, k_norm):
    value, size = k_square(A, A, k_norm)
    return Reference(-depth / 2 * value, depth / 2 * size)


def kinetic_energy(A, V, depth, k_norm):
    value, size = k_square(A, V, k_norm)
    return Reference(leak_scale(depth) / 2 * value, leak_scale(depth) / 2 * size)


def cross_term(A, V, k_norm):
    return Reference(k_product(A, A, V, k_norm), (k_square(A, A, k_norm).size * k_square(A, V, k_norm).size).sqrt())


def lagrangian(A, V, depth, k_norm):
    """(1/(2L̃))‖L̃A + V‖²_K, not its three terms."""
    value = leak_scale(depth) / 2 * k_product(A, depth * A + V, depth * A + V, k_norm)
    terms = (depth * k_square(A, A, k_norm).size.sqrt() + k_square(A, V, k_norm).size.sqrt()) ** 2
    return Reference(value, leak_scale(depth) / 2 * terms)


def energy_hamiltonian(A, V, depth, k_norm):
    kinetic, potential = kinetic_energy(A, V, depth, k_norm), potential_energy(A, depth, k_norm)
    return Reference(kinetic.value + potential.value, kinetic.size + potential.size)


def path_length(A, V, rho, k_norm):
    value, size = k_square(A, V, k_norm)
    return Reference((rho * value.clamp(min=0).sqrt()).sum(-1), (rho * size.sqrt()).sum(-1))


def hamiltonian(A, B, depth, k_norm):
    """(L̃/2) tr(Bᵀ K B) − L̃ tr(BᵀA), through the N × N kernel."""
    S = sigma_of(A, k_norm)
    leak = depth if depth > 0 else 1.0
    kernel_term = leak / 2 * (B * (S @ S.mT @ B)).sum((-2, -1))
    return Reference(
        kernel_term - depth * (B * A).sum((-2, -1)),
        kernel_term + depth * (squared_norm(A) * squared_norm(B)).sqrt(),
    )


def criticality_residual(W, A, B, depth, k_norm):
    leak = depth if depth > 0 else 1.0
    critical = leak * B.mT @ sigma_of(A, k_norm)
    value = (squared_norm(W - critical) / squared_norm(W)).sqrt()
    return Reference(value, 1 + (squared_norm(critical) / squared_norm(W)).sqrt())


def stable_rank(A):
    values = torch.linalg.svdvals(A)
    squares = (values**2).sum(-1)
    return torch.where(squares > 0, values.sum(-1) ** 2 / torch.where(squares > 0, squares, 1.0), 0.0)


class DiscretePath(NamedTuple):
    """A_0, …, A_L; B_1, …, B_L; W_1, …, W_L of a net of equidistant leaky steps, stacked."""

    representations: Tensor
    momenta: Tensor
    weights: Tensor


def hamilton_path(A, B, depth, num_layers):
    """The discrete Hamilton equations from (A_0, B_0): critical weights at every layer, momenta as back-propagated.

    Back-propagation gives B_{l−1} from B_l; here B_l is wanted, so each layer solves for it by fixed-point iteration.
    """
    rho = 1 / num_layers
    representations, momenta, weights = [A], [], []
    for _ in range(num_layers):
        S, slope, last = sigma(A), (A > 0).to(A), B
        for _ in range(200):
            W = depth * last.mT @ S
            found = (B - rho * slope * (last @ W)[..., :-1]) / (1 - rho * depth)
            last, change = found, (found - last).norm()
            if change <= 1e-15 * found.norm():
                break
        W = depth * last.mT @ S
        A, B = (1 - rho * depth) * A + rho * S @ W.mT, last
        representations.append(A)
        momenta.append(B)
        weights.append(W)
    return DiscretePath(torch.stack(representations), torch.stack(momenta), torch.stack(weights))


def observed_order(sizes, errors):
    """p of errors ~ sizes⁻ᵖ, by least squares on the logarithms."""
    x, y = torch.tensor(sizes, dtype=torch.float64).log(), torch.stack(list(errors)).log()
    x, y = x - x.mean(), y - y.mean()
    return float(-(x * y).sum() / (x * x).sum())


def assert_close(actual, expected, rtol=1e-8):
    """``actual`` is a float64 tensor within ``rtol`` of the size of the reference's terms."""
    value, size = expected if isinstance(expected, Reference) else (expected, expected.abs())
    assert actual.dtype == torch.float64
    assert actual.shape == value.shape
    error = (actual - value).abs()
    assert bool((error <= rtol * size).all()), f"errors {error} of {value}, allowed {rtol} of {size}"
