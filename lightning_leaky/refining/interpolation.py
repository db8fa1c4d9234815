"""Layers' values on another mesh."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_leaky.functional.step_sizes import check_step_sizes

_ROUNDING = 1e-9  # share of a gap


class Interpolation(NamedTuple):
    """Places of the M layers of a new mesh among the L layers of an old one.

    The value at new layer j is ``(1 − fraction_j) · value[left_j] + fraction_j · value[right_j]``.

    Attributes:
        left: Old layer at or before each new one, from 0, shape (M,); never falls.
        right: Old layer after it, or `left`, shape (M,).
        fraction: Place between them, in [0, 1), shape (M,), float64.
    """

    left: Tensor
    right: Tensor
    fraction: Tensor

    @property
    def nearest(self) -> Tensor:
        """Old layer nearest to each new one, shape (M,)."""
        return torch.where(self.fraction < 0.5, self.left, self.right)


def interpolation_of(step_sizes: Tensor, new_step_sizes: Tensor) -> Interpolation:
    """Find the layers of a new mesh among those of an old one [ours].

    A layer stands at the middle of its interval [p_{l−1}, p_l]. Values are linear in p between middles, and constant
    outside.

    Args:
        step_sizes: Old ρ, shape (L,).
        new_step_sizes: New ρ, shape (M,).

    Returns:
        Indices and fractions on the CPU.

    Raises:
        ValueError: If the step-sizes are no distributions.

    Example:
        >>> interpolation_of(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.25, 0.5])).fraction
        tensor([0.0000, 0.2500, 0.0000], dtype=torch.float64)
    """
    old, new = _middles(step_sizes), _middles(new_step_sizes)
    after = torch.searchsorted(old, new)
    left, right = (after - 1).clamp(min=0), after.clamp(max=len(old) - 1)
    gap = old[right] - old[left]
    fraction = torch.where(gap > 0, (new - old[left]) / gap, 0.0)
    left = torch.where(fraction > 1 - _ROUNDING, right, left)
    right = torch.where(fraction < _ROUNDING, left, right)
    return Interpolation(left, right, torch.where(left == right, 0.0, fraction))


def interpolate_layers(values: Tensor, step_sizes: Tensor, new_step_sizes: Tensor) -> Tensor:
    """Interpolate values of layers to a new mesh; see `interpolation_of` [ours].

    It is exact for values that are constant or, between middles, linear in p.

    Args:
        values: Values of the old layers, shape (L, ...), floating-point.
        step_sizes: Old ρ, shape (L,).
        new_step_sizes: New ρ, shape (M,).

    Returns:
        Shape (M, ...), with the dtype and device of `values`.

    Raises:
        ValueError: If the step-sizes are no distributions, or the values are not one per layer.

    Example:
        >>> interpolate_layers(torch.tensor([1.0, 3.0]), torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.5, 0.25]))
        tensor([1., 2., 3.])
    """
    if not values.is_floating_point() or values.ndim == 0 or len(values) != len(step_sizes):
        raise ValueError(
            f"`values` must be floating-point of shape ({len(step_sizes)}, ...), got {values.dtype} of "
            f"shape {tuple(values.shape)}."
        )
    left, right, fraction = (part.to(values.device) for part in interpolation_of(step_sizes, new_step_sizes))
    weight = fraction.to(values.dtype).reshape(-1, *[1] * (values.ndim - 1))
    return torch.lerp(values[left], values[right], weight)


def _middles(step_sizes: Tensor) -> Tensor:
    rho = check_step_sizes(step_sizes).cpu()
    ends = rho.cumsum(0) / rho.sum()
    return ends - 0.5 * rho / rho.sum()
