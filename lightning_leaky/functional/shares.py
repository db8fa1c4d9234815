"""Shares of layers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_leaky.functional._checks import check_same_shape, widen
from lightning_leaky.functional.kinetic_energy import speed_of


class LayerShares(NamedTuple):
    """Each layer's share of the path; all zero if nothing moves.

    Attributes:
        work: ρ_l times kinetic energy, over its sum; shape (L,).
        length: ρ_l times speed, over its sum; shape (L,).
    """

    work: Tensor
    length: Tensor


def layer_shares(kinetic_energies: Tensor, step_sizes: Tensor) -> LayerShares:
    """Each layer's share of the action ``Σ_l ρ_l E_l`` and of the path length ``Σ_l ρ_l ‖V_l‖_K`` [ours].

    ‖V_l‖_K is proportional to √E_l.

    Args:
        kinetic_energies: E_l, shape (L,), energies; rounding below zero counts as zero.
        step_sizes: ρ, shape (L,), positive, with any sum.

    Returns:
        Shares in [0, 1] that sum to 1, float64; zeros if nothing moves or an energy is not finite.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> layer_shares(torch.tensor([9.0, 1.0]), torch.tensor([0.5, 0.5])).length
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    check_same_shape("step_sizes", step_sizes, "kinetic_energies", kinetic_energies)
    rho, energies = widen(step_sizes), widen(kinetic_energies).clamp(min=0)
    work, length = rho * energies, rho * speed_of(energies)
    if not 0 < float(work.sum()) < float("inf"):
        return LayerShares(torch.zeros_like(work), torch.zeros_like(length))
    return LayerShares(work / work.sum(), length / length.sum())


def fewest_layers(shares: Tensor, least: float) -> list[int]:
    """The fewest layers with a given share together, counted from 0, in order; none if all shares are zero.

    Args:
        shares: One of `layer_shares`, shape (L,).
        least: Their least share together, in [0, 1].

    Raises:
        ValueError: If `least` is not in [0, 1].

    Example:
        >>> fewest_layers(torch.tensor([0.1, 0.6, 0.3]), least=0.8)
        [1, 2]
    """
    if not 0.0 <= least <= 1.0:
        raise ValueError(f"`least` must be in [0, 1], got {least!r}.")
    order = shares.argsort(descending=True, stable=True)
    count = int((shares[order].cumsum(0) < least).sum()) + 1
    return sorted(order[:count].tolist()) if bool(shares.any()) else []
