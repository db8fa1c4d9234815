"""The two bounds that tie the Hamiltonian to the energies (arXiv 2405.17573, Theorem 4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_leaky.functional._checks import check_positive


class Bounds(NamedTuple):
    """A quantity, `value`, and its bounds."""

    lower: Tensor
    value: Tensor
    upper: Tensor


def rank_gap_bounds(
    hamiltonian: Tensor,
    costs_of_identity: Tensor,
    path_length: Tensor,
    effective_depth: float,
    gamma: Tensor | float,
    size_bound: Tensor | float,
) -> Bounds:
    """First bound: ``−(ℓ/L̃ + √(γc))² ≤ −(2/L̃)H − min_p ‖A_p‖²_{K+γ} ≤ γc``.

    It holds for a geodesic (constant H) with ‖A_p‖²_F and ‖B_p‖²_F at most c (Theorem 4). With a bounded path length
    the bottleneck-rank estimate lies at most O(1/L̃²) below the least cost of identity.

    Args:
        hamiltonian: H, shape (...); for a trained net, the median over its layers.
        costs_of_identity: ‖A_p‖²_{K+γ}, shape (..., L).
        path_length: ℓ with this γ, shape (...).
        effective_depth: L̃ > 0.
        gamma: γ ≥ 0, a number or shape (...); for a relative stabiliser, the largest over the layers.
        size_bound: c, a number or shape (...).

    Returns:
        The bounds, each of shape (...).

    Raises:
        ValueError: If L̃ is not positive.

    Example:
        >>> coi, length = torch.tensor([5.0, 3.0, 4.0]), torch.tensor(7.0)
        >>> [float(x) for x in rank_gap_bounds(torch.tensor(-10.0), coi, length, 7.0, 0.25, 4.0)]
        [-4.0, -0.1428..., 1.0]
    """
    depth = check_positive("effective_depth", effective_depth)
    noise = torch.as_tensor(gamma * size_bound, dtype=path_length.dtype, device=path_length.device)
    return Bounds(
        lower=-((path_length / depth + noise.sqrt()).square()),
        value=-2 / depth * hamiltonian - costs_of_identity.amin(-1),
        upper=noise.expand(path_length.shape),
    )


def speed_bounds(
    hamiltonian: Tensor,
    cost_of_identity: Tensor,
    speed: Tensor,
    effective_depth: float,
    gamma: Tensor | float,
    size_bound: Tensor | float,
) -> Bounds:
    """Second bound: ``−L̃√(γc) ≤ ‖∂_pA‖_{K+γ} − L̃√(‖A‖²_{K+γ} + 2H/L̃) ≤ 2L̃√(γc)``, at every p.

    The excess of the cost of identity over −2H/L̃ sets the speed (Theorem 4): slow inside the bottleneck, of order L̃
    outside.

    Args:
        hamiltonian: H, shape broadcastable to `speed`.
        cost_of_identity: ‖A_p‖²_{K+γ}, shape (...).
        speed: ‖∂_pA‖_{K+γ}, shape (...).
        effective_depth: L̃ > 0.
        gamma: γ ≥ 0 of each entry.
        size_bound: c, a bound of ‖A_p‖²_F and ‖B_p‖²_F.

    Returns:
        The bounds, each of shape (...). A radicand below zero (at least −γc) counts as zero.

    Raises:
        ValueError: If L̃ is not positive.

    Example:
        >>> [float(x) for x in speed_bounds(torch.tensor(-4.0), torch.tensor(5.0), torch.tensor(3.0), 2.0, 0.25, 1.0)]
        [-1.0, 1.0, 2.0]
    """
    depth = check_positive("effective_depth", effective_depth)
    noise = torch.as_tensor(gamma * size_bound, dtype=speed.dtype, device=speed.device).sqrt().expand(speed.shape)
    radicand = (cost_of_identity + 2 / depth * hamiltonian).clamp(min=0)
    return Bounds(lower=-depth * noise, value=speed - depth * radicand.sqrt(), upper=2 * depth * noise)
