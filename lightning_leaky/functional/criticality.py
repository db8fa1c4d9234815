"""Criticality and balancedness."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_leaky.functional._checks import check_layers, check_matrix
from lightning_leaky.functional.leaky_step import leak_scale
from lightning_leaky.functional.moments import MomentumMoments, momentum_moments
from lightning_leaky.functional.step_sizes import check_step_sizes


def criticality_residual(
    weight: Tensor, representation: Tensor, momentum: Tensor, effective_depth: float, features: Tensor | None = None
) -> Tensor:
    """Criticality residual ``‖W_l − L̃ B_lᵀσ(A_{l−1})‖_F / ‖W_l‖_F`` (from arXiv 2405.17573, section 2).

    Zero if the gradient of the objective in W_l is zero. Below about 0.1 the Hamiltonian can be trusted; near 1 it says
    nothing.

    Args:
        weight: W_l with its bias in the last column, shape (..., w, d).
        representation: A_{l−1}, shape (..., N, w).
        momentum: B_l, shape (..., N, w).
        effective_depth: L̃ ≥ 0; at 0 the factor L̃ is dropped.
        features: σ(A), shape (..., N, d); ``[relu(A), 1]`` by default.

    Returns:
        Shape (...), no unit, ≥ 0, float64. For zero weights 0 if they are critical, else infinity.

    Raises:
        ValueError: If a tensor is not floating-point, finite and of its shape, or L̃ < 0.

    Example:
        >>> A, B = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0]])
        >>> criticality_residual(2.0 * B.T @ features(A), A, B, effective_depth=2.0)
        tensor(0., dtype=torch.float64)
    """
    wide = check_matrix("weight", weight)
    return criticality_residual_of(wide, momentum_moments(representation, momentum, features), effective_depth)


def criticality_residual_of(weight: Tensor, moments: MomentumMoments, effective_depth: float) -> Tensor:
    """Criticality residual without checks of values: NaN if the weight is not finite."""
    critical = moments.features_momentum.mT / leak_scale(effective_depth)
    if weight.shape[-2:] != critical.shape[-2:]:
        raise ValueError(
            f"`weight` must have shape (..., {critical.shape[-2]}, {critical.shape[-1]}), got {tuple(weight.shape)}; "
            "append the bias as last column, or pass features without a constant."
        )
    wide = weight.to(critical)
    distance, size = torch.linalg.matrix_norm(wide - critical), torch.linalg.matrix_norm(wide)
    return torch.where(distance == 0, 0.0, distance / size)


def balancedness_defect(
    weights: Tensor, step_sizes: Tensor, effective_depth: float, constant_column: bool = True
) -> Tensor:
    """Balancedness defect ``‖W_l‖²_F − ‖W_1‖²_F − 2L̃ Σ_{i<l} ρ_i ‖b_i‖²``, zero along a continuous optimum.

    Hamilton's equations and relu'(A) ⊙ A = relu(A) give d‖W_p‖²/dp = 2L̃‖b_p‖² for the bias columns b. It holds for
    positively homogeneous activations only.

    Args:
        weights: W_1, …, W_L with the bias in the last column, shape (L, w, d).
        step_sizes: ρ, shape (L,), positive, summing to 1.
        effective_depth: L̃ ≥ 0.
        constant_column: Whether the last column is a bias; without one b = 0.

    Returns:
        Shape (L,), units of ‖W‖²; the first entry is 0.

    Raises:
        ValueError: If the tensors are not as described.

    Example:
        >>> W = torch.tensor([[[1.0, 2.0]], [[2.0, 2.0]]])
        >>> balancedness_defect(W, torch.tensor([0.5, 0.5]), effective_depth=0.5)
        tensor([0., 1.], dtype=torch.float64)
    """
    wide = check_layers("weights", check_matrix("weights", weights))
    rho = check_step_sizes(step_sizes, num_layers=wide.shape[0]).to(wide.device)
    leak_scale(effective_depth)
    growth = wide.square().sum((-2, -1)) - wide[0].square().sum()
    if not constant_column:
        return growth
    paid = 2 * effective_depth * (rho * wide[..., -1].square().sum(-1)).cumsum(0)
    return growth - torch.cat([paid.new_zeros(1), paid[:-1]])
