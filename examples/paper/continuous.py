"""How far a Leaky ResNet is from its continuous limit: its path against an adaptive solver's, on the same weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchdiffeq import odeint

from lightning_leaky import LeakyResNet
from lightning_leaky.functional import leaky_step, resolve_activation
from lightning_leaky.refining import discretisation_errors, interpolate_layers

Reading = Literal["constant", "linear"]
"""How the weights of the layers are read as a function W(p); see `gap`."""


@torch.no_grad()
def gap(network: LeakyResNet, inputs: Tensor, weights: Reading = "constant", tolerance: float = 1e-7) -> dict[str, Any]:
    """Relative errors of the L Euler steps against ``∂_pA = −L̃A + σ(A)W(p)ᵀ``, solved by dopri5 in float64.

    Args:
        network: The trained network; it stays as it is.
        inputs: Inputs to follow, shape (N, in_features).
        weights: ``"constant"``: W(p) = W_l on [p_{l−1}, p_l]. ``"linear"``: W_l in the middle of that interval, linear
            in p between two middles, constant before the first and after the last one.
        tolerance: Relative and absolute, of the solver.

    Returns:
        ``errors``: ``‖A_l − A(p_l)‖_F / ‖A(p_l)‖_F`` at l = 1, …, L; ``largest_error`` of these; ``last_error``, at
        l = L; ``output_error``, of the outputs. And estimates that need no solver: ``largest_estimate``,
        ``last_estimate`` and ``output_estimate`` by step doubling, twice the relative change of the same quantities
        when every step is halved; ``bend_estimate``, the sum of `discretisation_errors`, by neighbouring velocities.
    """
    double = copy.deepcopy(network).double()
    wide = inputs.double()
    path = double.representations(wide)
    exact = _solve(double, path[0], weights, tolerance)
    halved = _halved_path(double, path[0], weights)
    errors, estimates = _relative(path[1:], exact), 2 * _relative(path[1:], halved)
    read = double.output_map
    return {
        "errors": errors.tolist(),
        "largest_error": float(errors.max()),
        "last_error": float(errors[-1]),
        "output_error": float(_relative(read(path[-1:]), read(exact[-1:]))),
        "largest_estimate": float(estimates.max()),
        "last_estimate": float(estimates[-1]),
        "output_estimate": 2 * float(_relative(read(path[-1:]), read(halved[-1:]))),
        "bend_estimate": float(discretisation_errors(path, double.step_sizes).sum()),
    }


def _relative(found: Tensor, exact: Tensor) -> Tensor:
    differences, sizes = (torch.linalg.vector_norm(matrices, dim=(1, 2)) for matrices in (found - exact, exact))
    relative: Tensor = differences / sizes
    return relative


def _solve(network: LeakyResNet, start: Tensor, weights: Reading, tolerance: float) -> Tensor:
    """A(p_1), …, A(p_L) from A(0)."""
    path = [start]
    for pieces in _pieces(network, weights):
        end = path[-1]
        for piece in pieces:
            end = _solve_piece(network, end, *piece, tolerance)
        path.append(end)
    return torch.stack(path[1:])


def _solve_piece(
    network: LeakyResNet, start: Tensor, first: Tensor, last: Tensor, length: Tensor, tolerance: float
) -> Tensor:
    """A at the end of a piece of the path along which W is linear in p, from `first` to `last`."""
    activation, slope = resolve_activation(network.activation), (last - first) / length

    def velocity(position: Tensor, representation: Tensor) -> Tensor:
        weight, bias = _without_bias_column(network, first + position * slope)
        return F.linear(activation(representation), weight, bias).sub_(representation, alpha=network.effective_depth)

    ends = torch.stack([torch.zeros_like(length), length])
    found: Tensor = odeint(velocity, start, ends, rtol=tolerance, atol=tolerance, method="dopri5")[-1]
    return found


def _pieces(network: LeakyResNet, weights: Reading) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """Of every layer's interval, pieces on which W is linear in p: so the solver meets neither jump nor kink of W."""
    stacked, rho = network.weights(), network.step_sizes
    if weights == "constant":
        for weight, length in zip(stacked, rho, strict=True):
            yield [(weight, weight, length)]
        return
    # W at p_1, …, p_{L−1}, between two middles ρ_l/2 and ρ_{l+1}/2 away.
    fraction = (rho[:-1] / (rho[:-1] + rho[1:]))[:, None, None]
    inner = torch.lerp(stacked[:-1], stacked[1:], fraction)
    ends = torch.cat([stacked[:1], inner, stacked[-1:]])
    for left, middle, right, length in zip(ends[:-1], stacked, ends[1:], rho, strict=True):
        yield [(left, middle, length / 2), (middle, right, length / 2)]


def _halved_path(network: LeakyResNet, start: Tensor, weights: Reading) -> Tensor:
    """A after every second one of 2L Euler steps, each half as long: at p_1, …, p_L again."""
    halves = network.step_sizes.repeat_interleave(2) / 2
    stacked = network.weights()
    if weights == "constant":
        stacked = stacked.repeat_interleave(2, dim=0)
    else:
        stacked = interpolate_layers(stacked, network.step_sizes, halves)
    path = [start]
    for weight, step_size in zip(stacked, halves, strict=True):
        step = (*_without_bias_column(network, weight), step_size, network.effective_depth, network.activation)
        path.append(leaky_step(path[-1], *step))
    return torch.stack(path[2::2])


def _without_bias_column(network: LeakyResNet, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    if not network.constant_column:
        return weight, None
    return weight[:, :-1], weight[:, -1]
