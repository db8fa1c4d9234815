"""Errors of Euler steps, and a mesh that bounds them."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_leaky.functional._checks import check_layers, check_matrix, check_positive, check_same_shape
from lightning_leaky.functional.moments import inner_product
from lightning_leaky.functional.step_sizes import check_step_sizes

_COMFORTABLE = 0.25  # part of a share


def discretisation_errors(representations: Tensor, step_sizes: Tensor) -> Tensor:
    """Estimated local error of each Euler step, ``e_l = ½ ρ_l² ‖∂²_pA‖_F / ‖A_l‖_F`` [ours].

    ``V_l = (A_l − A_{l−1})/ρ_l`` is the velocity at p_{l−1}, so ``∂²_pA = (V_{l+1} − V_l)/ρ_l`` even if step-sizes
    differ. The last step takes that of the one before. If the field is smooth in p, the estimate is asymptotically
    exact: e_l is of second and Σ_l e_l of first order in ρ. It is 0 on a straight path.

    Args:
        representations: A_0, …, A_L, shape (L + 1, N, w), L ≥ 2.
        step_sizes: ρ, shape (L,).

    Returns:
        e, shape (L,), no unit, float64. Their sum is the relative error of A_L if local errors add up unchanged.

    Raises:
        ValueError: If the tensors do not fit.

    Example:
        >>> discretisation_errors(torch.tensor([[[1.0]], [[2.0]], [[4.0]]]), torch.tensor([0.5, 0.5]))
        tensor([0.2500, 0.1250], dtype=torch.float64)
    """
    wide = check_layers("representations", check_matrix("representations", representations))
    rho = check_step_sizes(step_sizes, num_layers=wide.shape[0] - 1).to(wide)
    velocities = wide.diff(dim=0) / rho[:, None, None]
    changes = torch.cat([torch.zeros_like(velocities[:1]), velocities.diff(dim=0)])
    return discretisation_errors_of(torch.stack([inner_product(matrix, matrix) for matrix in (changes, wide[1:])]), rho)


def discretisation_errors_of(squares: Tensor, step_sizes: Tensor) -> Tensor:
    """`discretisation_errors` from sums over samples, shape (2, L): ‖V_l − V_{l−1}‖² (from l = 2) and ‖A_l‖²."""
    if len(step_sizes) < 2:
        raise ValueError(
            "`step_sizes` must be of at least 2 layers, got 1; begin with two, as by LeakyResNet.remesh([0.5, 0.5])."
        )
    changes, sizes = squares.sqrt()
    accelerations = changes[1:] / step_sizes[:-1]
    accelerations = torch.cat([accelerations, accelerations[-1:]])
    errors: Tensor = 0.5 * step_sizes.square() * accelerations / sizes
    return errors


def refined_step_sizes(
    step_sizes: Tensor,
    errors: Tensor,
    tolerance: float,
    max_layers: int,
    min_layers: int = 1,
    max_step_size: float = 1.0,
) -> Tensor:
    """Split and merge layers until the estimated error, ``Σ_l e_l``, is below a tolerance [ours].

    A layer's share is tolerance/L. While the sum exceeds the tolerance, layers above their share are split into equal
    halves, worst first. Neighbours merge if their merged error is at most a quarter of a share.

    Errors go with ρ²: each half has a quarter of the whole's error, and merged neighbours have ``√e = √e_1 + √e_2``.
    These are forecasts, so a layer changes once per call: call again with new errors.

    Args:
        step_sizes: ρ, shape (L,).
        errors: e, shape (L,), as of `discretisation_errors`.
        tolerance: Bound on the sum of the errors, > 0, no unit.
        max_layers: Splitting stops at this number of layers.
        min_layers: Merging stops at this number of layers.
        max_step_size: Largest ρ of a merged layer; 1/L̃ keeps ρ_l L̃ ≤ 1.

    Returns:
        New ρ, shape (M,), float64, with the same sum. Other layers keep theirs, bit for bit.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> refined_step_sizes(torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.2, 1e-4, 1e-4]), 0.1, max_layers=10)
        tensor([0.2500, 0.2500, 0.5000], dtype=torch.float64)
    """
    rho = check_step_sizes(step_sizes).cpu()
    check_same_shape("errors", errors, "step_sizes", step_sizes)
    wide = errors.detach().to("cpu", torch.float64)
    if not (wide.isfinite() & (wide >= 0)).all():
        raise ValueError(f"`errors` must be finite and not negative, got {wide.tolist()}.")
    check_refinement(tolerance, max_layers, min_layers)
    merged = _to_merge(rho, wide, _COMFORTABLE * tolerance / len(rho), len(rho) - min_layers, max_step_size)
    split = _to_split(wide, merged, tolerance, max_layers - len(rho) + len(merged))
    sizes: list[float] = []
    for index, size in enumerate(rho.tolist()):
        if index - 1 in merged:
            sizes[-1] += size
        else:
            sizes += [size / 2, size / 2] if index in split else [size]
    return torch.tensor(sizes, dtype=torch.float64)


def check_refinement(tolerance: float, max_layers: int, min_layers: int) -> None:
    """Raise ValueError if a setting is out of range."""
    check_positive("tolerance", tolerance)
    if min_layers < 1:
        raise ValueError(f"`min_layers` must be at least 1, got {min_layers!r}.")
    if max_layers < min_layers:
        raise ValueError(f"`max_layers` must be at least `min_layers` = {min_layers}, got {max_layers!r}.")


def merged_errors(errors: Tensor) -> Tensor:
    """Forecast the errors of each layer merged with the next, shape (L − 1,)."""
    roots = errors.sqrt()
    return (roots[:-1] + roots[1:]).square()


def _to_merge(rho: Tensor, errors: Tensor, bound: float, most: int, max_step_size: float) -> set[int]:
    """First layers of disjoint pairs to merge."""
    fits = (merged_errors(errors) <= bound) & (rho[:-1] + rho[1:] <= max_step_size * (1 + 1e-9))
    pairs: set[int] = set()
    for index in fits.nonzero().flatten().tolist():
        if index - 1 not in pairs and len(pairs) < most:
            pairs.add(index)
    return pairs


def _to_split(errors: Tensor, merged: set[int], tolerance: float, most: int) -> set[int]:
    """Layers to split, worst first, until halved errors are enough."""
    merging = merged_errors(errors)
    total = float(errors.sum()) + sum(float(merging[one] - errors[one] - errors[one + 1]) for one in merged)
    chosen: set[int] = set()
    for index in errors.argsort(descending=True).tolist():
        if total <= tolerance or errors[index] <= tolerance / len(errors) or len(chosen) >= most:
            break
        chosen.add(index)
        total -= float(errors[index]) / 2
    return chosen
