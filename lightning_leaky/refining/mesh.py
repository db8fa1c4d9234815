"""How many layers a path needs: the error of each Euler step, and a mesh that keeps their sum below a tolerance."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_leaky.functional._checks import check_layers, check_matrix, check_positive, check_same_shape
from lightning_leaky.functional.moments import inner_product
from lightning_leaky.functional.step_sizes import check_step_sizes

# Neighbours are merged where their error stays below this part of a layer's share. Split at one whole share and merged
# at a quarter of one, a layer comes back only where the number of layers has changed fourfold in between.
_COMFORTABLE = 0.25


def discretisation_errors(representations: Tensor, step_sizes: Tensor) -> Tensor:
    """Estimated local error of each Euler step, ``e_l = ½ ρ_l² ‖∂²_pA‖_F / ‖A_l‖_F`` [ours].

    ``V_l = (A_l − A_{l−1})/ρ_l`` is the velocity at p_{l−1}, where the step evaluates it, not at the middle of the step
    as it would be on a smooth curve: so ``∂²_pA = (V_{l+1} − V_l)/ρ_l``, right also where neighbouring step-sizes
    differ. The last step takes that of the one before. For a field that is smooth in p the estimate is then
    asymptotically exact, e_l of second and Σ_l e_l of first order in ρ, the order of the Euler scheme.

    What it counts is how much the path bends. A step reads W at one place, so the change of W from layer to layer
    counts too; a straight path has no error, however strongly W and A change against each other along it.

    Args:
        representations: A_0, …, A_L, shape (L + 1, N, w), with L ≥ 2: one step alone has nothing to compare with.
        step_sizes: ρ, shape (L,).

    Returns:
        e, shape (L,), no unit, float64. Their sum is what a tolerance bounds: the relative error of A_L if every local
        error were carried along as it is.

    Raises:
        ValueError: If the tensors are not as described.

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
    """`discretisation_errors` from sums over samples, shape (2, L), which add up over batches and processes.

    They are ‖V_l − V_{l−1}‖² (the first is not read) and ‖A_l‖². An error is not finite where a representation is zero,
    for it is relative; ValueError if there is but one layer.

    Example:
        >>> discretisation_errors_of(torch.tensor([[0.0, 4.0], [4.0, 16.0]]), torch.tensor([0.5, 0.5]))
        tensor([0.2500, 0.1250])
    """
    if len(step_sizes) < 2:
        raise ValueError(
            "`step_sizes` must be of at least 2 layers, got 1: an error is estimated from the velocities of "
            "neighbours; begin with two, as by LeakyResNet.remesh([0.5, 0.5])."
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
    """Mesh with layers split and merged until the estimated error, ``Σ_l e_l``, is below a tolerance [ours].

    A layer's share of the tolerance is tolerance/L. While the sum exceeds the tolerance, layers above their share are
    split into equal halves, worst first. Neighbours whose merged error is at most a quarter of a share are merged; that
    quarter keeps a mesh from flipping back and forth.

    Local errors go with ρ²: a half has a quarter of the whole's, both halves together one half of it, and √e adds up,
    ``√e = √e_1 + √e_2``, where neighbours merge. A layer is split or merged once a call, for what comes of it is a
    forecast: apply the function again to new errors. Where errors go with ρ² exactly this ends, below the tolerance
    unless `max_layers` is in the way, and then nothing changes any more.

    Args:
        step_sizes: ρ, shape (L,).
        errors: e, shape (L,), as of `discretisation_errors`.
        tolerance: Bound on the sum of the errors, > 0, no unit.
        max_layers: No layer is split where there are so many.
        min_layers: No layers are merged where there are so few.
        max_step_size: No layers are merged into a longer one; 1/L̃ keeps ρ_l L̃ ≤ 1.

    Returns:
        New ρ, shape (M,), float64, of the same sum. Layers left alone keep theirs, bit for bit.

    Raises:
        ValueError: If the step-sizes are no distribution, the errors are not finite or negative, or a number is out of
            range.

    Example:
        >>> refined_step_sizes(torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.2, 1e-4, 1e-4]), 0.1, max_layers=10)
        tensor([0.2500, 0.2500, 0.5000], dtype=torch.float64)
    """
    rho = check_step_sizes(step_sizes).cpu()
    check_same_shape("errors", errors, "step_sizes", step_sizes)
    wide = errors.detach().to("cpu", torch.float64)
    if not bool((torch.isfinite(wide) & (wide >= 0)).all()):
        raise ValueError(f"`errors` must be finite and not negative, got {wide.tolist()}; look for a diverged layer.")
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
    """Raise ValueError where a setting of a refinement is out of range."""
    check_positive("tolerance", tolerance)
    if min_layers < 1:
        raise ValueError(f"`min_layers` must be at least 1, got {min_layers!r}.")
    if max_layers < min_layers:
        raise ValueError(f"`max_layers` must be at least `min_layers` = {min_layers}, got {max_layers!r}.")


def merged_errors(errors: Tensor) -> Tensor:
    """Forecast errors of each layer merged with the next, ``(√e_l + √e_{l+1})²``, shape (L − 1,).

    Example:
        >>> merged_errors(torch.tensor([1.0, 1.0, 4.0]))
        tensor([4., 9.])
    """
    roots = errors.sqrt()
    return (roots[:-1] + roots[1:]).square()


def _to_merge(rho: Tensor, errors: Tensor, bound: float, most: int, max_step_size: float) -> set[int]:
    """First layers of the pairs to merge, from left to right, no layer in two of them."""
    fits = (merged_errors(errors) <= bound) & (rho[:-1] + rho[1:] <= max_step_size * (1 + 1e-9))
    pairs: set[int] = set()
    for index in fits.nonzero().flatten().tolist():
        if index - 1 not in pairs and len(pairs) < most:
            pairs.add(index)
    return pairs


def _to_split(errors: Tensor, merged: set[int], tolerance: float, most: int) -> set[int]:
    """Layers to split: above their share, worst first, until half of the errors of all of them is enough."""
    merging = merged_errors(errors)
    total = float(errors.sum()) + sum(float(merging[one] - errors[one] - errors[one + 1]) for one in merged)
    chosen: set[int] = set()
    for index in errors.argsort(descending=True).tolist():
        if total <= tolerance or errors[index] <= tolerance / len(errors) or len(chosen) >= most:
            break
        chosen.add(index)
        total -= float(errors[index]) / 2
    return chosen
