"""One Euler step of a Leaky ResNet, and its weight decay."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from lightning_leaky.functional.features import Activation, resolve_activation
from lightning_leaky.functional.relu_step import relu_step


def leaky_step(
    representation: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    step_size: Tensor,
    effective_depth: float,
    activation: Activation = "relu",
) -> Tensor:
    """Euler step ``A_l = (1 − ρ_l L̃) A_{l−1} + ρ_l σ(A_{l−1}) W_lᵀ`` (arXiv 2405.17573, section 1.1).

    Args:
        representation: A_{l−1}, shape (..., w).
        weight: W_l without its bias, shape (w, w).
        bias: Last column of W_l, shape (w,); ``None`` for features without the constant column.
        step_size: ρ_l, a scalar tensor.
        effective_depth: L̃ ≥ 0.
        activation: σ without constant column.

    Returns:
        A_l, shape (..., w).

    Raises:
        ValueError: If the activation's name is not known.

    Example:
        >>> leaky_step(torch.tensor([[4.0]]), torch.tensor([[3.0]]), None, torch.tensor(0.5), effective_depth=1.0)
        tensor([[8.]])
    """
    if activation == "relu" and _is_plain(representation, weight, step_size):
        return relu_step(representation, weight, bias, float(step_size), effective_depth)
    drive = F.linear(resolve_activation(activation)(representation), weight, bias)
    return (1 - step_size * effective_depth) * representation + step_size * drive


def _is_plain(representation: Tensor, weight: Tensor, step_size: Tensor) -> bool:
    """Whether only ordinary backward passes see the step, and ρ is on the CPU."""
    return (
        type(representation) is Tensor  # first, because tracers have no `ndim`
        and representation.ndim == 2
        and type(weight) in (Tensor, nn.Parameter)
        # A GPU would wait for ρ, and saves little; compiled code fuses the passes.
        and {representation.device.type, step_size.device.type} == {"cpu"}
        and not step_size.requires_grad
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def leak_scale(effective_depth: float) -> float:
    """Weight of ‖W‖² in the objective: 1/L̃, and 1 at L̃ = 0 (a plain ResNet), where the paper's factor is dropped.

    Args:
        effective_depth: L̃ ≥ 0.

    Raises:
        ValueError: If L̃ is negative or not finite.

    Example:
        >>> leak_scale(4.0), leak_scale(0.0)
        (0.25, 1.0)
    """
    if not 0.0 <= effective_depth < float("inf"):  # inline for speed
        raise ValueError(f"`effective_depth` must be a finite number >= 0, got {effective_depth!r}.")
    return 1 / effective_depth if effective_depth > 0 else 1.0


def objective_weight_decay(
    optimizer_weight_decay: float, num_layers: int, effective_depth: float, acts_per_layer: bool = True
) -> float:
    """Weight decay λ of the objective ``C + (λ/(2L̃)) Σ_l ρ_l ‖W_l‖²`` that equals an optimizer's ``(d/2) Σ_l ‖θ_l‖²``.

    [ours] For equidistant step-sizes. A residual block h + θσ(h) has W_l = L θ_l and λ = d L̃/L; a `LeakyResNet` has
    parameters W_l and λ = d L̃ L. At L̃ = 0 the factor L̃ is dropped. Exact for an L2 term in the gradient (SGD, Adam);
    decoupled decay (AdamW) has no objective, and is read as if it had.

    Args:
        optimizer_weight_decay: d ≥ 0.
        num_layers: L.
        effective_depth: L̃ ≥ 0.
        acts_per_layer: Whether parameters act once per layer, θ_l = W_l/L, not once per unit of p.

    Example:
        >>> objective_weight_decay(0.1, num_layers=4, effective_depth=0.0)
        0.025
    """
    scale = 1 / num_layers if acts_per_layer else float(num_layers)
    return optimizer_weight_decay * scale / leak_scale(effective_depth)
