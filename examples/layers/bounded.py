"""``python -m examples.layers.bounded``: how far readings of some rows of a data set are from those of all.

Each kind of network is trained for some hundred steps and read over some thousand samples that it was trained on, once
exactly and once for each bound. The table has the median and the greatest relative error over the layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from examples.layers.kinds import KINDS
from examples.layers.tasks import task_of
from examples.layers.training import train
from lightning_leaky import Readings, measure_path

RESULTS = Path(__file__).parent / "results" / "bounded.csv"
NUM_STEPS = 200
MOST_SAMPLES = 4096
BOUNDS = (4, 16, 32)
"""Rows in units of the width."""
QUANTITIES = ("cost_of_identity", "kinetic_energy", "block_influence")


def rows_of(name: str) -> Iterator[dict[str, Any]]:
    """Train a kind, and compare its readings."""
    kind = KINDS[name]
    task = task_of(kind.task, 0)
    torch.manual_seed(0)
    network = kind.network(task, kind.num_blocks)
    train(network, task, NUM_STEPS, kind.batch_size, 0)
    inputs = list(torch.split(task.train[0][:MOST_SAMPLES], 64))

    def read(**settings: Any) -> Readings:
        return measure_path(network, inputs, QUANTITIES, layers="blocks.*", halves=False, **settings)

    exact = read()
    for bound in BOUNDS:
        part = read(exact=False, max_rows=bound * kind.width)
        for quantity in QUANTITIES:
            error = (part[quantity] / exact[quantity] - 1).abs()
            yield {
                "kind": name,
                "width": kind.width,
                "bound": bound,
                "rows": min(part.num_samples),
                "samples": part.samples_read[0],
                "of_samples": part.samples_read[1],
                "quantity": quantity,
                "median": float(error.median()),
                "greatest": float(error.max()),
            }


def main() -> None:
    """Write the table, a kind at a time."""
    rows: list[dict[str, Any]] = []
    for name in KINDS:
        rows += rows_of(name)
        table = pd.DataFrame(rows)
        table.to_csv(RESULTS, index=False, float_format="%.4g")
        print(table[table["kind"] == name].to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
