"""Compiled networks: whether new step-sizes compile them again, and what a training step takes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import torch
import torch._dynamo.utils

from benchmarks.networks import batch_of, leaky
from benchmarks.sizes import SIZES, Settings, Size
from benchmarks.tables import Row, ratio_row
from benchmarks.timing import in_turn
from benchmarks.training import training_step
from lightning_leaky.functional import irregular_step_sizes

UNEVENNESSES = (0.2, 0.5, 0.9)


def run(settings: Settings) -> Iterator[Row]:
    """Graphs that torch.compile adds, and training steps in turn; a quick run leaves out the code generator."""
    yield _recompilations(settings)
    if not settings.quick and any(map(shutil.which, ("c++", "g++", "clang++"))):
        yield from (_step(size, settings) for size in settings.sizes)


def _step(size: Size, settings: Settings) -> Row:
    networks = {"ours": leaky(size, settings.device), "compiled": leaky(size, settings.device)}
    networks["compiled"].compile()
    steps = {name: training_step(network, size, settings.device) for name, network in networks.items()}
    seconds = in_turn(steps, settings)
    name = "training step, default Adam, compiled"
    return ratio_row(name, size.name, "ours", seconds["compiled"], seconds["ours"])


def _recompilations(settings: Settings) -> Row:
    """Graphs that torch.compile adds for new step-sizes, in training and under no_grad; any fails the run."""
    size, backend = SIZES["c1"], "eager" if settings.quick else "inductor"
    torch._dynamo.reset()
    network = leaky(size, settings.device)
    inputs, _ = batch_of(size, settings.device)
    compiled = torch.compile(network, backend=backend)

    def passes() -> None:
        compiled(inputs).sum().backward()
        with torch.no_grad():
            compiled(inputs)

    passes()
    before = _graphs()
    for unevenness in UNEVENNESSES:
        network.set_step_sizes(irregular_step_sizes(size.num_layers, unevenness))
        passes()
    added = float(_graphs() - before)
    measures = {"graphs before": float(before), "recompilations": added}
    name = f"recompilations by new step-sizes, backend {backend}"
    return Row(name, size.name, value=added, goal=0.0, measures=measures, bounds={"recompilations": 0.0})


def _graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
