"""Pontryagin's Hamiltonian and criticality of any block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_leaky.functional._checks import check_matrices, widen
from lightning_leaky.functional.movement import first_order_sums


def pontryagin_hamiltonian(
    gradient: Tensor, previous: Tensor, current: Tensor, weight_cost: Tensor | float, step_size: Tensor | float
) -> Tensor:
    """Pontryagin's Hamiltonian ``H_l = (⟨P_l, A_l − A_{l−1}⟩ − R_l)/ρ_l`` of any block, P_l = −∂C/∂A_l [ours].

    R_l is layer l's cost in the objective C + Σ_l R_l: (d/2)‖θ_l‖² if an optimizer adds dθ to the gradient. H is
    constant along an optimum of many layers if R_l/ρ_l depends on the parameters alone: at equal steps, or if d grows
    like ρ_l. For leaky steps with R_l = (λ/(2L̃))ρ_l‖W_l‖² and critical weights it is λ times `hamiltonian`.

    Args:
        gradient: ∂C/∂A_l, shape (..., N, w).
        previous: A_{l−1}, shape (..., N, w).
        current: A_l, shape (..., N, w).
        weight_cost: R_l, shape (...).
        step_size: ρ_l > 0, shape (...); 1/L for equal steps.

    Returns:
        Shape (...), in units of the cost, of either sign, float64.

    Raises:
        ValueError: If a tensor is not floating-point, finite and of its shape.

    Example:
        >>> gradient = torch.tensor([[-1.0, 0.0], [-1.0, 0.0]])
        >>> pontryagin_hamiltonian(gradient, torch.zeros(2, 2), torch.ones(2, 2), weight_cost=1.5, step_size=0.5)
        tensor(1., dtype=torch.float64)
    """
    sums = first_order_sums(*check_matrices(gradient=gradient, previous=previous, current=current))
    return pontryagin_hamiltonian_of(sums[..., 0], weight_cost, step_size)


def pontryagin_hamiltonian_of(first_order: Tensor, weight_cost: Tensor | float, step_size: Tensor | float) -> Tensor:
    """Pontryagin's Hamiltonian from Σ_i ⟨∂C/∂A_l, A_{l−1} − A_l⟩_i, without checks."""
    return (first_order - weight_cost) / step_size


def pontryagin_residual(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor], weight_decays: Sequence[float]
) -> Tensor:
    """Residual ``‖dθ_l + ∂C/∂θ_l‖/‖dθ_l‖`` of a block's parameters, 0 at a critical point of C + (d/2)‖θ‖² [ours].

    Args:
        parameters: The tensors of θ_l, except weights before a normalisation: their scale does not change C, so with
            decay their only critical point is 0.
        gradients: ∂C/∂θ_l, in the same order and shapes.
        weight_decays: d of each, as SGD and Adam add it to the gradient; AdamW's has no objective.

    Returns:
        A scalar, no unit, ≥ 0, float64; infinite if nothing decays and a gradient is left.

    Raises:
        ValueError: If the shapes differ, or a parameter has no gradient or weight decay of its own.

    Example:
        >>> pontryagin_residual([torch.tensor([3.0, 4.0])], [torch.tensor([-0.3, -0.2])], [0.1])
        tensor(0.4000, dtype=torch.float64)
    """
    shapes, others = [tuple(one.shape) for one in parameters], [tuple(one.shape) for one in gradients]
    if shapes != others:
        raise ValueError(f"`gradients` must have the shapes of `parameters`, {shapes}, got {others}.")
    if len(weight_decays) != len(shapes) or not shapes:
        raise ValueError(f"`weight_decays` must be one number for each of {len(shapes)} >= 1 parameters.")
    each = zip(parameters, gradients, weight_decays, weight_decays, strict=True)
    return pontryagin_residual_of(*torch.stack([parameter_sums(*one) for one in each])[:, 4:].sum(0))


def pontryagin_residual_of(gradient_square: Tensor, decay_square: Tensor) -> Tensor:
    """Residual from ‖dθ + ∂C/∂θ‖² and ‖dθ‖²; 0 if both are 0."""
    return torch.where(gradient_square == 0, 0.0, gradient_square / decay_square).sqrt()


def parameter_sums(parameter: Tensor, gradient: Tensor, decay: float, missing: float) -> Tensor:
    """‖θ‖², ⟨θ, c⟩, ‖c‖², (d/2)‖θ‖², ‖c + dθ‖² and ‖dθ‖², c = ∂C/∂θ, shape (6,), from a gradient c + (d − m)θ."""
    theta = widen(parameter)
    slope = gradient.to(theta)
    cost, left, square = slope + (missing - decay) * theta, slope + missing * theta, theta.square().sum()
    of_cost = [square, (theta * cost).sum(), cost.square().sum()]
    return torch.stack([*of_cost, decay / 2 * square, left.square().sum(), decay**2 * square])
