"""What a network must offer so that its path can be read and its step-sizes adapted, and how it is found."""

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
else:  # a module is nothing that a configuration holds, and a command line would list every class of torch
    PathChoice = str
"""Which of several paths: the name of one or of a module around it, a glob over such names, or a module (in Python)."""


class LeakyPath(Protocol):
    """A stack of leaky steps with a buffer of step-sizes.

    `LeakyResNet` is one; any module with these attributes is another, and every callback and hook accepts it.

    Attributes:
        layers: The L steps, each mapping A_{l−1} (its first argument) to A_l. For the criticality residual each has a
            method `augmented_weight` that returns W_l, shape (w, d), and the path one `weights` that returns all.
        step_sizes: Buffer ρ, shape (L,), read at every forward pass and changed in place only.
        effective_depth: L̃ ≥ 0.

    Example:
        >>> class Path(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        ...         self.register_buffer("step_sizes", torch.tensor([0.5, 0.5]))
        ...         self.effective_depth = 1.0
        >>> path = Path()
        >>> find_leaky_path(path) is path
        True
    """

    layers: nn.ModuleList
    step_sizes: Tensor
    effective_depth: float


def find_leaky_path(model: nn.Module, path: PathChoice | None = None, held: Container[int] | None = None) -> LeakyPath:
    """Return one leaky path of a model: the model itself or one of its descendants.

    If several are meant, it returns the one that is trained: its layers require gradients, and the optimizers hold
    them, where these are known. A frozen teacher steps aside.

    Args:
        model: Where to look.
        path: Which one: its name or that of a module around it, as ``"student"``; a glob over such names, where ``*``
            stops at a dot; or the module itself.
        held: Ids of the parameters that optimizers hold, where they are known.

    Raises:
        ValueError: If there is none, or more than one.

    Example:
        >>> from lightning_leaky import LeakyResNet
        >>> student, teacher = (LeakyResNet(2, 2, width=4, num_layers=3, effective_depth=1.0) for _ in range(2))
        >>> model = nn.ModuleDict({"student": student, "teacher": teacher})
        >>> find_leaky_path(model, "teacher") is teacher
        True
        >>> _ = teacher.requires_grad_(False)
        >>> find_leaky_path(model) is student
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
    """Return the name of a module in a model, wrapped or not; ``None`` where it is not inside."""
    return next((name for name, one in named_layers(model).items() if unwrapped(one) is unwrapped(module)), None)


def leaky_paths(model: nn.Module) -> dict[str, LeakyPath]:
    """Return every leaky path of a model by name: the model itself, ``""``, and its descendants."""
    paths: dict[tuple[int, ...], tuple[str, LeakyPath]] = {}
    for name, module in {"": model, **named_layers(model)}.items():
        path: Any = unwrapped(module)
        if implements(path, LeakyPath) and isinstance(path.step_sizes, Tensor):
            # What stands around a path may hand look-ups on: of those with the same layers the last one is the path.
            paths[tuple(map(id, path.layers))] = name, path
    return dict(paths.values())


def _chosen(model: nn.Module, found: dict[str, LeakyPath], path: PathChoice) -> dict[str, LeakyPath]:
    """Those that a choice means: the very modules, else all that are in them."""
    meant: list[Any] = [
        unwrapped(module)
        for name, module in {"": model, **named_layers(model)}.items()
        if (_matches_glob(name, path) if isinstance(path, str) else unwrapped(module) is unwrapped(path))
    ]
    inside = {id(inner) for module in meant for inner in module.modules()}
    exact = {name: one for name, one in found.items() if any(one is module for module in meant)}
    return exact or {name: one for name, one in found.items() if id(one) in inside}


def _trained(found: dict[str, LeakyPath], held: Container[int] | None = None) -> dict[str, LeakyPath]:
    """Those with a layer's parameter that requires gradients and, where it is known, that an optimizer holds."""
    return {
        name: path
        for name, path in found.items()
        if any(one.requires_grad and (held is None or id(one) in held) for one in path.layers.parameters())
    }


def step_sizes_of(path: LeakyPath) -> Tensor:
    """Return a float64 copy of a path's step-sizes that sums to 1 exactly, however coarse the buffer is."""
    return normalise_step_sizes(path.step_sizes.detach().cpu())


class LayerWeights(Sequence[Tensor]):
    """W_l of some layers of a path that `knows_weights`, each made when it is asked for.

    A sharded layer is gathered for it, a collective: of a network that one process could not hold, one layer at a time
    is whole.
    """

    def __init__(self, path: LeakyPath, indices: Sequence[int]) -> None:
        self.path, self.indices = path, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        """Return W_l, shape (w, d); of a slice, those of its layers."""
        if isinstance(index, slice):
            return LayerWeights(self.path, self.indices[index])
        layer: Any = unwrapped(self.path.layers[self.indices[index]])
        with at_rest(layer):
            return layer.augmented_weight()


def knows_weights(path: LeakyPath | None) -> bool:
    """Whether a path has a method `weights`, and each of its layers one `augmented_weight`; other blocks are no W_l."""
    return (
        path is not None
        and callable(getattr(path, "weights", None))
        and all(hasattr(unwrapped(layer), "augmented_weight") for layer in path.layers)
    )
