"""Which networks can be refined."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_leaky.functional._checks import implements
from lightning_leaky.functional.step_sizes import normalise_step_sizes
from lightning_leaky.paths.leaky_path import LeakyPath, PathChoice, find_leaky_path
from lightning_leaky.refining.mesh import discretisation_errors, refined_step_sizes
from lightning_leaky.refining.remesh import check_optimizer
from lightning_leaky.utilities.optimizer_steps import held_parameters
from lightning_leaky.utilities.processes import is_sharded
from lightning_leaky.utilities.wrappers import unwrapped


class RefinablePath(LeakyPath, Protocol):
    """A leaky path whose number of layers can change, as `LeakyResNet`."""

    def remesh(self, step_sizes: Tensor, optimizer: Optimizer | None = None) -> None:
        """Change to M layers with these step-sizes, shape (M,); the optimizer follows."""


class Refinement(NamedTuple):
    """An estimated error and the step-sizes that follow from it.

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
    """Estimate errors and refine, with ρ_l L̃ ≤ 1 in merged layers and at least two layers."""
    rho = normalise_step_sizes(step_sizes.cpu())
    errors = discretisation_errors(representations, rho)
    new = refined_step_sizes(rho, errors, tolerance, max_layers, max(2, min_layers), 1 / max(1.0, effective_depth))
    return Refinement(float(errors.sum()), rho, new)


def find_refinable_path(model: nn.Module, choice: PathChoice | None = None) -> RefinablePath:
    """Return the leaky path, or raise ValueError if its layers cannot change."""
    path = find_leaky_path(model, choice)
    if not implements(path, RefinablePath):
        raise ValueError(
            f"`model` must contain a LeakyResNet to be refined, got {type(path).__name__} without `remesh`."
        )
    if len(path.layers) < 2:
        raise ValueError("`num_layers` must be at least 2 to be refined, got 1.")
    compiled = [module for module in model.modules() if hasattr(module, "_orig_mod") or module._compiled_call_impl]
    if compiled:
        raise ValueError(
            f"`model` must not be compiled to be refined, got a compiled {type(compiled[0]).__name__}; refine first, "
            "then compile."
        )
    return cast("RefinablePath", path)


def optimizer_of(path: LeakyPath, optimizers: Sequence[Optimizer]) -> Optimizer:
    """Return the one optimizer that trains the layers, or raise ValueError."""
    layers = {id(parameter) for parameter in path.layers.parameters() if parameter.requires_grad}
    held = {optimizer: layers & held_parameters(optimizer) for optimizer in optimizers}
    having = [optimizer for optimizer, some in held.items() if some]
    if len(having) != 1 or held[having[0]] != layers:
        raise ValueError(
            f"`optimizers` must be one that trains the parameters of all layers, got {len(having)} of "
            f"{len(optimizers)} with some of them."
        )
    check_optimizer(having[0], path.layers.parameters())
    return having[0]


def check_layers_can_change(layers: Iterable[nn.Module]) -> None:
    """Raise ValueError if the layers are wrapped or sharded."""
    for layer in layers:
        if unwrapped(layer) is not layer or layer._compiled_call_impl is not None:
            raise ValueError(
                "`layers` must be plain modules to be split and merged, got a wrapped or compiled "
                f"{type(layer).__name__}; refine first, then compile or wrap."
            )
        if any(map(is_sharded, layer.parameters())):
            raise ValueError(
                "`layers` must be whole to be split and merged, got sharded parameters; use a LayerRefiner or a "
                "RefinementHook with `shard`, or refine first and shard later."
            )
