"""What the refinement of a network found, and which networks can be refined."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor, nn

from lightning_leaky.functional.step_sizes import normalise_step_sizes
from lightning_leaky.paths.layers import unwrapped
from lightning_leaky.refining.mesh import discretisation_errors, refined_step_sizes
from lightning_leaky.utilities.processes import is_sharded


class Refinement(NamedTuple):
    """An estimate and what follows from it.

    Attributes:
        error: Estimated discretisation error before, no unit.
        step_sizes: ρ before, shape (L,), float64.
        new_step_sizes: ρ after, shape (M,), float64.
    """

    error: float
    step_sizes: Tensor
    new_step_sizes: Tensor

    @property
    def num_layers(self) -> int:
        """L, before."""
        return len(self.step_sizes)

    @property
    def new_num_layers(self) -> int:
        """M, after."""
        return len(self.new_step_sizes)

    @property
    def has_changed(self) -> bool:
        """Whether any layer was split or merged."""
        return self.step_sizes.tolist() != self.new_step_sizes.tolist()


def refinement_of(
    representations: Tensor,
    step_sizes: Tensor,
    effective_depth: float,
    tolerance: float,
    max_layers: int,
    min_layers: int,
) -> Refinement:
    """Estimate on a path, and the mesh for a tolerance; ρ_l L̃ ≤ 1 where layers are merged.

    Args:
        representations: A_0, …, A_L, shape (L + 1, N, w).
        step_sizes: ρ, shape (L,).
        effective_depth: L̃ ≥ 0.
        tolerance: Bound on the estimated error.
        max_layers: No layer is split where there are so many.
        min_layers: No layers are merged where there are so few, at least 2.

    Raises:
        ValueError: If a number is out of range or there is but one layer.
    """
    rho = normalise_step_sizes(step_sizes.cpu())
    errors = discretisation_errors(representations, rho)
    new = refined_step_sizes(rho, errors, tolerance, max_layers, max(2, min_layers), 1 / max(1.0, effective_depth))
    return Refinement(float(errors.sum()), rho, new)


def check_layers_can_change(layers: Iterable[nn.Module]) -> None:
    """Raise ValueError where layers cannot be copied and removed: others hold on to them."""
    for layer in layers:
        if unwrapped(layer) is not layer or layer._compiled_call_impl is not None:
            raise ValueError(
                f"`layers` must be plain modules to be split and merged, got {type(layer).__name__} around a compiled, "
                "checkpointed or sharded one; refine first, then compile or wrap."
            )
        if any(map(is_sharded, layer.parameters())):
            raise ValueError(
                "`layers` must be whole to be split and merged, got parameters sharded over processes, which know only "
                "those that they were given; refine on one process, then shard."
            )
