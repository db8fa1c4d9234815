"""What hooks need inside compiled code: a way out for gradients, and eyes for hooks registered late."""

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
    """Return a number under which compiled code finds an object again, one that keeps gradients or adds up sums."""
    number = next(_NUMBERS)
    _KEEPERS[number] = keeper
    return number


# torch traces the body of a gradient hook and refuses one that writes to Python's objects. An operator is not looked
# into; it returns a copy, and the hook hands that on, for an operator whose result nobody uses would be dropped. A CUDA
# graph would replay without it, so it says that it must stay outside of one.
@library.custom_op(
    "lightning_leaky::keep_gradient",
    mutates_args=(),
    schema="(Tensor gradient, int number, int index) -> Tensor",
    tags=[torch.Tag.cudagraph_unsafe],
)
def keep_gradient(gradient: Tensor, number: int, index: int) -> Tensor:
    """Keep a gradient that passes compiled code, and return a copy of it.

    Args:
        gradient: The gradient.
        number: Whose it is, as `number_of` has said.
        index: Of which layer.

    Returns:
        An equal tensor.
    """
    keeper = _KEEPERS.get(number)
    if keeper is not None:
        keeper.keep_gradient(index, gradient.clone())
    return gradient.clone()  # another one: compiled code writes its next results where this one was


@keep_gradient.register_fake
def _(gradient: Tensor, number: int, index: int) -> Tensor:
    return torch.empty_like(gradient)


# How many rows are real is known when it runs: no graph could be made of what follows. The sums are made before.
@library.custom_op("lightning_leaky::add_rows", mutates_args=("sums",), tags=[torch.Tag.cudagraph_unsafe])
def add_rows(sums: Tensor, previous: Tensor, current: Tensor, real: Tensor | None, number: int, index: int) -> None:
    """Add what passes compiled code to sums, reading it as eager code would.

    Args:
        sums: Those of all layers, changed in place.
        previous: A_{l−1}.
        current: A_l.
        real: Which positions are no padding; ``None`` for all.
        number: Who reads it, as `number_of` has said.
        index: Which layer it is.
    """
    keeper = _KEEPERS.get(number)
    if keeper is not None:
        keeper.add(index, previous, current, real, sums)


def warn_of_recompilation(layers: Sequence[nn.Module]) -> None:
    """Warn where more layers are compiled one by one than torch allows: hooks make each a graph of its own."""
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
    """Run what is compiled eagerly: compiled code knows no hooks registered late, and fuses what hooks do not stop."""
    if "torch._dynamo" not in sys.modules:  # importing it takes seconds; where nobody has, nothing is compiled
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def forget_compiled_code() -> None:
    """Let compiled modules see hooks registered after their first call, which they would silently pass by."""
    # Importing torch._dynamo takes seconds; where nobody has, nothing is compiled.
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
