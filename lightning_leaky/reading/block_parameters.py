"""The parameters θ_l of blocks: what decays them, and what their gradients say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lightning_leaky.functional._checks import working_dtype
from lightning_leaky.metrics.quantity import Quantity
from lightning_leaky.paths.leaky_path import LeakyPath
from lightning_leaky.reading.settings import ReadingSettings, layer_weight_decays
from lightning_leaky.utilities.processes import is_flattened, is_sharded, num_processes, summed

Decays: TypeAlias = Mapping[int, float]
"""What optimizers add to the gradient of each parameter that they hold, by id; NaN of one that they decay otherwise."""

# ⟨θ, ∂C/∂θ⟩ in units of ‖θ‖‖∂C/∂θ‖/√n, the root of its mean square over batches, below which n weights have no scale.
# Measured: weights before a normalisation had 1e-7 to 4e-4 (bfloat16: 2e-3, at most 1.4e-2), most others 0.02 to 70.
_SCALE_FREE = 1e-2


class BlockParameters:
    """Sums over the parameters of blocks, for Pontryagin's Hamiltonian and its residual.

    Weights before a normalisation are left out of both: no scale of theirs changes the cost, so that with decay they
    have no critical point but 0. They are told by ⟨θ, ∂C/∂θ⟩ = 0 in every batch, of a tensor or of all that belong to
    one module (a linear map and its bias), in blocks that hold a module whose class is named a norm.

    Args:
        layers: The blocks.
        decays: Of optimizers; ``None`` where none are known, and all parameters that require gradients count.
    """

    def __init__(self, layers: Sequence[nn.Module], decays: Decays | None) -> None:
        self.num_layers, self.decays = len(layers), decays
        found: dict[int, tuple[nn.Parameter, int, int, bool]] = {}
        for number, layer in enumerate(layers):
            has_norm = any("norm" in type(module).__name__.lower() for module in layer.modules())
            for owner in layer.modules():
                for one in owner.parameters(recurse=False):
                    if one.requires_grad and (decays is None or id(one) in decays):
                        found.setdefault(id(one), (one, number, id(owner), has_norm))
        self.parameters = [one for one, *_ in found.values()]
        self._layer = torch.tensor([number for _, number, _, _ in found.values()], dtype=torch.long)
        owners = {owner: place for place, owner in enumerate(dict.fromkeys(owner for _, _, owner, _ in found.values()))}
        self._owner = torch.tensor([owners[owner] for _, _, owner, _ in found.values()], dtype=torch.long)
        self._has_norm = torch.tensor([has_norm for *_, has_norm in found.values()], dtype=torch.bool)
        self._evidence = torch.zeros(2 * len(found), 2, dtype=torch.float64)
        self._rows = torch.zeros(len(layers), dtype=torch.float64)
        self._sums: list[Tensor] = []

    def add(self, gradients: Mapping[int, Tensor], rows: Sequence[int]) -> None:
        """Add the gradients of the cost of a batch, by id of the parameter, each counted so often."""
        found = [gradients.get(id(one)) for one in self.parameters]
        self._look(self._products(found))
        self._rows = self._rows + torch.tensor(rows)
        self._sums = self._sums or self._zeros()
        for total, gradient, number in zip(self._sums, found, self._layer.tolist(), strict=True):
            if gradient is not None:
                total.add_(gradient, alpha=rows[number])

    def of_sums(self, weight_decays: Tensor, is_mean: bool) -> Tensor:
        """Return `Sums.parameters` from the gradients that were added on all processes, a collective.

        Args:
            weight_decays: d of each layer, shape (L,).
            is_mean: Whether the cost is a mean, so that the sums are divided by what they were counted.
        """
        sums, rows, evidence = self._sums or self._zeros(), self._rows, self._evidence
        if num_processes() > 1 and sums:
            device = sums[0].device
            rows, evidence = summed(rows.to(device)).cpu(), summed(evidence.to(device)).cpu()
            whole = summed(torch.cat([one.flatten() for one in sums]))
            parts = torch.split(whole, [one.numel() for one in sums])
            sums = [part.reshape(one.shape) for part, one in zip(parts, sums, strict=True)]
        counts = rows[self._layer].tolist() if is_mean else [1.0] * len(sums)
        own = weight_decays[self._layer]
        products = self._products([one / count for one, count in zip(sums, counts, strict=True)])
        return self._totals(products, own, own, evidence)

    def of_step(self, scale: float, weight_decays: Tensor, adds_up: bool) -> Tensor:
        """Return `Sums.parameters` from the parameters' own `.grad`, before an optimizer's step.

        Args:
            scale: What the cost of the step was multiplied by.
            weight_decays: d of each layer by a term of the loss, shape (L,); 0 without one.
            adds_up: Whether what the optimizers add belongs to the objective besides.
        """
        known = {} if self.decays is None else self.decays
        added = torch.tensor([known.get(id(one), 0.0) for one in self.parameters], dtype=torch.float64)
        own = weight_decays[self._layer]
        total = own + added.nan_to_num(0.0) if adds_up else own
        gradients = [None if one.grad is None else one.grad / scale for one in self.parameters]
        products = self._products(gradients)
        # A decay that is in no gradient is left out beside a λ of the loss, and else is what a λ stands for.
        missing = torch.where(added.isnan(), 0.0 if adds_up else total, added)
        self._look(_of_cost(products, missing - total))
        return self._totals(products, total, missing, self._evidence)

    def _zeros(self) -> list[Tensor]:
        wide = [torch.promote_types(one.dtype, torch.float32) for one in self.parameters]
        return [torch.zeros_like(one, dtype=dtype) for one, dtype in zip(self.parameters, wide, strict=True)]

    def _products(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """‖θ‖², ⟨θ, g⟩ and ‖g‖² of each parameter, shape (n, 3); of sharded ones over all processes, a collective."""
        rows, sharded = [torch.zeros(0, 3, dtype=torch.float64)], any(map(is_sharded, self.parameters))
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            copies, theta, slope = num_processes() if sharded else 1, parameter.detach(), gradient
            if is_sharded(theta):
                mesh, placements = theta.device_mesh, theta.placements  # type: ignore[attr-defined]
                equal = [size for size, one in zip(mesh.shape, placements, strict=True) if one.is_replicate()]
                copies = copies // mesh.size() * math.prod(equal)
            theta, slope = (getattr(one, "to_local", lambda one=one: one)() for one in (theta, slope))
            theta = theta.to(working_dtype(theta.device))
            slope = torch.zeros_like(theta) if slope is None else slope.to(theta)
            row = torch.stack([(theta * theta).sum(), (theta * slope).sum(), (slope * slope).sum()])
            rows.append(row[None] / copies)
        products = torch.cat([row.to(rows[-1]) for row in rows])
        return (summed(products) if sharded else products).to("cpu", torch.float64)

    def _look(self, products: Tensor) -> None:
        """Remember how much the cost of a batch says of the scale of each parameter, and of those of each module."""
        whole = torch.zeros(len(self._owner), 3, dtype=torch.float64).index_add(0, self._owner, products)
        square, slope, gradient_square = torch.cat([products, whole]).unbind(-1)
        evidence = torch.stack([slope.square(), square * gradient_square], dim=-1)
        self._evidence = self._evidence + evidence

    def _totals(self, products: Tensor, total: Tensor, missing: Tensor, evidence: Tensor) -> Tensor:
        """`Sums.parameters` of gradients that lack so much of what decays, shape (L, 3)."""
        counted = ~self._scale_free(total, evidence)
        square, decays = products[:, 0], torch.where(counted, total, 0)
        left = torch.where(counted, _of_cost(products, missing)[:, 2], 0)
        each = torch.stack([0.5 * decays * square, left, decays.square() * square], dim=-1)
        return torch.zeros(self.num_layers, 3, dtype=torch.float64).index_add(0, self._layer, each)

    def _scale_free(self, decays: Tensor, evidence: Tensor) -> Tensor:
        """Which parameters decay and have no scale that the cost knows of, alone or with all of their module."""
        number, sizes = len(self.parameters), torch.tensor([float(one.numel()) for one in self.parameters])
        whole = torch.zeros(number).index_add(0, self._owner, sizes)
        slope, size = evidence.unbind(-1)
        free = slope * torch.cat([sizes, whole]) < _SCALE_FREE**2 * size
        decayed = torch.zeros(number, dtype=torch.float64).index_add(0, self._owner, decays) > 0
        return self._has_norm & ((free[:number] & (decays > 0)) | (free[number:] & decayed)[self._owner])


def _of_cost(products: Tensor, decays: Tensor) -> Tensor:
    """The products with g + dθ in place of g."""
    square, slope, gradient_square = products.unbind(-1)
    with_decay = gradient_square + 2 * decays * slope + decays.square() * square
    return torch.stack([square, slope + decays * square, with_decay.clamp(min=0)], dim=-1)


class ParameterReader:
    """What an observer reads of the parameters of its layers.

    Args:
        decays: Of optimizers; ``None`` where there are none.
        adds_up: Whether what the optimizers add belongs to the objective beside a term of the loss.
        is_measured: Whether gradients come with each batch; else those of a step are read.
    """

    def __init__(self, decays: Decays | None, adds_up: bool, is_measured: bool) -> None:
        self.decays, self.adds_up, self.is_measured = decays, adds_up, is_measured
        self._known: tuple[Sequence[nn.Module], BlockParameters] | None = None

    def check(self, records: Iterable[Quantity], layers: nn.Module, weight_decay: float | None) -> None:
        """Raise ValueError where quantities of parameters cannot be read of some layers.

        Args:
            records: The quantities.
            layers: The layers.
            weight_decay: λ that was given.
        """
        keys = [record.key for record in records if record.needs == "parameters"]
        why = self.why_not(keys, layers, weight_decay) if keys else None
        if why is not None:
            raise ValueError(f"`quantities` cannot include {why}, or leave them out.")

    def why_not(self, keys: Sequence[str], layers: nn.Module, weight_decay: float | None) -> str | None:
        """Which quantities of parameters cannot be read of some layers, why, and what to do; ``None`` where all can."""
        trained = [one for one in layers.parameters() if one.requires_grad]
        held = trained if self.decays is None else [one for one in trained if id(one) in self.decays]
        found = [0.0 if self.decays is None else self.decays[id(one)] for one in held]
        unknown = [key for key in keys if weight_decay is None or key == "pontryagin_residual"]
        if any(map(is_flattened, held)) or (self.is_measured and any(map(is_sharded, held))):
            return (
                f"{keys} of sharded parameters, whose gradients are pieces; read them in training under "
                "ModelParallelStrategy, measure a model that is whole"
            )
        if unknown and any(map(math.isnan, found)):
            return (
                f"{unknown} beside an optimizer that decays weights otherwise than by their gradient, as AdamW and "
                "Lion do: it minimises no objective. Use the `weight_decay` of SGD or Adam; put λ into the loss, tell "
                "it as `weight_decay` and set the optimizer's to 0 (for the Hamiltonian a `weight_decay` is enough, "
                "read as if it were this λ)"
            )
        if not held or (weight_decay is None and not any(found)):
            return (
                f"{keys} of layers without trainable parameters that decay; give a `weight_decay`, the λ of the "
                "objective, train by SGD or Adam with one"
            )
        return None

    def add(self, layers: Sequence[nn.Module], gradients: Mapping[int, Tensor], rows: Sequence[int]) -> None:
        """Add those of a batch, as `BlockParameters.add` does."""
        self._of(layers).add(gradients, rows)

    def sums(
        self,
        layers: Sequence[nn.Module],
        settings: ReadingSettings,
        path: LeakyPath,
        step_sizes: Tensor,
        scale: float | None,
    ) -> Tensor | None:
        """Return `Sums.parameters` of layers; ``None`` where nobody needs them, or the gradients are of no step.

        Args:
            layers: Those of the path that are read.
            settings: How.
            path: The path.
            step_sizes: ρ of the layers.
            scale: What the cost in the parameters' own gradients was multiplied by; ``None`` where they are of no step.
        """
        if not settings.recipe(path).needs_parameters:
            return None
        decays = layer_weight_decays(settings, path, step_sizes)
        if self.is_measured:
            return self._of(layers).of_sums(decays, settings.loss_reduction == "mean")
        return None if scale is None else self._of(layers).of_step(scale, decays, self.adds_up)

    def _of(self, layers: Sequence[nn.Module]) -> BlockParameters:
        if self._known is None or self._known[0] != layers:
            self._known = layers, BlockParameters(layers, self.decays)
        return self._known[1]
