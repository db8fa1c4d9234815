"""What a network needs to have a path, and how to find it."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from torch import Tensor, nn

from lightning_leaky.functional._checks import implements
from lightning_leaky.functional.step_sizes import normalise_step_sizes
from lightning_leaky.paths.layers import _matches_glob, at_rest, named_layers
from lightning_leaky.utilities.wrappers import unwrapped

if TYPE_CHECKING:
    PathChoice: TypeAlias = str | nn.Module
else:  # a configuration holds no module, and a command line would list every class of torch
    PathChoice = str
"""A path's name or that of a module around it, a glob over such names, or a module (in Python)."""


class LeakyPath(Protocol):
    """A stack of leaky steps with a buffer of step-sizes.

    `LeakyResNet` is one. Every callback and hook accepts any module with these attributes.

    Attributes:
        layers: The L steps, each from A_{l−1} (its first argument) to A_l. The criticality residual needs a method
            `augmented_weight` of each, which returns W_l, shape (w, d), and a method `weights` of the path for all.
        step_sizes: Buffer ρ, shape (L,), read at every forward pass and changed only in place.
        effective_depth: L̃ ≥ 0.

    Example:
        >>> import torch
        >>> path = nn.Module()
        >>> path.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        >>> path.register_buffer("step_sizes", torch.tensor([0.5, 0.5]))
        >>> path.effective_depth = 1.0
        >>> find_leaky_path(path) is path
        True
    """

    layers: nn.ModuleList
    step_sizes: Tensor
    effective_depth: float


def find_leaky_path(model: nn.Module, path: PathChoice | None = None, held: Container[int] | None = None) -> LeakyPath:
    """Return the leaky path of a model: the model itself or a descendant.

    If there are several, it returns the trained one: its layers require gradients, and optimizers hold them (if `held`
    is known). A frozen teacher does not count.

    Args:
        model: Where to look.
        path: Its name or that of a module around it, as ``"student"``; a glob over such names, whose ``*`` stops at a
            dot; or a module.
        held: Ids of parameters that optimizers hold, if known.

    Raises:
        ValueError: If there is none, or more than one.

    Example:
        >>> from lightning_leaky import LeakyResNet
        >>> student, teacher = (LeakyResNet(2, 2, width=4, num_layers=3, effective_depth=1.0) for _ in range(2))
        >>> _ = teacher.requires_grad_(False)
        >>> find_leaky_path(nn.ModuleList([student, teacher])) is student
        True
    """
    found = leaky_paths(model)
    if not found:
        raise ValueError(
            f"`model` must contain a module with step-sizes, got {type(model).__name__} without one; "
            "build it on LeakyResNet or give it `layers`, a buffer `step_sizes` and `effective_depth`."
        )
    told = path if path is None or isinstance(path, str) else type(path).__name__
    chosen = found if path is None else _chosen(model, found, path)
    if not chosen:
        raise ValueError(
            f"`path` must name a module with step-sizes or one around it, got {told!r}; there are {sorted(found)}."
        )
    if len(chosen) > 1:
        chosen = _trained(chosen, held) or _trained(chosen) or chosen
    if len(chosen) > 1:
        name = min(filter(None, chosen))
        layers = path_name(model, chosen[name].layers[0]) or ""
        raise ValueError(
            f"`path` must say which of {sorted(chosen)} is meant, all with step-sizes, got {told!r}. Name one, as in "
            f"path={name!r}; what takes `layers` in its place wants layers={layers.rpartition('.')[0] + '.*'!r}."
        )
    return next(iter(chosen.values()))


def path_name(model: nn.Module, module: nn.Module) -> str | None:
    """Return the name of a module in a model, wrapped or not, or ``None``."""
    return next((name for name, one in named_layers(model).items() if unwrapped(one) is unwrapped(module)), None)


def leaky_paths(model: nn.Module) -> dict[str, LeakyPath]:
    """Return every leaky path of a model by name, ``""`` for the model itself."""
    paths: dict[tuple[int, ...], tuple[str, LeakyPath]] = {}
    for name, module in {"": model, **named_layers(model)}.items():
        path: Any = unwrapped(module)
        if implements(path, LeakyPath) and isinstance(path.step_sizes, Tensor):
            # Modules around a path may forward attributes: the last one is the path.
            paths[tuple(map(id, path.layers))] = name, path
    return dict(paths.values())


def _chosen(model: nn.Module, found: dict[str, LeakyPath], path: PathChoice) -> dict[str, LeakyPath]:
    """Paths that a choice names, or else all inside what it names."""
    meant: list[Any] = [
        unwrapped(module)
        for name, module in {"": model, **named_layers(model)}.items()
        if (_matches_glob(name, path) if isinstance(path, str) else unwrapped(module) is unwrapped(path))
    ]
    inside = {id(inner) for module in meant for inner in module.modules()}
    exact = {name: one for name, one in found.items() if any(one is module for module in meant)}
    return exact or {name: one for name, one in found.items() if id(one) in inside}


def _trained(found: dict[str, LeakyPath], held: Container[int] | None = None) -> dict[str, LeakyPath]:
    return {
        name: path
        for name, path in found.items()
        if any(one.requires_grad and (held is None or id(one) in held) for one in path.layers.parameters())
    }


def step_sizes_of(path: LeakyPath) -> Tensor:
    """Return a float64 copy of a path's step-sizes that sums to 1 exactly."""
    return normalise_step_sizes(path.step_sizes.detach().cpu())


class LayerWeights(Sequence[Tensor]):
    """W_l, shape (w, d), of layers of a path that `knows_weights`, made on access; sharded ones by a collective."""

    def __init__(self, path: LeakyPath, indices: Sequence[int]) -> None:
        self.path, self.indices = path, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return LayerWeights(self.path, self.indices[index])
        layer: Any = unwrapped(self.path.layers[self.indices[index]])
        with at_rest(layer):
            return layer.augmented_weight()


def knows_weights(path: LeakyPath | None) -> bool:
    """Whether a path has a method `weights`, and each of its layers `augmented_weight`."""
    return (
        path is not None
        and callable(getattr(path, "weights", None))
        and all(hasattr(unwrapped(layer), "augmented_weight") for layer in path.layers)
    )
