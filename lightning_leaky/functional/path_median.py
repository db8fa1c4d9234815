"""The median of a quantity along the path, where layers of long steps count for more."""

from __future__ import annotations

from torch import Tensor

from lightning_leaky.functional._checks import check_same_shape, widen

# Of a share of the path: halves that differ by less are the same.
_ROUNDING = 1e-7


def path_median(values: Tensor, step_sizes: Tensor) -> Tensor:
    """Median over the position p of a quantity with one value a layer [ours].

    The quantity is taken as constant on each step, so a layer counts by its step-size and the median does not move when
    layers crowd somewhere. Where exactly half of the path is below, it is the mean of the two values in the middle, as
    with the ordinary median, which this is where all steps are equal.

    Args:
        values: One a layer, shape (L,), any unit.
        step_sizes: ρ, shape (L,), positive, with any sum.

    Returns:
        A scalar in float64; NaN where a value is.

    Raises:
        ValueError: If there is not one step-size a layer.

    Example:
        >>> path_median(torch.tensor([9.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 1.0]))
        tensor(2., dtype=torch.float64)
        >>> path_median(torch.tensor([9.0, 1.0, 2.0]), torch.tensor([6.0, 1.0, 1.0]))
        tensor(9., dtype=torch.float64)
    """
    check_same_shape("step_sizes", step_sizes, "values", values)
    ordered, order = widen(values).sort()  # NaN last
    weights = widen(step_sizes)[order]
    below = weights.cumsum(0) / weights.sum()
    first, last = (int((below < half).sum()) for half in (0.5 - _ROUNDING, 0.5 + _ROUNDING))
    return ordered[-1] if bool(ordered[-1].isnan()) else (ordered[first] + ordered[last]) / 2
