"""New layers of a network that `fully_shard` (FSDP2) spreads over processes.

A layer that joins after the first forward pass is a root of its own, without prefetching.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_leaky.paths.leaky_path import step_sizes_of
from lightning_leaky.refining.remesh import remeshed_layers
from lightning_leaky.utilities.processes import is_sharded

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from lightning_leaky.refining.network import RefinablePath

Shard: TypeAlias = Callable[[nn.Module], object]
"""Wraps a layer in place by `fully_shard`, with the settings of its neighbours."""
# By name, because models import this room.
_KIND = "lightning_leaky.models.leaky_layer.LeakyLayer"


def are_sharded(layers: Iterable[nn.Module]) -> bool:
    """Whether any layer has sharded parameters."""
    return any(is_sharded(parameter) for layer in layers for parameter in layer.parameters())


def check_shard(layers: Sequence[nn.Module], shard: Shard | None) -> None:
    """Raise ValueError if sharded layers cannot change; it tries `shard` once, without memory."""
    if not are_sharded(layers):
        return
    if shard is None:
        raise ValueError(
            "`shard` must say how a new layer is sharded, as these are, got None; pass a function that calls "
            "fully_shard on a layer, or give a LightningModule a method shard_layer(layer)."
        )
    for layer in layers:
        cls = _plain_class(layer)
        if not _is_wrapped(type(layer)) or f"{cls.__module__}.{cls.__qualname__}" != _KIND:
            raise ValueError(
                f"`layers` must be LeakyLayers, each wrapped by fully_shard alone, got {type(layer).__name__}; call "
                "fully_shard on each layer, before the network."
            )
    _meta_copy(layers[0], shard)


@torch.no_grad()
def remesh_sharded(
    path: RefinablePath,
    step_sizes: Tensor,
    optimizer: Optimizer | None,
    shard: Shard,
    mesh_between: DeviceMesh | None = None,
) -> None:
    """`LeakyResNet.remesh` on shards, without a collective; `mesh_between`: `mesh_of` a layer after a forward pass."""
    old: list[Any] = [*path.layers]
    for layer in old:
        layer.reshard()  # the optimizer has the sharded parameters
    copy_of = partial(_sharded_copy, shard=shard)
    layers: list[Any] = [*remeshed_layers(old, step_sizes_of(path), step_sizes, optimizer, copy_of)]
    for layer in {*layers}.difference(old):
        if mesh_between is not None and mesh_between == mesh_of(layer):
            layer.set_reshard_after_forward(True)  # a root would keep whole parameters
    del path.layers[:]
    path.layers.extend(layers)
    path.step_sizes = step_sizes.to(path.step_sizes)
    for layer in {*old}.difference(layers):
        layer.zero_grad()  # FSDP keeps them, and no optimizer clears them


def mesh_of(layer: nn.Module) -> DeviceMesh | None:
    """The processes that hold shards of a layer; ``None`` if parameters are whole."""
    return next((getattr(parameter, "device_mesh", None) for parameter in layer.parameters()), None)


def _sharded_copy(layer: nn.Module, shard: Shard) -> nn.Module:
    device = next(layer.parameters()).device
    return _meta_copy(layer, shard).to_empty(device=device).train(layer.training)


def _meta_copy(layer: Any, shard: Shard) -> nn.Module:
    new: nn.Module
    with torch.device("meta"):
        new = _plain_class(layer)(len(layer.weight), layer.effective_depth, layer.activation, layer.bias is not None)
    for one, other in zip(new.parameters(), layer.parameters(), strict=True):
        one.requires_grad_(other.requires_grad)
    shard(new.to(layer.weight.dtype))
    pairs: Iterable[tuple[Any, Any]] = zip(new.parameters(), layer.parameters(), strict=True)
    for one, other in pairs:
        if not is_sharded(one) or (one.device_mesh, one.placements) != (other.device_mesh, other.placements):
            got = f"{one.placements} on {one.device_mesh}" if is_sharded(one) else "a whole parameter"
            raise ValueError(
                f"`shard` must shard a new layer as its neighbours are, {other.placements} on {other.device_mesh}, got "
                f"{got}."
            )
    return new


def _is_wrapped(cls: type) -> bool:
    # Some builds of torch lack it.
    return any(one.__name__ == "FSDPModule" for one in cls.__mro__)


def _plain_class(layer: nn.Module) -> Any:
    return next(cls for cls in type(layer).__mro__ if not _is_wrapped(cls))
