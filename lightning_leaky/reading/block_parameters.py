"""The parameters θ_l of blocks: their decay and gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lightning_leaky.functional.pontryagin import parameter_sums
from lightning_leaky.metrics.quantity import Quantity
from lightning_leaky.paths.leaky_path import LeakyPath
from lightning_leaky.reading.settings import ReadingSettings, layer_weight_decays
from lightning_leaky.utilities.processes import is_flattened, is_sharded, num_processes, summed, unsharded

Decays: TypeAlias = Mapping[int, float]
"""What optimizers add to the gradient of each parameter, by id; NaN if they decay it otherwise."""

# n weights have no scale if the root mean square of ⟨θ, ∂C/∂θ⟩ over batches is below this × ‖θ‖‖∂C/∂θ‖/√n.
# Measured: weights before a normalisation had 1e-7 to 4e-4 (bfloat16: 2e-3, at most 1.4e-2), most others 0.02 to 70.
_SCALE_FREE = 1e-2
_NO_GRADIENT = torch.zeros(())


class ParameterReader:
    """Sums over the parameters of layers, for Pontryagin's Hamiltonian and its residual.

    Both leave out weights before a normalisation: their scale does not change the cost, so with decay their only
    critical point is 0. Such weights have ⟨θ, ∂C/∂θ⟩ = 0 in every batch, as a tensor or together with the others of
    their module (a linear map and its bias), in a block with a module whose class name contains "norm".

    Args:
        decays: ``None`` without optimizers: all trainable parameters count.
        adds_up: Whether the optimizers' decay adds to the term of the loss.
        is_measured: Whether gradients come with each batch; else `.grad` is read before a step.
    """

    def __init__(self, decays: Decays | None, adds_up: bool, is_measured: bool) -> None:
        self._decays, self._adds_up, self._is_measured = decays, adds_up, is_measured
        self._layers: list[nn.Module] | None = None

    def why_not(self, records: Iterable[Quantity], layers: nn.Module, weight_decay: float | None) -> str | None:
        """Which quantities cannot be read, and why."""
        keys = [record.key for record in records if record.needs == "parameters"]
        unknown = [key for key in keys if weight_decay is None or key == "pontryagin_residual"]
        held = self._held(layers)
        decays = [] if self._decays is None else [self._decays[id(one)] for one in held]
        why = None
        if any(map(is_flattened, held)) or (self._is_measured and any(map(is_sharded, held))):
            why = (
                f"{keys} of sharded parameters, whose gradients are pieces; read them in training under "
                "ModelParallelStrategy, measure a model that is whole"
            )
        elif unknown and any(map(math.isnan, decays)):
            why = (
                f"{unknown} beside an optimizer that decays weights otherwise than by their gradient, as AdamW and "
                "Lion do: it minimises no objective. Use SGD or Adam; put λ into the loss, tell it as `weight_decay` "
                "and set the optimizer's to 0 (for the Hamiltonian a `weight_decay` is enough, read as this λ)"
            )
        elif not held or (weight_decay is None and not any(decays)):
            why = f"{keys} of layers without trainable parameters that decay; give `weight_decay`, or SGD or Adam one"
        return f"`quantities` cannot include {why}, or leave them out." if keys and why else None

    def add(self, layers: list[nn.Module], gradients: Mapping[int, Tensor], rows: Sequence[int]) -> None:
        """Add a batch's gradients by id of the parameter, weighted by the rows of each layer."""
        self._take(layers)
        found = [gradients.get(id(one), _NO_GRADIENT) for one in self._parameters]
        self._look(self._each(found, torch.zeros(len(found)), torch.zeros(len(found))))
        self._rows += torch.tensor(rows)
        for total, gradient, number in zip(self._sums, found, self._layer.tolist(), strict=True):
            total.add_(gradient, alpha=rows[number])

    def sums(
        self, layers: list[nn.Module], settings: ReadingSettings, path: LeakyPath, steps: Tensor, scale: float | None
    ) -> Tensor | None:
        """Return `Sums.parameters` of the layers read, with their step sizes ρ; a collective.

        `scale` is the factor of the cost in `.grad`. ``None`` if no quantity needs them, or `.grad` is of no step.
        """
        if not settings.recipe(path).needs_parameters or (scale is None and not self._is_measured):
            return None
        self._take(layers)
        own = layer_weight_decays(settings, path, steps)[self._layer]
        # A decay outside the gradient does not add to a λ of the loss; otherwise λ stands for it.
        decays = own + self._added.nan_to_num(0.0) if self._adds_up else own
        missing = torch.where(self._added.isnan(), 0.0 if self._adds_up else own, self._added)
        if scale is None:
            gradients, evidence = self._of_batches(settings.loss_reduction == "mean")
            each = self._each(gradients, decays, missing)
        else:
            gradients = [_NO_GRADIENT if one.grad is None else one.grad / scale for one in self._parameters]
            each = self._each(gradients, decays, missing)
            self._look(each)
            evidence = self._evidence
        # Leave out what decays and has no scale in the cost, alone or with its module.
        sizes = self._with_modules(torch.tensor([float(one.numel()) for one in self._parameters]))
        is_free = (evidence[0] * sizes < _SCALE_FREE**2 * evidence[1]) & (self._with_modules(decays) > 0)
        counts = ~(self._has_norm & is_free.any(0))
        return each.new_zeros(len(layers), 3).index_add(0, self._layer[counts], each[counts, 3:])

    def _held(self, module: nn.Module, recurse: bool = True) -> list[nn.Parameter]:
        trained = [one for one in module.parameters(recurse) if one.requires_grad]
        return trained if self._decays is None else [one for one in trained if id(one) in self._decays]

    def _take(self, layers: list[nn.Module]) -> None:
        if layers == self._layers:
            return
        found: dict[nn.Parameter, tuple[int, int, bool]] = {}
        for number, layer in enumerate(layers):
            has_norm = any("norm" in type(module).__name__.lower() for module in layer.modules())
            for module in layer.modules():
                owner = len(found)  # identifies the module
                for one in self._held(module, recurse=False):
                    found.setdefault(one, (number, owner, has_norm))
        self._layers, self._parameters = layers, list(found)
        places = torch.tensor(list(found.values()), dtype=torch.long).reshape(-1, 3)
        self._layer, self._owner, self._has_norm = places[:, 0], places[:, 1], places[:, 2] > 0
        usual, decays = math.nan if self._is_measured else 0.0, self._decays or {}
        self._added = torch.tensor([decays.get(id(one), usual) for one in found], dtype=torch.float64)
        self._rows = torch.zeros(len(layers), dtype=torch.float64)
        self._evidence = torch.zeros(2, 2, len(found), dtype=torch.float64)
        given = found if self._is_measured else {}
        self._sums = [torch.zeros_like(one, dtype=torch.promote_types(one.dtype, torch.float32)) for one in given]

    def _of_batches(self, is_mean: bool) -> tuple[list[Tensor], Tensor]:
        """Gradients and evidence over all batches and processes."""
        sums, rows, evidence = self._sums, self._rows, self._evidence
        if num_processes() > 1 and sums:
            rows, evidence = (summed(one.to(sums[0].device)).cpu() for one in (rows, evidence))
            sums = [summed(one) for one in sums]
        counts = rows[self._layer].tolist() if is_mean else [1.0] * len(sums)
        return [one / count for one, count in zip(sums, counts, strict=True)], evidence

    def _each(self, gradients: Sequence[Tensor], decays: Tensor, missing: Tensor) -> Tensor:
        """Sums of each parameter, shape (n, 6); a collective if some are sharded."""
        pieces = [_piece(one) for one in self._parameters]
        given = zip(pieces, map(_piece, gradients), decays.tolist(), missing.tolist(), strict=True)
        rows = [parameter_sums(*one) for one in given]
        each = torch.stack([row.to(rows[-1]) for row in rows]) if rows else torch.zeros(0, 6)
        if any(map(is_sharded, self._parameters)):
            # The sum counts a parameter once per process that holds all of it.
            shares = [one.numel() / max(whole.numel(), 1) for one, whole in zip(pieces, self._parameters, strict=True)]
            found = summed(torch.cat([each, each.new_tensor(shares)[:, None]], dim=-1))
            each = found[:, :6] / found[:, 6:].round().clamp(min=1)
        return each.to("cpu", torch.float64)

    def _look(self, each: Tensor) -> None:
        """Add a batch's evidence on scales."""
        square, slope, gradient_square = self._with_modules(each[:, :3]).unbind(-1)
        self._evidence += torch.stack([slope.square(), square * gradient_square])

    def _with_modules(self, each: Tensor) -> Tensor:
        """Values of each parameter, and their sums over its module, shape (2, n, ...)."""
        return torch.stack([each, torch.zeros_like(each).index_add(0, self._owner, each)[self._owner]])


def _piece(tensor: Tensor) -> Tensor:
    """This process's part; gradients that processes have yet to add up are whole."""
    if is_sharded(tensor) and any(placement.is_partial() for placement in tensor.placements):  # type: ignore[attr-defined]
        return unsharded(tensor).detach()
    own: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return own.detach()
