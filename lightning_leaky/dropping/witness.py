"""Which blocks run, and who else takes what they make."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor, nn

from lightning_leaky.dropping.stacks import Stack
from lightning_leaky.hooks.structures import tensors_of


class Witness(ExitStack):
    """Owns hooks that see blocks run, and which of their neighbours take a tensor that they have made.

    Args:
        stacks: The blocks, and those beside them.

    Attributes:
        ran: Names of the blocks that have run.
        readers: Names of blocks that take what another has made, besides its state, with the name of the other.
    """

    def __init__(self, stacks: list[Stack]) -> None:
        super().__init__()
        self.ran: set[str] = set()
        self.readers: dict[str, str] = {}
        self._made: dict[int, tuple[str, Tensor]] = {}  # the tensor too, so that no other gets its id
        for stack in stacks:
            for key, block in stack.container._modules.items():
                name = f"{stack.name}.{key}".lstrip(".")
                if block is not None and key in stack.gone:
                    self._hook(block.register_forward_hook(partial(self._leave, name), with_kwargs=True))
                elif block is not None:
                    self._hook(block.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True))

    def _hook(self, handle: Any) -> None:
        self.callback(handle.remove)

    def _enter(self, name: str, block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        for tensor in tensors_of((args, kwargs)):
            if id(tensor) in self._made:
                self.readers[name] = self._made[id(tensor)][0]

    def _leave(
        self, name: str, block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        self.ran.add(name)
        taken = {id(tensor) for tensor in tensors_of((args, kwargs))}
        self._made |= {id(one): (name, one) for one in tensors_of(output) if id(one) not in taken}
