"""Modules that wrap others: compiled, sharded, averaged or adapted."""

from __future__ import annotations

from torch import nn

# A wrapper's attribute for the inner module, by class name, because some of these packages are not installed and a
# wrapper answers for the model inside.
_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "AveragedModel": "module",
    "_FabricModule": "_forward_module",
    "PeftModel": "base_model",
    "PeftMixedModel": "base_model",
    "BaseTuner": "model",  # peft, such as LoRA
}


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside all wrappers."""
    place = place_inside(module)
    inner = None if place is None else module._modules[place]
    return module if inner is None else unwrapped(inner)


def place_inside(module: nn.Module) -> str | None:
    """Return the name of a wrapper's inner module; ``None`` for other modules."""
    places = (_WRAPPERS.get(cls.__name__) for cls in type(module).__mro__)
    return next((place for place in places if place in module._modules), None)


def plain_name(name: str) -> str:
    """Return a name without the parts of torch.compile, FSDP or checkpointing."""
    return ".".join(part for part in name.split(".") if not (part in _WRAPPERS.values() and part.startswith("_")))
