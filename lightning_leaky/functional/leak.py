"""How the effective depth L̃ enters the energies, its limit L̃ = 0 included."""

from __future__ import annotations

from lightning_leaky.functional._checks import check_non_negative


def leak_scale(effective_depth: float) -> float:
    """Weight of ‖W‖² in the objective: 1/L̃, and 1 at L̃ = 0, where the paper's factor is dropped.

    One number settles every formula at L̃ = 0 (a plain ResNet): kinetic energy ½‖V‖²_K, potential energy 0,
    Hamiltonian ½‖Bᵀσ(A)‖², critical weights Bᵀσ(A).

    Args:
        effective_depth: L̃ ≥ 0.

    Raises:
        ValueError: If L̃ is negative or not finite.

    Example:
        >>> leak_scale(4.0), leak_scale(0.0)
        (0.25, 1.0)
    """
    return 1 / effective_depth if check_non_negative("effective_depth", effective_depth) > 0 else 1.0
