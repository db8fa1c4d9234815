"""Which score tells which blocks can go? Everything that is measured of one network."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from examples.layers.combined import choice_table
from examples.layers.figures import all_figures
from examples.layers.kinds import KINDS
from examples.layers.networks import Network
from examples.layers.removal import REMOVALS, TUNED, judged, own_copy, share_generated, without
from examples.layers.scores import SCORES, Batches
from examples.layers.tables import Tables, all_tables
from examples.layers.tasks import Task, task_of
from examples.layers.training import adapted, train
from examples.paper.study import RUNS, Rows, Study, layer_rows
from lightning_leaky import ablate_path

_SHARES = (0.25, 0.5, 0.75)
_EARLY = ("block influence", "relative distance", "relative speed, linear, 0.1", "kinetic energy, relu", "first order")
_TUNING, _SMALL = 0.05, 0.3


@dataclass(frozen=True)
class Setting:
    """One network.

    Args:
        kind: Name of its kind.
        seed: Draws its data, weights and batches.
        steps: ``"equal"``, or ``"adaptive"`` for step-sizes that adapt without a leak.
        shrink: Divides its blocks, its batches and their number, and twice its steps of training; 1 for the study.
    """

    kind: str
    seed: int
    steps: str = "equal"
    shrink: int = 1


def settings(reduced: bool) -> list[Setting]:
    """All networks, seed by seed."""
    if reduced:
        return [Setting(kind, 0, shrink=4) for kind in KINDS]
    equal = [Setting(kind, seed) for seed in range(5) for kind in KINDS]
    return equal + [Setting(kind, seed, "adaptive") for seed in range(5) for kind in ("gpt 8", "vit", "mlp")]


def measure(setting: Setting) -> dict[str, Rows]:
    """Train a network, score its blocks, leave them out and take them out."""
    started = time.perf_counter()
    torch.manual_seed(setting.seed)
    kind, task = KINDS[setting.kind], task_of(KINDS[setting.kind].task, setting.seed)
    network = kind.network(task, kind.num_blocks // setting.shrink)
    if setting.steps == "adaptive":
        network = adapted(network)
    num_steps, size = kind.num_steps // setting.shrink**2, kind.batch_size // setting.shrink
    copies = train(network, task, num_steps, size, setting.seed, _SHARES)
    trained = time.perf_counter()
    scoring = batches_of_size(task.score, size, max(1, 4 // setting.shrink))
    testing = batches_of_size(task.test, size, (4 if task.is_text else 15) // setting.shrink)
    is_equal = setting.steps == "equal"
    tables = {
        "blocks": block_rows(network, scoring, testing, task),
        "early": [row for share, early in copies.items() for row in _early(share, early, scoring, testing, task)],
        "removals": _removals(network, scoring, testing, task, num_steps, setting) if is_equal else [],
    }
    whole = judged(network, testing, task) | _generated(network, testing, task)
    seconds = {"training": trained - started, "scoring": time.perf_counter() - trained}
    return tables | {RUNS: [{**whole, **seconds, "num_blocks": len(network.blocks)}]}


def batches_of_size(data: tuple[torch.Tensor, torch.Tensor], size: int, most: int) -> Batches:
    """The first whole batches of a split, so many at most."""
    pairs = list(zip(*(torch.split(part, size) for part in data), strict=True))
    return [(inputs, targets) for inputs, targets in pairs if len(inputs) == size][:most]


def block_rows(network: Network, scoring: Batches, testing: Batches, task: Task) -> Rows:
    """One row a block: what leaving it out costs on both sets, and every score."""
    columns = {name: score(network, scoring, task) for name, score in SCORES.items()}
    one = {f"{name}, one batch": SCORES[name](network, scoring[:1], task) for name in _EARLY}
    costs = {
        "increase": ablate_path(network, testing, task.loss, "blocks.*").increases,
        "ablate_path": ablate_path(network, scoring, task.loss, "blocks.*").increases,
    }
    return layer_rows(costs | columns | one)


def _early(share: float, network: Network, scoring: Batches, testing: Batches, task: Task) -> Rows:
    """The scores that need no training to its end, before it ends."""
    columns = {name: SCORES[name](network, scoring, task) for name in _EARLY}
    columns["increase"] = ablate_path(network, testing, task.loss, "blocks.*").increases
    return [{"share": share, **row} for row in layer_rows(columns)]


def _removals(
    network: Network, scoring: Batches, testing: Batches, task: Task, num_steps: int, setting: Setting
) -> Rows:
    """One row a way and a number of blocks: cost and metric; at three depths after a little training too."""
    count = max(1, len(network.blocks) // 2)
    depths = {max(1, round(share * count)) for share in (0.5, 0.75, 1.0)}
    rows: Rows = []
    for name, removal in REMOVALS.items():
        for number, removed in enumerate(removal(network, scoring, task, count), start=1):
            row: dict[str, Any] = {"way": name, "removed": number, "which": "-".join(map(str, sorted(removed)))}
            row |= judged(without(network, removed), testing, task)
            if number in depths and name in TUNED:
                row |= _generated(without(network, removed), testing, task)
                row |= _tuned(network, removed, testing, task, num_steps, setting)
            rows.append(row)
    return rows


def _tuned(
    network: Network, removed: Sequence[int], testing: Batches, task: Task, num_steps: int, setting: Setting
) -> dict[str, float]:
    smaller = own_copy(network, removed)
    size = KINDS[setting.kind].batch_size // setting.shrink
    train(smaller, task, max(1, round(_TUNING * num_steps)), size, setting.seed + 1000, rate=_SMALL)
    return {f"tuned {name}": value for name, value in judged(smaller, testing, task).items()}


def _generated(network: Network, batches: Batches, task: Task) -> dict[str, float]:
    return {"generated": share_generated(network, batches)} if task.is_text else {}


def _tables(tables: Tables) -> dict[str, pd.DataFrame]:
    return {**all_tables(tables), "choice": choice_table(tables)}


STUDY = Study("which", settings, measure, all_figures, _tables)
