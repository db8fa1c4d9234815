"""What a model returns, to the bit."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from lightning_leaky.hooks.compiled import eagerly
from lightning_leaky.hooks.structures import all_tensors_of, parts_of, replaced
from lightning_leaky.reading.measure import evaluating, run_model


def outputs_of(model: nn.Module, inputs: Any) -> Any:
    """Return a model's outputs in evaluation mode, without gradients, eagerly, each time from the same random state."""
    for tensor in all_tensors_of(inputs):  # the model may overwrite what it takes
        inputs = replaced(inputs, tensor, tensor.clone())
    with torch.no_grad(), evaluating(model), eagerly(), torch.random.fork_rng():
        return run_model(model, inputs)


def difference(expected: Any, found: Any, missing: Collection[int] = ()) -> str | None:
    """Say how outputs differ, or return ``None`` where they are the same bit for bit.

    Args:
        expected: What a model returns.
        found: What another returns.
        missing: By how many entries its tuples may be shorter, those that hold a state or a weight of each block.
    """
    if isinstance(expected, Tensor):
        if not isinstance(found, Tensor) or (expected.shape, expected.dtype) != (found.shape, found.dtype):
            return "differ in shape or type"
        if torch.equal(_bits(expected), _bits(found)):
            return None
        return f"differ by up to {(expected.double() - found.double()).abs().max():.2g}"
    parts, others = parts_of(expected), parts_of(found)
    if parts.keys() != others.keys():
        is_by_block = isinstance(expected, (tuple, list)) and len(parts) - len(others) in missing
        return None if is_by_block else "have other parts"
    return next(filter(None, (difference(part, others[key], missing) for key, part in parts.items())), None)


def _bits(tensor: Tensor) -> Tensor:
    """Its bytes: so NaN equals NaN, and 0 is not −0."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
