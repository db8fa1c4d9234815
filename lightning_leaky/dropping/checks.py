"""What cannot be dropped, as far as it shows before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from lightning_leaky.dropping.stacks import refused
from lightning_leaky.paths.layers import LayerChoice, choose_layers
from lightning_leaky.paths.leaky_path import leaky_paths
from lightning_leaky.utilities.processes import is_flattened, is_sharded
from lightning_leaky.utilities.wrappers import plain_name, unwrapped

# By name, as of all wrappers.
_COUNTS_PARAMETERS = ("DistributedDataParallel", "FullyShardedDataParallel")


def chosen_blocks(model: nn.Module, layers: LayerChoice | Sequence[str]) -> dict[str, nn.Module]:
    """Return the blocks that a choice means, or several; see `choose_layers`."""
    if isinstance(layers, (str, type)) or not isinstance(layers, Iterable):
        return choose_layers(model, layers)
    if not layers:
        raise ValueError(f"`layers` must name at least one block, got {layers!r}.")
    names = {name for one in layers for name in choose_layers(model, one)}
    return choose_layers(model, lambda name, module: name in names)


def check_blocks(model: nn.Module, chosen: Mapping[str, nn.Module]) -> None:
    """Raise ValueError where a block shares weights with what stays, is sharded, or is a leaky step."""
    for wrapper in model.modules():
        for cls in type(wrapper).__mro__:
            if cls.__name__ in _COUNTS_PARAMETERS:
                raise refused([*chosen], f"stand in {cls.__name__}, which counts parameters; drop first")
    steps = {id(unwrapped(step)) for path in leaky_paths(model).values() for step in path.layers}
    going = {id(part) for block in chosen.values() for part in block.modules()}
    staying = {
        id(parameter): f"{name}.{key}".lstrip(".")
        for name, module in model.named_modules()
        if id(module) not in going
        for key, parameter in module._parameters.items()
        if parameter is not None
    }
    for name, block in chosen.items():
        if id(unwrapped(block)) in steps:
            raise refused(
                name,
                "is a leaky step, and the step-sizes of all steps sum to 1; `unmake_leaky` gives plain blocks back, "
                "`LeakyResNet.remesh` changes the number of layers",
            )
        for key, parameter in block.named_parameters():
            if is_sharded(parameter) or is_flattened(parameter):
                raise refused(name, "is sharded over processes; drop on one process, then shard")
            if id(parameter) in staying:
                other = plain_name(staying[id(parameter)])
                raise refused(name, f"shares its {plain_name(key)!r} with {other!r}, which stays; untie them first")
