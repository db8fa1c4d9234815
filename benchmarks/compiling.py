"""Whether a compiled network is compiled again when its step-sizes change."""

from __future__ import annotations

import torch
import torch._dynamo.utils

from benchmarks.networks import batch_of, leaky
from benchmarks.sizes import SIZES, Settings
from benchmarks.tables import Row
from lightning_leaky.functional import irregular_step_sizes

UNEVENNESSES = (0.2, 0.5, 0.9)


def run(settings: Settings) -> list[Row]:
    """Graphs that torch.compile adds for new step-sizes, in training and under no_grad; any fails the run.

    A quick run traces the network and leaves out the code generator, which has no say in this.
    """
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
    return [Row(name, size.name, value=added, goal=0.0, measures=measures, bounds={"recompilations": 0.0})]


def _graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
