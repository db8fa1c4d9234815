"""Projections of paths and targets."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_leaky.functional._checks import check_layers, check_matrix

# Rows that suffice for the directions: all would take O(w³).
_ROWS = 512


def path_projection(representations: Tensor) -> Tensor:
    """Coordinates of all A_p in the plane of the whole path's two leading directions (Fig. 2c of arXiv 2405.17573).

    The directions are the first two right singular vectors of the stacked A_0, …, A_L (of every k-th row if there are
    1024 or more), not centred, because a leaky path tends to the origin. The mean of each coordinate is not negative.

    Args:
        representations: A_0, …, A_L, shape (L + 1, N, w).

    Returns:
        Shape (L + 1, N, 2), float64, in the units of A; the second coordinate is 0 for one neuron or row.

    Raises:
        ValueError: If the tensor is not floating-point, finite and of its shape.

    Example:
        >>> path_projection(torch.tensor([[[0.0, 4.0]], [[0.0, 2.0]], [[0.0, 1.0]]]))[:, 0, 0].round(decimals=9)
        tensor([4., 2., 1.], dtype=torch.float64)
    """
    wide = check_layers("representations", check_matrix("representations", representations))
    stacked = wide.flatten(0, 1)
    rows = stacked[:: max(1, len(stacked) // _ROWS)]
    points = wide @ torch.linalg.svd(rows, full_matrices=False).Vh[:2].mT
    points = points * torch.where(points.mean((0, 1)) < 0, -1.0, 1.0)
    return torch.nn.functional.pad(points, (0, 2 - points.shape[-1]))


def principal_coordinate(points: Tensor) -> Tensor:
    """Coordinates of points along their direction of most variance, from the mean.

    Args:
        points: Shape (N, d).

    Returns:
        Shape (N,), float64, with mean 0. The direction's largest entry is positive.

    Raises:
        ValueError: If the tensor is not floating-point, finite and of its shape.

    Example:
        >>> principal_coordinate(torch.tensor([[0.0, 1.0], [4.0, 1.0]]))
        tensor([-2.,  2.], dtype=torch.float64)
    """
    wide = check_matrix("points", points)
    centred = wide - wide.mean(0)
    direction = torch.linalg.eigh(centred.mT @ centred).eigenvectors[:, -1]
    along: Tensor = centred @ (direction * direction[direction.abs().argmax()].sign())
    return along
