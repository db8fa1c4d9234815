"""The Leaky ResNet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_leaky.functional.leaky_step import leak_scale
from lightning_leaky.functional.relu_step import l2_term
from lightning_leaky.functional.step_sizes import (
    check_step_sizes,
    equidistant_step_sizes,
    irregular_step_sizes,
    normalise_step_sizes,
)
from lightning_leaky.models.leaky_layer import LeakyLayer
from lightning_leaky.models.settings import MapKind, NetworkSettings
from lightning_leaky.utilities.arguments import takes
from lightning_leaky.utilities.processes import unsharded
from lightning_leaky.utilities.wrappers import unwrapped

if TYPE_CHECKING:
    from lightning_leaky.refining.network import Refinement


class LeakyResNet(nn.Module):
    """Leaky ResNet of constant width: L Euler steps of ``∂_pA = −L̃A + σ(A)Wᵀ`` between two linear maps.

    L̃ = 0 is a ResNet, and ρ_l L̃ = 1 for all l a fully-connected net with weights ρ_l W_l (arXiv 2405.17573). The
    step-sizes are a saved buffer: `set_step_sizes`, a `StepSizeHook` or a `StepSizeAdapter` change it. `refine`,
    `remesh`, a `LayerRefiner` and `load_state_dict` change the number of layers.

    Args:
        *values: Arguments of `NetworkSettings`.
        **settings: More of them.

    Raises:
        ValueError: If an argument is out of range, or a map does not fit the sizes.

    Example:
        >>> network = LeakyResNet(in_features=30, out_features=30, width=100, num_layers=20, effective_depth=7.0)
        >>> network.representations(torch.zeros(5, 30)).shape
        torch.Size([21, 5, 100])
    """

    step_sizes: Tensor

    @takes(NetworkSettings)
    def __init__(self, *values: Any, **settings: Any) -> None:
        super().__init__()
        chosen = NetworkSettings(*values, **settings)
        width, num_layers = chosen.width, chosen.num_layers
        self.width, self.effective_depth = width, chosen.effective_depth
        self.activation, self.constant_column = chosen.activation, chosen.constant_column
        self.init, self.init_noise = chosen.init, chosen.init_noise
        self.register_buffer("step_sizes", _initial_step_sizes(chosen.step_sizes, num_layers).float())
        self.input_map = _linear_map("input_map", chosen.input_map, chosen.in_features, width)
        self.output_map = _linear_map("output_map", chosen.output_map, width, chosen.out_features)
        self.layers = nn.ModuleList(
            LeakyLayer(width, self.effective_depth, self.activation, self.constant_column) for _ in range(num_layers)
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the layers' starting weights."""
        std = (self.init_noise if self.init == "identity" else math.sqrt(2)) / math.sqrt(self.width)
        for layer in self._steps():
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=std)
            if self.init == "identity":
                layer.weight.diagonal().add_(self.effective_depth)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs, shape (N, out_features), for inputs of shape (N, in_features)."""
        representation = self.input_map(inputs)
        for layer, step_size in zip(self.layers, self.step_sizes, strict=True):
            representation = layer(representation, step_size)
        outputs: Tensor = self.output_map(representation)
        return outputs

    def representations(self, inputs: Tensor) -> Tensor:
        """Return A_0, …, A_L, shape (L + 1, N, w), for inputs of shape (N, in_features)."""
        path = [self.input_map(inputs)]
        for layer, step_size in zip(self.layers, self.step_sizes, strict=True):
            path.append(layer(path[-1], step_size))
        return torch.stack(path)

    def weights(self) -> Tensor:
        """Return W_1, …, W_L with biases as last column, shape (L, w, w + 1)."""
        return torch.stack([layer.augmented_weight() for layer in self._steps()])

    def regularizer(self) -> Tensor:
        """L2 term ``(1/(2L̃)) Σ_l ρ_l ‖W_l‖²_F``, to multiply by λ (arXiv 2405.17573, section 1.1).

        A learned map M adds ½‖M‖²_F, as each ρ_l W_l does at ρ_l L̃ = 1. At L̃ = 0 the factor 1/L̃ is dropped. [ours]
        """
        layers = self._steps()
        if any(hasattr(one, "ds_id") for layer in layers for one in layer.parameters()):
            raise ValueError(
                "`weight_decay` must be 0 at DeepSpeed's stage 3, which empties the weights that the L2 term reads. "
                "Use stage 1 or 2, or the weight decay of an optimizer."
            )
        shares = leak_scale(self.effective_depth) * self.step_sizes
        handles = [layer.handle() for layer in layers]
        missing = [layer for layer, handle in zip(layers, handles, strict=True) if handle is None]
        if any(map(_may_be_trained, missing)):
            total = (shares * unsharded(torch.stack([layer.square_norm() for layer in layers]))).sum()
        else:
            total = l2_term(shares, _squares(layers), handles)
        for linear in (self.input_map, self.output_map):
            if isinstance(linear, nn.Linear) and linear.weight.requires_grad:
                total = total + unsharded(linear.weight.square().sum())
        return 0.5 * total

    @torch.no_grad()
    def set_step_sizes(self, step_sizes: Tensor | Sequence[float]) -> None:
        """Set the step-sizes in place.

        Args:
            step_sizes: ρ, shape (L,), positive, summing to 1.

        Raises:
            ValueError: If the step-sizes are not a distribution.
        """
        self.step_sizes.copy_(check_step_sizes(torch.as_tensor(step_sizes), len(self.layers)))

    @torch.no_grad()
    def remesh(self, step_sizes: Tensor | Sequence[float], optimizer: Optimizer | None = None) -> None:
        """Put the network on another mesh of any number of layers; W moves as a function of p [ours].

        The outputs change by the order of the discretisation error. Layers of both meshes stay as they are, see
        `lightning_leaky.refining.remeshed_layers`. Attach hooks on layers (a `StepSizeHook`) again.

        Args:
            step_sizes: New ρ, shape (M,), positive, summing to 1.
            optimizer: The network's optimizer. New parameters join it, with the state of their origin; without it they
                are not trained.

        Raises:
            ValueError: If the step-sizes are no distribution, the optimizer's state cannot move, or layers are
                compiled, wrapped or sharded.

        Example:
            >>> network = LeakyResNet(2, 2, width=4, num_layers=3, effective_depth=1.0)
            >>> network.remesh([0.25, 0.25, 0.25, 0.25])
            >>> len(network.layers)
            4
        """
        from lightning_leaky.refining.network import check_layers_can_change
        from lightning_leaky.refining.remesh import remeshed_layers

        check_layers_can_change(self.layers)
        given = step_sizes.cpu() if isinstance(step_sizes, Tensor) else step_sizes  # MPS has no float64
        rho = check_step_sizes(torch.as_tensor(given, dtype=torch.float64))
        layers = remeshed_layers(list(self.layers), normalise_step_sizes(self.step_sizes), rho, optimizer)
        del self.layers[:]
        self.layers.extend(layers)
        self.step_sizes = rho.to(self.step_sizes)

    def refine(
        self,
        inputs: Tensor,
        tolerance: float,
        optimizer: Optimizer | None = None,
        max_layers: int = 64,
        min_layers: int = 2,
    ) -> Refinement:
        """Split and merge layers, towards an estimated error below a tolerance [ours].

        The error is the sum of ``½ ρ_l² ‖∂²_pA‖_F/‖A_l‖_F``, see `lightning_leaky.refining.discretisation_errors`. Each
        layer is split or merged at most once, see `lightning_leaky.refining.refined_step_sizes`, and no merged one has
        ρ_l L̃ > 1. Call it after an optimizer's step, and again until nothing changes.

        Args:
            inputs: Inputs, shape (N, in_features).
            tolerance: Bound on the estimated error, > 0, no unit.
            optimizer: As of `remesh`.
            max_layers: Most layers after a split.
            min_layers: Fewest layers after a merge, at least 2.

        Returns:
            What has changed, and the estimated error before.

        Raises:
            ValueError: If there is one layer, a number is out of range, or `remesh` raises.

        Example:
            >>> network = LeakyResNet(2, 2, width=4, num_layers=3, effective_depth=1.0)
            >>> network.refine(torch.ones(5, 2), tolerance=1e-3).new_num_layers
            6
        """
        from lightning_leaky.refining.network import check_layers_can_change, refinement_of

        check_layers_can_change(self.layers)
        with torch.no_grad():
            path = self.representations(inputs)
        refinement = refinement_of(path, self.step_sizes, self.effective_depth, tolerance, max_layers, min_layers)
        if refinement.has_changed:
            self.remesh(refinement.new_step_sizes, optimizer)
        return refinement

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(f"{prefix}step_sizes")
        if isinstance(saved, Tensor) and saved.ndim == 1 and 0 < len(saved) != len(self.layers):
            self.remesh(normalise_step_sizes(saved))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """Describe the network."""
        return f"width={self.width}, num_layers={len(self.layers)}, effective_depth={self.effective_depth}"

    def _steps(self) -> list[LeakyLayer]:
        return [layer for layer in map(unwrapped, self.layers) if isinstance(layer, LeakyLayer)]


def _may_be_trained(layer: LeakyLayer) -> bool:
    # FSDP1 without `use_orig_params` leaves a layer no parameters of its own.
    return not (own := list(layer.parameters())) or any(one.requires_grad for one in own)


@torch.no_grad()
def _squares(layers: Sequence[LeakyLayer]) -> Tensor:
    """‖W_l‖²_F, biases included, shape (L,)."""
    weights: list[Tensor] = [layer.weight for layer in layers]
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    norms = torch.stack(torch._foreach_norm(weights + biases))
    return norms.square().reshape(-1, len(layers)).sum(0)


def _initial_step_sizes(step_sizes: str | Sequence[float], num_layers: int) -> Tensor:
    if isinstance(step_sizes, str):
        schemes = {"equidistant": equidistant_step_sizes, "irregular": irregular_step_sizes}
        if step_sizes not in schemes:
            raise ValueError(f"`step_sizes` must be in {sorted(schemes)} or {num_layers} numbers, got {step_sizes!r}.")
        return schemes[step_sizes](num_layers)
    return check_step_sizes(torch.as_tensor(step_sizes, dtype=torch.float64), num_layers)


def _linear_map(name: str, kind: MapKind, in_features: int, out_features: int) -> nn.Module:
    # Without bias: the next layer's constant column has one.
    if kind == "identity":
        if in_features != out_features:
            raise ValueError(f'`{name}` can be "identity" between equal sizes, got {in_features} and {out_features}.')
        return nn.Identity()
    if kind not in ("learned", "fixed"):
        raise ValueError(f'`{name}` must be "learned", "fixed" or "identity", got {kind!r}.')
    linear = nn.Linear(in_features, out_features, bias=False)
    if kind == "fixed":
        nn.init.orthogonal_(linear.weight)
        linear.weight.requires_grad_(False)
    return linear
