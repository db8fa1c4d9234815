"""Blocks read branch by branch: their steps, as the user names them or as a batch shows them."""

from __future__ import annotations

import itertools
from collections.abc import Container, Sequence
from typing import TypeAlias

import torch
from torch import nn

from lightning_leaky.hooks.branch_capture import BranchCapture, taps_of
from lightning_leaky.hooks.capture import PathCapture
from lightning_leaky.hooks.steps import Span, Step
from lightning_leaky.paths.block_path import BlockPath, PathFinder
from lightning_leaky.paths.layers import _matches_glob, device_of, named_layers
from lightning_leaky.paths.leaky_path import LeakyPath, path_name
from lightning_leaky.utilities.processes import first_of
from lightning_leaky.utilities.wrappers import unwrapped

BranchChoice: TypeAlias = bool | Sequence[str]
"""Whether to read the branches of blocks apart; or globs over the modules in each block that take its states."""

_MOST_BATCHES = 10


def path_or_finder(
    model: nn.Module,
    path: LeakyPath | None,
    branches: BranchChoice = False,
    effective_depth: float = 0.0,
    held: Container[int] | None = None,
) -> tuple[LeakyPath | None, PathFinder | BranchFinder | None]:
    """Return a path, with the branches of its blocks apart where that is wanted, or what finds it in a batch.

    Args:
        model: What contains the layers.
        path: The layers, where they are known.
        branches: True, for a finder; or globs over names in a block, where ``*`` stops at a dot, in the order in which
            the modules run. The first tensor that each takes is a state. The last step ends with what the block
            returns.
        effective_depth: As of `PathFinder`.
        held: As of `PathFinder`.

    Raises:
        ValueError: If branches are wanted of no blocks, or a glob matches no module in one.

    Example:
        >>> block = nn.TransformerEncoderLayer(8, 2, norm_first=True)
        >>> path, _ = path_or_finder(nn.Sequential(block), BlockPath([block]), ["norm1", "norm2"])
        >>> [step.first is norm for step, norm in zip(path.layers, [block.norm1, block.norm2])]
        [True, True]
    """
    if not branches:
        return path, PathFinder(model, effective_depth, held) if path is None else None
    if isinstance(branches, str) or not (branches is True or all(isinstance(one, str) for one in branches)):
        raise ValueError(
            f'`branches` must be true, or names of modules in each block, as ("norm1", "norm2"), got {branches!r}.'
        )
    if path is None:
        raise ValueError('`layers` must name the blocks whose `branches` are read, as "encoder.layers.*", got None.')
    if not isinstance(path, BlockPath) or any(isinstance(layer, Span) for layer in path.layers):
        raise ValueError(
            "`branches` must be left out where the layers are of a leaky path or of a plain stack, which make one step "
            f"each, got {branches!r}."
        )
    if branches is True:
        return None, BranchFinder(model, path)
    firsts = [_named(model, block, branches) for block in path.layers]
    steps = [step for block, one in zip(path.layers, firsts, strict=True) for step in _steps(block, one, one)]
    return BlockPath(steps, path.effective_depth), None


