"""Parameters that optimizers forget."""

from __future__ import annotations

from collections.abc import Container, Iterable

from torch.optim import Optimizer


def forget(optimizers: Iterable[Optimizer], gone: Container[int]) -> None:
    """Take parameters, by id, out of optimizers, with their state; a group that is left empty stays."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            kept = [index for index, parameter in enumerate(group["params"]) if id(parameter) not in gone]
            for key in {"params", "param_names"} & group.keys():  # names, of one made from `named_parameters`
                group[key] = [group[key][index] for index in kept]
        for parameter in [one for one in optimizer.state if id(one) in gone]:
            del optimizer.state[parameter]
