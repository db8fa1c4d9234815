"""Blocks of any network as a path, and how to find them."""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_leaky.functional._checks import working_dtype
from lightning_leaky.functional.step_sizes import equidistant_step_sizes
from lightning_leaky.hooks.capture import Passage, PathCapture
from lightning_leaky.hooks.state import Span
from lightning_leaky.hooks.structures import shape_of
from lightning_leaky.paths.layers import LayerChoice, choose_layers, device_of, named_layers
from lightning_leaky.paths.leaky_path import LeakyPath, find_leaky_path, leaky_paths
from lightning_leaky.utilities.processes import first_of
from lightning_leaky.utilities.wrappers import plain_name, unwrapped

_MOST_SHAPES = 6
_MOST_BATCHES = 10


class BlockPath(nn.Module):
    """Layers of any network, as they run, as a path with equal steps; L̃ = 0 is a plain ResNet."""

    step_sizes: Tensor

    def __init__(self, layers: Sequence[nn.Module], effective_depth: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.effective_depth = effective_depth
        device = device_of(self.layers)
        self.register_buffer("step_sizes", equidistant_step_sizes(len(self.layers)).to(device, working_dtype(device)))


def path_of(
    model: nn.Module, layers: LayerChoice | None, effective_depth: float = 0.0, held: Container[int] | None = None
) -> LeakyPath | None:
    """Return the chosen layers as a path: the leaky path of exactly these, or a `BlockPath`.

    Without a choice, return the model's leaky path or ``None``; ValueError if it has several.
    """
    found = leaky_paths(model)
    if layers is None:
        return find_leaky_path(model, held=held) if found else None
    chosen = list(choose_layers(model, layers).values())
    return next((path for path in found.values() if list(path.layers) == chosen), BlockPath(chosen, effective_depth))


class PathFinder:
    """Finds blocks from forward passes through a capture of all `candidates`.

    It prefers trained blocks, with a parameter that optimizers hold if `held` is known.
    """

    def __init__(self, model: nn.Module, effective_depth: float = 0.0, held: Container[int] | None = None) -> None:
        named = candidate_blocks(model) | flat_stacks(model)
        self.candidates = list(named.values())
        self.effective_depth = effective_depth
        self._names, self._held = list(named), held
        self._device = device_of(model)
        self._run: list[int] = []
        self._batches_left = _MOST_BATCHES

    def find(self, capture: PathCapture) -> tuple[BlockPath, list[int]] | None:
        """Return the best run as a path, and its places among the candidates, or ``None``.

        Another batch can show more only if some candidates were idle in this one.
        """
        runs = _Runs(capture, self._names, self._held)
        self._run = runs.best()
        self._batches_left = self._batches_left - 1 if runs.idle and not self._run else 0
        return (self._path(), self._run) if self._run else None

    def is_done(self) -> bool:
        """Whether the search has ended."""
        return self._batches_left <= 0

    def agreed_path(self) -> BlockPath | None:
        """Return the path of the first process with one, or ``None`` if it is this one's; a collective."""
        places = torch.zeros(len(self.candidates), dtype=torch.int64, device=self._device)
        places[self._run] = torch.arange(1, len(self._run) + 1, device=self._device)
        agreed = first_of(places, bool(self._run))
        if agreed is None or torch.equal(agreed, places):
            return None
        self._run = agreed.argsort()[int((agreed == 0).sum()) :].tolist()
        return self._path()

    def note(self) -> str:
        """Say what was found, and what of its class is not read."""
        run, kinds = self._run, [type(unwrapped(module)) for module in self.candidates]
        kind, first, last = kinds[run[0]], self._names[run[0]], self._names[run[-1]]
        said = f"{len(run)} layers found: {first} to {last} ({kind.__name__})."
        left = [self._names[index] for index, other in enumerate(kinds) if other is kind and index not in run]
        if left:
            said += f" {len(left)} more of this class are not read, as {_pattern(left[0])!r}: name them by `layers`."
        return said

    def complaint(self, capture: PathCapture) -> str:
        """Say what ran, and what to do if no path was found."""
        shapes = zip(self._names, _shapes(capture.passages[0]), strict=True)
        seen = [f"{name}: {pair[0]} to {pair[1]}" for name, pair in shapes if pair]
        more = f" and {len(seen) - _MOST_SHAPES} more" if len(seen) > _MOST_SHAPES else ""
        ran = "; ".join(seen[:_MOST_SHAPES]) + more or "none with parameters ran"
        return (
            "No layers are read: `layers` is None, and no two blocks of one class that keep the shape follow one "
            f"another in the first batch. Modules that ran: {ran}. Name the layers, as in "
            'EnergyMonitor("encoder.layers.*"), or wrap what belongs together in modules of one class.'
        )

    def _path(self) -> BlockPath:
        return BlockPath([self.candidates[index] for index in self._run], self.effective_depth)


def candidate_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules with parameters that are more than one layer of torch."""
    return {
        name: module
        for name, module in named_layers(model).items()
        if not isinstance(module, (nn.ModuleList, nn.ModuleDict))  # nobody calls them
        and any(True for _ in module.parameters())
        and (any(True for _ in module.children()) or not type(unwrapped(module)).__module__.startswith("torch.nn"))
    }


def flat_stacks(model: nn.Module) -> dict[str, nn.Module]:
    """Return linear maps between equal widths in each `nn.Sequential`, with the activation, dropout and norm after."""
    found: dict[str, nn.Module] = {}
    for name, parent in model.named_modules():
        open_at = None
        for key, module in parent.named_children() if isinstance(parent, nn.Sequential) else ():
            if isinstance(module, nn.Linear) and module.in_features == module.out_features:
                open_at = plain_name(f"{name}.{key}".lstrip("."))
                found[open_at] = Span(module)
            elif isinstance(module, nn.Linear) or [*module.children()]:
                open_at = None
            elif open_at is not None:
                found[open_at].append(module)  # type: ignore[operator]
    return found


class _Runs:
    """Runs among the layers of a capture that has seen a forward pass.

    A run is a chain of modules of one class, each of which takes the very tensor that the one before returned. The best
    run has trained parameters, then the most shape-preserving blocks, then the most parameters. It may include blocks
    that change the shape, stages of other widths, and idle blocks of its class beside it, which other batches may use.
    """

    def __init__(self, capture: PathCapture, names: Sequence[str], held: Container[int] | None) -> None:
        self.layers, self.names, self.held = capture.layers, names, held
        self.kinds = [type(unwrapped(layer)) for layer in capture.layers]
        first = capture.passages[0]
        self.shapes = _shapes(first)
        self.preserving = {index for index, pair in enumerate(self.shapes) if pair and pair[0] == pair[1]}
        self.previous, self.current = (
            [{seen.identity for seen in one} for one in side] for side in (first.befores, first.afters)
        )
        self.working = [index for index, new in enumerate(self.current) if new - self.previous[index]]
        self.idle = sorted({*range(len(self.layers))} - {*self.working})
        self._found: dict[int, list[int]] = {}

    def best(self) -> list[int]:
        """The best run in its order; empty if none has two shape-preserving blocks."""
        # Containers, then linear maps, count only without blocks.
        roles = [kind if kind in (nn.Sequential, Span) else nn.Module for kind in self.kinds]
        for role in (nn.Module, nn.Sequential, Span):
            runs = [self._ending_at(index) for index in self.working if roles[index] is role]
            best = max(runs, key=self._score, default=[])
            if self._score(best)[1] >= 2:
                return self._with_idle(self._with_stages(best, runs))
        return []

    def _ending_at(self, index: int) -> list[int]:
        if index not in self._found:
            self._found[index] = [index]  # in case a view closes a circle
            alike = [other for other in self.working if other != index and self.kinds[other] is self.kinds[index]]
            before = [self._ending_at(other) for other in alike if self.current[other] & self.previous[index]]
            self._found[index] = [*max(before, key=self._score, default=[]), index]
        return self._found[index]

    def _score(self, run: Sequence[int]) -> tuple[bool, int, int]:
        """Whether a run is trained, and its numbers of shape-preserving blocks and parameters."""
        parameters = [one for index in run for one in self.layers[index].parameters() if not is_lazy(one)]
        trained = any(one.requires_grad and (self.held is None or id(one) in self.held) for one in parameters)
        return trained, sum(index in self.preserving for index in run), sum(one.numel() for one in parameters)

    def _with_stages(self, best: list[int], runs: Sequence[list[int]]) -> list[int]:
        """Add the runs of its class in other stages if each stage has its own width."""
        pattern = _pattern(self.names[best[0]])
        inside = {index for run in runs for index in run[:-1]}  # these runs go on
        whole = [run for run in runs if run[-1] not in inside and self.kinds[run[0]] is self.kinds[best[0]]]
        stages = [run for run in whole if _pattern(self.names[run[0]]) == pattern and self._score(run)[1]]
        ends = [(self.shapes[one[-1]], self.shapes[other[0]]) for one, other in pairwise(stages)]
        differ = all(end and start and end[1] != start[0] for end, start in ends)
        return [index for run in stages for index in run] if best in stages and differ else best

    def _with_idle(self, run: list[int]) -> list[int]:
        """Add the idle blocks beside a run if their names tell their places."""
        parents = [name.rpartition(".")[0] for name in self.names]
        beside = {parents[index] for index in run}
        idle = [index for index in self.idle if parents[index] in beside and self.kinds[index] is self.kinds[run[0]]]
        backwards = run == sorted(run, reverse=True)
        return sorted([*run, *idle], reverse=backwards) if backwards or run == sorted(run) else run


def _shapes(passage: Passage) -> list[tuple[tuple[Any, ...], tuple[Any, ...]] | None]:
    sides = zip(passage.befores, passage.afters, strict=True)
    return [(shape_of(one[0].tensor), shape_of(other[0].tensor)) if one and other else None for one, other in sides]


def _pattern(name: str) -> str:
    """A glob over names that differ in a number."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))
