"""Blocks of any network as a path, and how they are found where nobody has named them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_leaky.functional._checks import working_dtype
from lightning_leaky.functional.step_sizes import equidistant_step_sizes
from lightning_leaky.hooks.capture import PathCapture
from lightning_leaky.paths.layers import LayerChoice, choose_layers, device_of, named_layers, unwrapped
from lightning_leaky.paths.leaky_path import LeakyPath, find_leaky_path, leaky_paths
from lightning_leaky.utilities.processes import first_of


class BlockPath(nn.Module):
    """Layers of any network, in the order in which they run, as a path with equal steps; at L̃ = 0 a plain ResNet."""

    step_sizes: Tensor

    def __init__(self, layers: Sequence[nn.Module], effective_depth: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.effective_depth = effective_depth
        device = device_of(self.layers)
        self.register_buffer("step_sizes", equidistant_step_sizes(len(self.layers)).to(device, working_dtype(device)))


def path_of(model: nn.Module, layers: LayerChoice | None, effective_depth: float = 0.0) -> LeakyPath | None:
    """Return what a choice of layers means as a path: a leaky path where they are its layers, or a plain one.

    ``None`` where no layers are chosen and the model has no leaky path, so that one must be found; ValueError where it
    has several.
    """
    found = leaky_paths(model)
    if layers is None:
        return find_leaky_path(model) if found else None
    chosen = list(choose_layers(model, layers).values())
    return next((path for path in found.values() if list(path.layers) == chosen), BlockPath(chosen, effective_depth))


class PathFinder:
    """Finds the blocks of a model nobody has named, from one forward pass through a capture of all `candidates`."""

    def __init__(self, model: nn.Module, effective_depth: float = 0.0) -> None:
        self.candidates = list(candidate_blocks(model).values())
        self.effective_depth = effective_depth
        self.has_found_none = False
        self._device = device_of(model)
        self._run: list[int] = []

    def find(self, capture: PathCapture) -> tuple[BlockPath, list[int]] | None:
        """Return the longest run as a path, with its places among the candidates, or ``None`` if there is none."""
        self._run = longest_run(capture)
        self.has_found_none = not self._run
        return (self._path(), self._run) if self._run else None

    def agreed_path(self) -> BlockPath | None:
        """Return the path that the first of all processes has found, or ``None`` where that is this process's own.

        A collective that every process must join.
        """
        places = torch.zeros(len(self.candidates), dtype=torch.int64, device=self._device)
        places[self._run] = torch.arange(1, len(self._run) + 1, device=self._device)
        agreed = first_of(places, bool(self._run))
        if agreed is None or torch.equal(agreed, places):
            return None
        self._run = agreed.argsort()[int((agreed == 0).sum()) :].tolist()
        return self._path()

    def _path(self) -> BlockPath:
        return BlockPath([self.candidates[index] for index in self._run], self.effective_depth)


def candidate_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that could be blocks, by name: those with parameters that are more than one layer of torch."""
    return {
        name: module
        for name, module in named_layers(model).items()
        if any(True for _ in module.parameters())
        and (any(True for _ in module.children()) or not type(unwrapped(module)).__module__.startswith("torch.nn"))
    }


def longest_run(capture: PathCapture) -> list[int]:
    """Return the longest run among the layers of a capture that has seen a forward pass, in the order of the run.

    A run is a chain of modules of one class, each of which takes the very tensor that the one before returned. The
    longest one is that with most shape-preserving blocks, of equals the one with most parameters; it may pass blocks
    that change the shape. Empty where no run has two shape-preserving blocks.
    """
    runs = _Runs(capture)
    best = max((runs.ending_at(index) for index in runs.indices), key=runs.score, default=[])
    return best if runs.score(best)[0] >= 2 else []


class _Runs:
    """Runs that end at each layer of a capture."""

    def __init__(self, capture: PathCapture) -> None:
        self.layers = capture.layers
        self.previous, self.current = _identities(capture.previous), _identities(capture.current)
        repeated = capture.complaints()
        self.indices = [
            index
            for index in range(len(self.layers))
            if self.current[index] and self.current[index] != self.previous[index] and index not in repeated
        ]
        self._found: dict[int, list[int]] = {}

    def ending_at(self, index: int) -> list[int]:
        """Best run that ends with a layer."""
        if index not in self._found:
            self._found[index] = [index]  # for itself, should a view close a circle
            before = [
                other
                for other in self.indices
                if other != index
                and self.current[other] == self.previous[index]
                and type(unwrapped(self.layers[other])) is type(unwrapped(self.layers[index]))
            ]
            longest = max((self.ending_at(other) for other in before), key=self.score, default=[])
            self._found[index] = [*longest, index]
        return self._found[index]

    def score(self, run: Sequence[int]) -> tuple[int, int]:
        """Number of shape-preserving blocks, then number of parameters."""
        preserving = [index for index in run if self.previous[index][1:] == self.current[index][1:]]
        return len(preserving), sum(parameter.numel() for index in run for parameter in self.layers[index].parameters())


def _identities(tensors: Sequence[Tensor | None]) -> list[tuple[int, ...]]:
    """Where in memory each tensor lies, then its shape: unique while all are kept; empty where there is none."""
    return [() if tensor is None else (tensor.data_ptr(), *tensor.shape) for tensor in tensors]
