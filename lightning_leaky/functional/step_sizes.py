"""Layer step-sizes ρ."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_leaky.functional._checks import check_layers, check_matrix, check_same_shape
from lightning_leaky.functional.moments import inner_product

_SUM_TOLERANCE = 1e-4  # for float32
# Far below any ratio of distances in a trained network.
_LEAST_RATIO = 1e-12


def equidistant_step_sizes(num_layers: int) -> Tensor:
    """Equidistant step-sizes ``ρ_l = 1/L`` (arXiv 2405.17573, section 4).

    Args:
        num_layers: L ≥ 1.

    Returns:
        Shape (L,), float64.

    Raises:
        ValueError: If L < 1.

    Example:
        >>> equidistant_step_sizes(4)
        tensor([0.2500, 0.2500, 0.2500, 0.2500], dtype=torch.float64)
    """
    return torch.full((_check_num_layers(num_layers),), 1 / num_layers, dtype=torch.float64)


def irregular_step_sizes(num_layers: int, unevenness: float = 0.9) -> Tensor:
    """Irregular step-sizes ``ρ_l ∝ 1/L + (a/L)(1/4 − |l/L − 1/2|)``, smaller near both ends (section 4).

    Args:
        num_layers: L ≥ 1.
        unevenness: a, in [0, 1); 0 is equidistant.

    Returns:
        Shape (L,), float64, summing to 1.

    Raises:
        ValueError: If L < 1 or a is outside [0, 1).

    Example:
        >>> irregular_step_sizes(4, unevenness=0.8)
        tensor([0.2500, 0.3000, 0.2500, 0.2000], dtype=torch.float64)
    """
    if not 0 <= unevenness < 1:
        raise ValueError(f"`unevenness` must be in [0, 1), got {unevenness!r}.")
    positions = torch.arange(1, _check_num_layers(num_layers) + 1, dtype=torch.float64) / num_layers
    return normalise_step_sizes(1 + unevenness * (0.25 - (positions - 0.5).abs()))


def adaptive_step_sizes(step_sizes: Tensor, distances: Tensor, damping: float = 1.0) -> Tensor:
    """Adaptive update ``ρ_l ← c_l⁻¹ / Σ_i c_i⁻¹`` (section 4).

    Its fixed point has equal ``ρ_l c_l``: with `relative_distances`, all layers move by the same relative distance.

    Args:
        step_sizes: Present ρ, shape (L,).
        distances: c_l > 0, change per unit of p, shape (L,).
        damping: How far to go, in (0, 1]; 1 is the paper's update, less suits noisy mini-batches and moving paths.
            [ours]

    Returns:
        New ρ, shape (L,), float64, positive, summing to 1; the present ρ if a distance is zero or not finite. [ours]

    Raises:
        ValueError: If the step-sizes are not a distribution, the shapes differ, or `damping` is outside (0, 1].

    Example:
        >>> adaptive_step_sizes(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 3.0]))
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    rho = check_step_sizes(step_sizes)
    check_same_shape("distances", distances, "step_sizes", step_sizes)
    if not 0 < damping <= 1:
        raise ValueError(f"`damping` must be in (0, 1], got {damping!r}; 1 is the paper's undamped update.")
    if not distances_are_usable(distances):
        return rho.clone()
    wide = distances.to(rho)
    # Relative to the least distance against overflow, clamped so that none becomes 0.
    slowness = (wide.amin() / wide).clamp(min=_LEAST_RATIO)
    return normalise_step_sizes(torch.lerp(rho, slowness / slowness.sum(), damping))


def distances_are_usable(distances: Tensor) -> bool:
    """Whether every distance is finite and positive."""
    return bool((torch.isfinite(distances) & (distances > 0)).all())


def relative_distances(representations: Tensor, step_sizes: Tensor) -> Tensor:
    """Relative distances per unit of p, ``c_l = ‖A_l − A_{l−1}‖_F / (ρ_l ‖A_l‖_F)`` (section 4).

    Args:
        representations: A_0, …, A_L, shape (L + 1, N, w).
        step_sizes: ρ, shape (L,).

    Returns:
        c, shape (L,), no unit, float64.

    Raises:
        ValueError: If the tensors are not as described.

    Example:
        >>> relative_distances(torch.tensor([[[1.0]], [[2.0]], [[3.0]]]), torch.tensor([0.5, 0.5]))
        tensor([1.0000, 0.6667], dtype=torch.float64)
    """
    wide = check_layers("representations", check_matrix("representations", representations))
    rho = check_step_sizes(step_sizes, num_layers=wide.shape[0] - 1)
    return relative_distances_of(distance_squares(wide[:-1], wide[1:]), rho.to(wide.device))


