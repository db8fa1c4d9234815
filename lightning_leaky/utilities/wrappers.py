"""Modules that stand around others and answer for them: compiled, sharded, averaged or adapted ones."""

from __future__ import annotations

from torch import nn

# Where a wrapper holds what it wraps, by the name of its class. Not all of these packages are installed, and attributes
# mislead: a wrapper answers for the model inside.
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
    "BaseTuner": "model",  # of peft: LoRA and its like
}


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside torch.compile, FSDP, checkpointing, DDP, weight averaging, Fabric or LoRA (peft)."""
    place = place_inside(module)
    inner = None if place is None else module._modules[place]
    return module if inner is None else unwrapped(inner)


def place_inside(module: nn.Module) -> str | None:
    """Return the name of the child that a wrapper wraps; ``None`` for any other module."""
    places = (_WRAPPERS.get(cls.__name__) for cls in type(module).__mro__)
    return next((place for place in places if place in module._modules), None)


def plain_name(name: str) -> str:
    """Return a name without the parts that only torch.compile, FSDP or checkpointing can have put there."""
    return ".".join(part for part in name.split(".") if not (part in _WRAPPERS.values() and part.startswith("_")))
