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


def squared_norm(M):
    return (M * M).sum((-2, -1))


def squared_spectrum(S):
    """Eigenvectors and eigenvalues of K = SSᵀ, all N of them, by a full SVD of S = σ(A)."""
    vectors, values, _ = torch.linalg.svd(S, full_matrices=True)
    missing = torch.zeros(*S.shape[:-2], S.shape[-2] - values.shape[-1], dtype=S.dtype)
    return vectors, torch.cat([values, missing], dim=-1) ** 2


def k_product(S, M, other, k_norm):
    """tr(Mᵀ (K + γI)⁻¹ other), or tr(Mᵀ K⁺ other) with an explicit relative cut-off."""
    vectors, eigenvalues = squared_spectrum(S)
    largest = eigenvalues[..., :1]
    if k_norm.gamma == 0:
        kept = eigenvalues > k_norm.rtol**2 * largest
        inverse = torch.where(kept, 1 / torch.where(kept, eigenvalues, 1.0), 0.0)
    else:
        inverse = 1 / (eigenvalues + (k_norm.gamma_rel * largest if k_norm.gamma is None else k_norm.gamma))
    return (inverse[..., None] * (vectors.mT @ M) * (vectors.mT @ other)).sum((-2, -1))


def k_square(S, M, k_norm):
    """‖M‖²_K and its size: at least what it would be if all of M lay along the leading eigenvector."""
    largest = squared_spectrum(S)[1][..., 0]
    square = k_product(S, M, M, k_norm)
    return Reference(square, square + torch.where(largest > 0, squared_norm(M) / largest, 0.0))


def energies(A, V, S, depth, k_norm):
    """Every energy by name; of the speed its square, for the root of a number near 0 has none of its digits."""
    leak, moved = 1 / depth if depth > 0 else 1.0, depth * A + V
    of_A, of_V = k_square(S, A, k_norm), k_square(S, V, k_norm)
    kinetic = Reference(leak / 2 * of_V.value, leak / 2 * of_V.size)
    potential = Reference(-depth / 2 * of_A.value, depth / 2 * of_A.size)
    terms = (depth * of_A.size.sqrt() + of_V.size.sqrt()) ** 2
    return {
        "cost_of_identity": of_A,
        "kinetic_energy": kinetic,
        "potential_energy": potential,
        "cross_term": Reference(k_product(S, A, V, k_norm), (of_A.size * of_V.size).sqrt()),
        "lagrangian": Reference(leak / 2 * k_product(S, moved, moved, k_norm), leak / 2 * terms),  # not its three terms
        "energy_hamiltonian": Reference(kinetic.value + potential.value, kinetic.size + potential.size),
        "speed": of_V,
    }


def path_length(V, S, rho, k_norm):
    value, size = k_square(S, V, k_norm)
    return Reference((rho * value.clamp(min=0).sqrt()).sum(-1), (rho * size.sqrt()).sum(-1))


def momentum_readings(W, A, B, S, depth):
    """Everything that is read of momenta, by name; ‖Bᵀσ(A)‖² through the N × N kernel."""
    leak = depth if depth > 0 else 1.0
    kernel_term, critical = leak / 2 * (B * (S @ S.mT @ B)).sum((-2, -1)), leak * B.mT @ S
    exact = {"momentum_norm": torch.linalg.matrix_norm(B), "features_momentum_norm": torch.linalg.matrix_norm(B.mT @ S)}
    return {
        "hamiltonian": Reference(
            kernel_term - depth * (B * A).sum((-2, -1)),
            kernel_term + depth * (squared_norm(A) * squared_norm(B)).sqrt(),
        ),
        "criticality_residual": Reference(
            (squared_norm(W - critical) / squared_norm(W)).sqrt(),
            1 + (squared_norm(critical) / squared_norm(W)).sqrt(),
        ),
        **{name: Reference(value, value) for name, value in exact.items()},
    }


def movements(A, after, S, gradient, k_norm):
    """How far layers move A, and what that is worth, by name; of the relative speed its square."""
    step, of_A, of_step = after - A, k_square(S, A, k_norm), k_square(S, after - A, k_norm)
    lengths = [squared_norm(M[..., None, :]).sqrt() for M in (A, after)]
    cosines = torch.where(lengths[0] * lengths[1] > 0, (A * after).sum(-1) / (lengths[0] * lengths[1]), 0.0)
    ratio = torch.maximum(*lengths) / torch.minimum(*lengths)
    worth, most = ((one * step).sum(-1).abs().sum(-1) for one in (gradient, gradient.abs()))
    distance = (squared_norm(step) / squared_norm(after)).sqrt()
    return {
        "relative_speed": Reference(of_step.value / of_A.value, of_step.size / of_A.value),
        "block_influence": Reference(1 - cosines.mean(-1), ratio.mean(-1)),
        "relative_distance": Reference(distance, distance),
        "first_order": Reference(worth, most),
    }


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
