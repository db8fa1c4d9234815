"""What a network must offer so that its path can be read and its step-sizes adapted, and how it is found."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from lightning_leaky.functional._checks import implements
from lightning_leaky.functional.step_sizes import normalise_step_sizes
from lightning_leaky.paths.layers import plain_name, unwrapped


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


def find_leaky_path(model: nn.Module) -> LeakyPath:
    """Return the one leaky path of a model: the model itself or one of its descendants.

    Raises:
        ValueError: If there is none, or more than one.

    Example:
        >>> from lightning_leaky import LeakyResNet
        >>> model = torch.nn.Sequential(LeakyResNet(2, 2, width=4, num_layers=3, effective_depth=1.0))
        >>> len(find_leaky_path(model).layers)
        3
    """
    found = leaky_paths(model)
    if len(found) == 1:
        return next(iter(found.values()))
    if not found:
        raise ValueError(
            f"`model` must contain a module with step-sizes, got {type(model).__name__} without one; "
            "build it on LeakyResNet or give it `layers`, a buffer `step_sizes` and `effective_depth`."
        )
    raise ValueError(f"`model` must contain one module with step-sizes, got {sorted(found)}; pass the one you mean.")


def leaky_paths(model: nn.Module) -> dict[str, LeakyPath]:
    """Return every leaky path of a model by name: the model itself, ``""``, and its descendants."""
    return {
        plain_name(name): module
        for name, module in model.named_modules()
        # A compiled wrapper answers for the module inside it: it would be found twice.
        if implements(module, LeakyPath) and isinstance(module.step_sizes, Tensor) and not hasattr(module, "_orig_mod")
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
        self.layers: list[Any] = [unwrapped(path.layers[index]) for index in indices]

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: Any) -> Any:
        """Return W_l, shape (w, d); of a slice, those of its layers."""
        if isinstance(index, slice):
            part = copy.copy(self)
            part.layers = self.layers[index]
            return part
        return self.layers[index].augmented_weight()


def knows_weights(path: LeakyPath | None) -> bool:
    """Whether a path has a method `weights`, and each of its layers one `augmented_weight`; other blocks are no W_l."""
    return (
        path is not None
        and callable(getattr(path, "weights", None))
        and all(hasattr(unwrapped(layer), "augmented_weight") for layer in path.layers)
    )
