"""The adaptive iteration by itself: what its map does to a mesh while the network, or the path, stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_leaky import LeakyResNet, adaptive_step_sizes, equidistant_step_sizes
from lightning_leaky.functional import relative_distances

PathOf = Callable[[Tensor], Tensor]
"""Representations A_0, …, A_L, shape (L + 1, N, w), that go with step-sizes ρ, shape (L,)."""


def relative_steps(path: Tensor) -> Tensor:
    """``ρ_l c_l = ‖A_l − A_{l−1}‖_F / ‖A_l‖_F``, shape (L,): the same for all layers at the fixed point."""
    steps, sizes = (torch.linalg.vector_norm(matrices, dim=(1, 2)) for matrices in (path.diff(dim=0), path[1:]))
    relative: Tensor = steps / sizes
    return relative


def distance_to_fixed_point(path: Tensor) -> float:
    """[ours] Standard deviation over layers of log(ρ_l c_l): 0 at the fixed point of the rule, and only there."""
    return float(relative_steps(path.double()).log().std(correction=0))


def frozen_weights(network: LeakyResNet, inputs: Tensor) -> PathOf:
    """Each W_l stays with its layer, as in training between two steps: new step-sizes move the whole path."""
    double = copy.deepcopy(network).double().requires_grad_(False)
    start = double.input_map(inputs.double())

    def path_of(step_sizes: Tensor) -> Tensor:
        path = [start]
        for layer, step_size in zip(double.layers, step_sizes, strict=True):
            path.append(layer(path[-1], step_size))
        return torch.stack(path)

    return path_of


def frozen_path(network: LeakyResNet, inputs: Tensor, num_points: int = 200) -> PathOf:
    """A stays where it is as a function of p: new step-sizes only choose other points of the same curve.

    The curve is the network's own on a fine mesh, W read as a function of p (`LeakyResNet.remesh`), linear between its
    points.
    """
    fine = copy.deepcopy(network).double().requires_grad_(False)
    fine.remesh(equidistant_step_sizes(num_points))
    curve = fine.representations(inputs.double())

    def path_of(step_sizes: Tensor) -> Tensor:
        positions = torch.cat([step_sizes.new_zeros(1), step_sizes.cumsum(0)]) * num_points
        left = positions.floor().long().clamp(0, num_points - 1)
        return torch.lerp(curve[left], curve[left + 1], (positions - left)[:, None, None])

    return path_of


@torch.no_grad()
def iterate(path_of: PathOf, num_layers: int, damping: float, num_iterations: int, batch_size: int = 0) -> list[float]:
    """Distances to the fixed point before each of some adaptations and after the last, from equidistant step-sizes.

    Args:
        path_of: What is frozen.
        num_layers: L.
        damping: How far each adaptation goes.
        num_iterations: How many there are.
        batch_size: Samples that each of them sees, drawn anew; 0 for all. Distances are always over all samples.
    """
    generator = torch.Generator().manual_seed(0)
    step_sizes, distances = equidistant_step_sizes(num_layers), []
    for _ in range(num_iterations + 1):
        path = path_of(step_sizes)
        distances.append(distance_to_fixed_point(path))
        seen = path[:, torch.randperm(path.shape[1], generator=generator)[:batch_size]] if batch_size else path
        step_sizes = adaptive_step_sizes(step_sizes, relative_distances(seen, step_sizes), damping)
    return distances


def eigenvalues(path_of: PathOf, num_layers: int, num_iterations: int = 100) -> Tensor:
    """Eigenvalues μ of the undamped map's Jacobian at its fixed point, in log ρ up to a constant, shape (L − 1,).

    With damping η an error along an eigenvector shrinks by ``|1 − η + ημ|`` an iteration: undamped the iteration
    converges where all ``|μ| < 1``; damping helps against μ < −1 and slows down the rest.

    Args:
        path_of: What is frozen.
        num_layers: L.
        num_iterations: Damped iterations that look for the fixed point first.
    """
    step_sizes = equidistant_step_sizes(num_layers)
    for _ in range(num_iterations):
        step_sizes = adaptive_step_sizes(step_sizes, relative_distances(path_of(step_sizes), step_sizes), damping=0.3)

    def undamped(log_step_sizes: Tensor) -> Tensor:
        return log_step_sizes - relative_steps(path_of(log_step_sizes.softmax(0))).log()

    jacobian: Tensor = torch.func.jacrev(undamped)(step_sizes.log())
    # The map does not feel a constant, and its own is normalised away: only what is across the constants counts.
    basis = torch.eye(num_layers, dtype=torch.float64)
    basis[:, 0] = 1
    across = torch.linalg.qr(basis).Q[:, 1:]
    found: Tensor = torch.linalg.eigvals(across.mT @ jacobian @ across)
    return found
