"""Residual blocks as leaky steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from lightning_leaky.hooks.state import StateChoice, StatePlace, state_candidates
from lightning_leaky.models.folding import foldable_layer, multiply
from lightning_leaky.models.leaky_steps import LeakySteps
from lightning_leaky.paths.layers import LayerChoice, choose_layers, named_layers
from lightning_leaky.utilities.processes import warn
from lightning_leaky.utilities.wrappers import unwrapped

Model = TypeVar("Model", bound=nn.Module)

_NAME = "leaky_steps"


class LeakyResidual(nn.Module):
    """New residual blocks as leaky steps ``h ← (1 − ρ_l L̃) h + ρ_l L f_l(h)``; see `make_leaky` for existing models.

    Args:
        blocks: One or more shape-preserving residual blocks, h ↦ h + f_l(h).
        effective_depth: L̃ ≥ 0; at 0, with equidistant steps, the blocks run unchanged.
        step_sizes: ρ, L positive numbers that sum to 1; equidistant by default.

    Raises:
        ValueError: If there are no blocks, or a number is out of range.

    Example:
        >>> import torch
        >>> stack = LeakyResidual([nn.TransformerEncoderLayer(8, 2, batch_first=True) for _ in range(3)], 1.0)
        >>> stack(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module] | nn.Module,
        effective_depth: float = 0.0,
        step_sizes: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        several = isinstance(blocks, (nn.ModuleList, nn.Sequential)) or not isinstance(blocks, nn.Module)
        self.layers = nn.ModuleList(blocks if several else [blocks])  # type: ignore[arg-type, list-item]
        self.steps = LeakySteps(list(self.layers), effective_depth, step_sizes, state=0)

    def forward(self, representation: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return A_L from A_0; further arguments go to every block."""
        for layer in self.layers:
            output = layer(representation, *args, **kwargs)
            _, states = state_candidates(StatePlace(), (representation,), {}, output)
            representation = states[0] if states else output
        return representation


def make_leaky(model: Model, layers: LayerChoice, effective_depth: float = 0.0, state: StateChoice = None) -> Model:
    """Turn blocks of a model into leaky steps, in place (`LeakySteps`).

    At L̃ = 0, until step-sizes are adapted, outputs, gradients and state of the model stay the same.

    Args:
        model: Any model, or a LightningModule.
        layers: Which blocks, as of `lightning_leaky.paths.layers.choose_layers`. Each must return its input's shape.
        effective_depth: L̃ ≥ 0.
        state: Which tensor is the state, if blocks take or return several of one shape; see `LeakySteps`.

    Returns:
        The model; it, or the model that it wraps (DDP, Fabric, LoRA), has a submodule ``leaky_steps``.

    Raises:
        ValueError: If the layers cannot be chosen, there are leaky steps already, or L̃ < 0. The model stays as it was.

    Example:
        >>> model = make_leaky(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "*")
        >>> model.leaky_steps.step_sizes
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    inner = unwrapped(model)
    if hasattr(inner, _NAME):
        raise ValueError(
            f"`model` must have no leaky steps yet, got {getattr(inner, _NAME)}; unmake_leaky(model) first."
        )
    chosen = choose_layers(model, layers)
    inner.add_module(_NAME, LeakySteps(list(chosen.values()), effective_depth, names=list(chosen), state=state))
    return model


def unmake_leaky(model: Model) -> Model:
    """Remove leaky steps, in place, and fold the step-sizes into the weights if that is exact.

    It is exact at L̃ = 0 if a step is equidistant, or its block is ``h + g(…)`` and ends with a linear, convolutional or
    normalisation layer g, which is multiplied by ρ_l L. Else the outputs change, with a warning that names the block.

    Args:
        model: A model of `make_leaky`, or one around it.

    Returns:
        The model.

    Raises:
        ValueError: If the model has no leaky steps, or several modules in it have. The model stays as it was.

    Example:
        >>> model = unmake_leaky(make_leaky(nn.Sequential(nn.Linear(2, 2)), "*"))
        >>> hasattr(model, "leaky_steps")
        False
    """
    owner = _owner_of_steps(model)
    steps = cast("LeakySteps", owner._modules[_NAME])
    names = {id(module): name for name, module in named_layers(model).items()}
    folded: list[tuple[nn.Module, float]] = []
    left = []
    for index, block in enumerate(steps.layers):
        gain = steps.gain(index)
        if steps.effective_depth == 0 and abs(gain - 1) < 1e-12:
            continue
        layer = foldable_layer(model, unwrapped(block)) if steps.takes_state_first(index) else None
        if steps.effective_depth > 0 or layer is None:
            left.append(names.get(id(block), str(index + 1)))
        else:
            folded.append((layer, gain))
    if left:  # first, because a warning may be an error
        warn(f"unmake_leaky: the steps of {left} cannot be folded into their weights, so the outputs change.")
    multiply(folded)
    steps.detach()
    delattr(owner, _NAME)
    return model


def _owner_of_steps(model: nn.Module) -> nn.Module:
    # Not by getattr, which wrappers forward.
    owners = {name: part for name, part in model.named_modules() if isinstance(part._modules.get(_NAME), LeakySteps)}
    first: nn.Module | None = next(iter(owners.values()), None)
    if first is None:
        raise ValueError("`model` must have leaky steps to unmake, got none.")
    if len(owners) > 1 and first is not unwrapped(model):
        raise ValueError(f"`model` must have leaky steps once to unmake, got {list(owners)}; pass the one you mean.")
    return first
