"""Branches of blocks as steps, which the user names or a batch shows."""

from __future__ import annotations

import itertools
from collections.abc import Container, Sequence
from typing import TypeAlias

import torch
from torch import nn

from lightning_leaky.hooks.branch_capture import BranchCapture
from lightning_leaky.hooks.capture import PathCapture
from lightning_leaky.hooks.state import Span, Step
from lightning_leaky.paths.block_path import _MOST_BATCHES, BlockPath, PathFinder
from lightning_leaky.paths.layers import _matches_glob, device_of, named_layers
from lightning_leaky.paths.leaky_path import LeakyPath, path_name
from lightning_leaky.utilities.processes import first_of
from lightning_leaky.utilities.wrappers import unwrapped

BranchChoice: TypeAlias = bool | Sequence[str]
"""Whether to read branches apart, or globs over the modules in each block that take its states."""


def path_or_finder(
    model: nn.Module,
    path: LeakyPath | None,
    branches: BranchChoice = False,
    effective_depth: float = 0.0,
    held: Container[int] | None = None,
) -> tuple[LeakyPath | None, PathFinder | BranchFinder | None]:
    """Return a path, with its `branches` apart if told, or what finds it in a batch.

    True finds them. Globs choose modules in a block in the order of running: the first tensor that each takes is a
    state. ValueError if `path` is not made of blocks, or a glob matches nothing in one.
    """
    if not branches:
        return path, PathFinder(model, effective_depth, held) if path is None else None
    if isinstance(branches, str) or not (branches is True or all(isinstance(one, str) for one in branches)):
        raise ValueError(f'`branches` must be true, or names of modules in each block, as ["norm1"], got {branches!r}.')
    if path is None:
        raise ValueError('`layers` must name the blocks whose `branches` are read, as "encoder.layers.*", got None.')
    if not isinstance(path, BlockPath) or any(isinstance(layer, Span) for layer in path.layers):
        raise ValueError(f"`branches` must be left out of a leaky path and of a plain stack, got {branches!r}.")
    if branches is True:
        return None, BranchFinder(model, path)
    steps = list[Step]()
    for block, pattern in itertools.product(path.layers, branches):
        inside = named_layers(unwrapped(block))
        parts = [part for name, part in inside.items() if _matches_glob(name, pattern)]
        if not parts:
            raise ValueError(
                f"`branches` must name modules in every block, but {pattern!r} matches none in "
                f"{path_name(model, block)!r}, which has {[name for name in inside if '.' not in name]}."
            )
        steps += [Step(block, part) for part in parts]
    return _path_of(steps, path.effective_depth), None


class BranchFinder:
    """Finds the steps of blocks from forward passes through a `BranchCapture` of all `candidates`."""

    def __init__(self, model: nn.Module, path: BlockPath) -> None:
        self._model, self._blocks, self._effective_depth = model, list(path.layers), path.effective_depth
        self._taps = [Step(one, part, part) for one in self._blocks for part in list(unwrapped(one).modules())[1:]]
        self.candidates: list[nn.Module] = [*self._taps, *self._blocks]
        # A row per known step: the tap where it starts, and that which names it.
        self._table = torch.full((len(self._taps), 2), -1, device=device_of(model))
        self._batches_left, self._unknown = _MOST_BATCHES, list[int]()

    def find(self, capture: PathCapture) -> tuple[BlockPath, list[tuple[int, int]]] | None:
        """Return a path, and the candidates that know A_{l−1} and A_l of each step; ``None`` if unknown."""
        self._batches_left -= 1
        found = capture.found if isinstance(capture, BranchCapture) else {}
        blocks = range(len(self._taps), len(self.candidates))
        self._unknown = [index for index in blocks if index not in found]
        if self._unknown:
            return None
        self._batches_left = 0
        rows = [row for index in blocks for row in found[index].items()]
        self._table[: len(rows)] = torch.tensor(rows)
        return self._path(), [pair for index in blocks for pair in itertools.pairwise([*found[index], index])]

    def is_done(self) -> bool:
        """Whether the search has ended."""
        return self._batches_left <= 0

    def agreed_path(self) -> BlockPath | None:
        """Return the path of the first process with one, or ``None`` if it is this one's; a collective."""
        agreed = first_of(self._table, bool((self._table >= 0).any()))
        if agreed is None or torch.equal(agreed, self._table):
            return None
        self._table, self._batches_left = agreed, 0
        return self._path()

    def note(self) -> str:
        """Say what was found, and how to name it."""
        taps = [self._taps[first] for first, _ in self._table.tolist() if first >= 0]
        said = {block: list[str | None]() for block in self._blocks}
        for tap in taps:
            said[tap.block].append(path_name(unwrapped(tap.block), tap.first))
        named = " or ".join(dict.fromkeys(f"branches={names}" for names in said.values()))
        return f"{len(taps)} steps found in {len(said)} blocks, as {named} would name them."

    def complaint(self, capture: PathCapture) -> str:
        """Say which block has no known steps, why, and what to do."""
        index = self._unknown[0]
        block = self.candidates[index]
        why = "did not run, or did so in compiled code, which is not looked into"
        if capture.runs[index]:
            why = "holds no state between its branches that a module takes (as in parallel branches, or compiled code)"
        return (
            f"No branches are read: {path_name(self._model, block)!r}, a {type(unwrapped(block)).__name__}, {why}. "
            "Leave `branches` out, or name the modules that take the states, as branches=('norm1', 'norm2')."
        )

    def _path(self) -> BlockPath:
        taps = [(self._taps[first], self._taps[named]) for first, named in self._table.tolist() if first >= 0]
        return _path_of([Step(tap.block, tap.first, None, named.first) for tap, named in taps], self._effective_depth)


def _path_of(steps: Sequence[Step], effective_depth: float) -> BlockPath:
    """A path whose steps end where the next one of their block begins, or with the block."""
    for step, following in itertools.pairwise(steps):
        if following.block is step.block:
            step.then = following.first
    return BlockPath(steps, effective_depth)
