"""What hooks need in compiled code."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, library, nn

from lightning_leaky.utilities.processes import warn

_KEEPERS: WeakValueDictionary[int, Any] = WeakValueDictionary()
_NUMBERS = itertools.count()


def number_of(keeper: object) -> int:
    """Return a number by which compiled code finds an object that keeps gradients or sums."""
    number = next(_NUMBERS)
    _KEEPERS[number] = keeper
    return number


# torch refuses to trace a gradient hook that writes to Python objects, but does not look into operators. This one
# returns a copy because torch drops operators with unused results. A CUDA graph would replay without it.
@library.custom_op(
    "lightning_leaky::keep_gradient",
    mutates_args=(),
    schema="(Tensor gradient, int number, int index) -> Tensor",
    tags=[torch.Tag.cudagraph_unsafe],
)
def keep_gradient(gradient: Tensor, number: int, index: int) -> Tensor:
    """Give a layer's gradient in compiled code to the object of `number_of`, and return a copy."""
    keeper = _KEEPERS.get(number)
    if keeper is not None:
        keeper.keep_gradient(index, gradient.clone())
    return gradient.clone()  # another one, because compiled code reuses its memory


@keep_gradient.register_fake
def _(gradient: Tensor, number: int, index: int) -> Tensor:
    return torch.empty_like(gradient)


# The number of real rows is known only at run time, so the rest cannot be in a graph. `sums` is allocated before.
@library.custom_op("lightning_leaky::add_rows", mutates_args=("sums",), tags=[torch.Tag.cudagraph_unsafe])
def add_rows(sums: Tensor, previous: Tensor, current: Tensor, real: Tensor | None, number: int, index: int) -> None:
    """Have the object of `number_of` add a layer's A_{l−1} and A_l to the sums of all layers, in place."""
    keeper = _KEEPERS.get(number)
    if keeper is not None:
        keeper.add(index, previous, current, real, sums)


def warn_of_recompilation(layers: Sequence[nn.Module]) -> None:
    """Warn if more layers are compiled one by one than torch allows."""
    if "torch._dynamo" not in sys.modules:
        return
    limit = torch._dynamo.config.recompile_limit
    count = sum(layer._compiled_call_impl is not None for layer in layers)
    if count > limit:
        warn(
            f"{count} layers are compiled one by one by `layer.compile()`, and hooks make each of them a "
            f"graph of its own: torch stops compiling after {limit}, with an error where `fullgraph=True`. Use "
            f"`torch.compile(layer)`, compile the network, or set torch._dynamo.config.recompile_limit = {2 * count}."
        )


@contextmanager
def eagerly() -> Iterator[None]:
    """Run compiled modules eagerly, because compiled code misses late hooks and fuses layers without hooks."""
    if "torch._dynamo" not in sys.modules:  # importing it takes seconds; without it nothing is compiled
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def forget_compiled_code() -> None:
    """Let compiled modules see hooks registered after their first call."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