def distance_squares(previous: Tensor, current: Tensor) -> Tensor:
    """‖A_l − A_{l−1}‖² and ‖A_l‖², shape (2, ...), from two tensors of shape (..., N, w)."""
    return torch.stack([inner_product(matrix, matrix) for matrix in (current - previous, current)])


def relative_distances_of(squares: Tensor, step_sizes: Tensor) -> Tensor:
    """Relative distances per unit of p from `distance_squares`."""
    return (squares[0] / squares[1]).sqrt() / step_sizes


def cap_step_sizes(step_sizes: Tensor, maximum: float) -> Tensor:
    """Step-sizes under a bound; the other layers share the excess in proportion [ours].

    Args:
        step_sizes: ρ, shape (L,).
        maximum: Bound of every ρ_l, at least 1/L; 1/L̃ keeps ρ_l L̃ ≤ 1.

    Returns:
        Shape (L,), float64, summing to 1.

    Raises:
        ValueError: If the step-sizes are not a distribution or the bound is below 1/L.

    Example:
        >>> cap_step_sizes(torch.tensor([0.7, 0.2, 0.1]), maximum=0.5)
        tensor([0.5000, 0.3333, 0.1667], dtype=torch.float64)
    """
    rho = check_step_sizes(step_sizes)
    if not maximum * len(rho) >= 1 - 1e-9:  # NaN fails every comparison
        raise ValueError(f"`maximum` must be at least 1/L = {1 / len(rho):.6g} for {len(rho)} layers, got {maximum!r}.")
    capped = torch.zeros_like(rho, dtype=torch.bool)
    # Sharing can push another layer over the bound: at most L rounds.
    while bool((rho > maximum * (1 + 1e-12)).any()) and not bool(capped.all()):
        capped = rho >= maximum
        free = rho[~capped].sum().clamp(min=1e-300)
        rho = torch.where(capped, maximum, rho * (1 - maximum * int(capped.sum())) / free)
    return normalise_step_sizes(rho)


def normalise_step_sizes(step_sizes: Tensor) -> Tensor:
    """Positive numbers over their sum, in float64.

    Example:
        >>> normalise_step_sizes(torch.tensor([1.0, 3.0]))
        tensor([0.2500, 0.7500], dtype=torch.float64)
    """
    wide = step_sizes.to(torch.float64)
    return wide / wide.sum()


def check_step_sizes(step_sizes: Tensor, num_layers: int | None = None) -> Tensor:
    """Return step-sizes in float64 if they are a distribution over the layers.

    Args:
        step_sizes: ρ, shape (L,).
        num_layers: L, if known.

    Returns:
        Shape (L,), float64, not renormalised.

    Raises:
        ValueError: If they have another shape, are not positive and finite, or do not sum to 1 within 1e-4.

    Example:
        >>> check_step_sizes(torch.tensor([0.5, 0.5]))
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    rho = check_segment_step_sizes(step_sizes, num_layers)
    if abs(float(rho.sum()) - 1) > _SUM_TOLERANCE:
        raise ValueError(f"`step_sizes` must sum to 1, got {float(rho.sum()):.6g}; divide them by their sum.")
    return rho


def check_segment_step_sizes(step_sizes: Tensor, num_layers: int | None = None) -> Tensor:
    """`check_step_sizes` for a part of a path, with any sum."""
    rho = torch.as_tensor(step_sizes).detach().to(torch.float64)
    if rho.ndim != 1 or len(rho) == 0 or (num_layers is not None and len(rho) != num_layers):
        wanted = "(L,)" if num_layers is None else f"({num_layers},)"
        raise ValueError(f"`step_sizes` must have shape {wanted}, one per layer, got {tuple(rho.shape)}.")
    if not bool((torch.isfinite(rho) & (rho > 0)).all()):
        raise ValueError(f"`step_sizes` must be positive and finite, got {rho.tolist()}.")
    return rho


def _check_num_layers(num_layers: int) -> int:
    if num_layers < 1:
        raise ValueError(f"`num_layers` must be at least 1, got {num_layers!r}.")
    return num_layers