class BranchFinder:
    """Finds the steps of blocks, from forward passes through a `BranchCapture` of all `candidates`."""

    def __init__(self, model: nn.Module, path: BlockPath) -> None:
        self._blocks, self._effective_depth = list(path.layers), path.effective_depth
        self._names = [path_name(model, block) for block in self._blocks]
        self._taps = [tap for block in self._blocks for tap in taps_of(block)]
        self.candidates: list[nn.Module] = [*self._taps, *self._blocks]
        # Of each tap, which state of all its module takes, from 1, and the tap of what the step from there is named by.
        self._table = torch.zeros(2, len(self._taps), dtype=torch.int64, device=device_of(model))
        self._batches_left = _MOST_BATCHES

    def find(self, capture: PathCapture) -> tuple[BlockPath, list[tuple[int, int]]] | None:
        """Return the steps as a path, and for each the candidates that know its A_{l−1} and its A_l.

        ``None`` if the steps of a block are not known: another batch may show them.
        """
        self._batches_left -= 1
        found, indices = _found(capture), range(len(self._taps), len(self.candidates))
        if not all(index in found for index in indices):
            return None
        self._batches_left = 0
        for number, (tap, named) in enumerate((pair for index in indices for pair in found[index]), start=1):
            self._table[:, tap] = torch.tensor([number, named])
        runs = [[*(tap for tap, _ in found[index]), index] for index in indices]
        return self._path(), [pair for run in runs for pair in itertools.pairwise(run)]

    def is_done(self) -> bool:
        """Whether the search has ended."""
        return self._batches_left <= 0

    def agreed_path(self) -> BlockPath | None:
        """Return the path that the first of all processes has found, or ``None`` where that is this process's own.

        A collective that every process must join.
        """
        agreed = first_of(self._table, bool(self._table.any()))
        if agreed is None or torch.equal(agreed, self._table):
            return None
        self._table, self._batches_left = agreed, 0
        return self._path()

    def note(self) -> str:
        """Say what was found, and how a user would name it."""
        steps = self._steps()
        said = {block: list[str | None]() for block in self._blocks}
        for step in steps:
            said[step.block].append(path_name(unwrapped(step.block), step.first))
        named = " or ".join(dict.fromkeys(f"branches={names}" for names in said.values()))
        return f"{len(steps)} steps found in {len(said)} blocks, as {named} would name them."

    def complaint(self, capture: PathCapture) -> str:
        """Say of which block no steps are known, why, and what to do."""
        found, first = _found(capture), len(self._taps)
        place = next(place for place in range(len(self._blocks)) if first + place not in found)
        why = (
            "holds no state between its branches: none of its modules takes, and it does not return, the state before "
            "plus what a module has returned (as in parallel branches, or compiled code)"
            if capture.runs[first + place]
            else "did not run, or did so in compiled code, which is not looked into"
        )
        return (
            f"No branches are read: {self._names[place]!r}, a {type(unwrapped(self._blocks[place])).__name__}, {why}. "
            "Leave `branches` out, or name the modules in each block that take its states, as branches=('norm1', "
            "'norm2')."
        )

    def _path(self) -> BlockPath:
        return BlockPath(self._steps(), self._effective_depth)

    def _steps(self) -> list[Step]:
        (orders, named), steps = self._table.tolist(), list[Step]()
        for block in self._blocks:
            taps = [tap for tap, one in enumerate(self._taps) if one.block is block and orders[tap]]
            taps.sort(key=orders.__getitem__)
            firsts, names = ([self._taps[tap].first for tap in ones] for ones in (taps, map(named.__getitem__, taps)))
            steps += _steps(block, firsts, names)
        return steps


def _found(capture: PathCapture) -> dict[int, list[tuple[int, int]]]:
    return capture.found if isinstance(capture, BranchCapture) else {}


def _named(model: nn.Module, block: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """The modules in a block that globs match."""
    inside = named_layers(unwrapped(block))
    matching = [[part for name, part in inside.items() if _matches_glob(name, pattern)] for pattern in patterns]
    for pattern, parts in zip(patterns, matching, strict=True):
        if not parts:
            raise ValueError(
                f"`branches` must name modules in every block, but {pattern!r} matches none in "
                f"{path_name(model, block)!r}, which has {[name for name in inside if '.' not in name]}."
            )
    return [part for parts in matching for part in parts]


def _steps(block: nn.Module, firsts: Sequence[nn.Module], named: Sequence[nn.Module]) -> list[Step]:
    """Steps of a block from each state to the next, and the last to what it returns."""
    ends = itertools.zip_longest(firsts, firsts[1:], named)
    return [Step(block, first, then, name) for first, then, name in ends]
