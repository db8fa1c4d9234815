"""How L̃ enters energies and weight decay."""

from __future__ import annotations


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
