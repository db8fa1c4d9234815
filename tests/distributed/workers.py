"""What the processes of these tests run: metrics and the hook on shards of one problem, and a count of collectives."""

from __future__ import annotations

import inspect
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_leaky import LeakyResNet, StepSizeHook, metrics
from lightning_leaky.functional import RULES
from lightning_leaky.metrics import QUANTITIES, PathReader, Recipe
from lightning_leaky.metrics.layer_store import Form
from lightning_leaky.paths.block_path import path_of
from lightning_leaky.reading.observer import PathObserver
from lightning_leaky.reading.passed_batch import Batch
from lightning_leaky.reading.settings import ReadingSettings
from tests.distributed.collectives import counted_collectives
from tests.metrics.own_records import OWN

NUM_LAYERS, WIDTH, NUM_SAMPLES, DEPTH = 3, 4, 17, 2.0
METRICS = ("CostOfIdentity", "Hamiltonian", "KineticEnergy", "StableRank")
EVERYTHING = (*QUANTITIES, *OWN)
# Rows of each process, by the number of processes: uneven, and with an empty one.
SHARDS = {1: [17], 2: [12, 5], 3: [11, 0, 6], 4: [1, 9, 0, 7]}


def shard(rank: int, world_size: int) -> slice:
    """Rows of one process."""
    start = sum(SHARDS[world_size][:rank])
    return slice(start, start + SHARDS[world_size][rank])


def given(rank: int, world_size: int, num_layers: int = NUM_LAYERS, width: int = WIDTH) -> dict[str, Tensor]:
    """What metrics take of the shard of one process, by the names of their arguments."""
    generator = torch.Generator().manual_seed(0)
    path = torch.randn(num_layers + 1, NUM_SAMPLES, width, dtype=torch.float64, generator=generator)
    momenta = torch.randn(num_layers, NUM_SAMPLES, width, dtype=torch.float64, generator=generator)
    rows = shard(rank, world_size)
    return {
        "representations": path[:-1, rows],
        "previous": path[:-1, rows],
        "current": path[1:, rows],
        "step_sizes": torch.full((num_layers,), 1 / num_layers, dtype=torch.float64),
        # The cost is a mean over the samples of a process: its gradients are larger where the samples are fewer.
        "momenta": momenta[:, rows] * NUM_SAMPLES / max(1, SHARDS[world_size][rank]),
    }


def metric_value(name: str, rank: int = 0, world_size: int = 1) -> Tensor:
    """What a metric computes from the shards of all processes."""
    cls = getattr(metrics, name)
    depth = {"effective_depth": DEPTH} if "effective_depth" in inspect.signature(cls).parameters else {}
    metric, arguments = cls(NUM_LAYERS, WIDTH, **depth), given(rank, world_size)
    wanted = inspect.signature(cls.update).parameters
    metric.update(**{key: value for key, value in arguments.items() if key in wanted})
    return metric.compute()


def filled(rank: int, world_size: int, num_layers: int, width: int, form: Form) -> PathReader:
    """A reader of every quantity, and of some of one's own, that has seen the shard of one process."""
    reader = PathReader([(width, num_layers)], Recipe(EVERYTHING, DEPTH), form)
    arguments = given(rank, world_size, num_layers, width)
    del arguments["representations"]
    reader.update(**arguments)
    return reader


def adapted_step_sizes(rule: str, rank: int = 0, world_size: int = 1) -> Tensor:
    """Step-sizes of a network after three adaptations to the shards of all processes."""
    torch.manual_seed(0)
    network = LeakyResNet(WIDTH, 2, width=6, num_layers=NUM_LAYERS, effective_depth=DEPTH).double()
    inputs = torch.randn(NUM_SAMPLES, WIDTH, dtype=torch.float64)[shard(rank, world_size)]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    hook = StepSizeHook(network, every_n_steps=1, damping=0.5, rule=rule).attach(optimizer)
    for _ in range(3):
        if len(inputs):  # else this process has no batch at all
            network(inputs).sum().backward()
        optimizer.step()
    return hook.state_dict()["step_sizes"]


def step_sizes_of_one_that_complains(rank: int, world_size: int) -> Tensor:
    """Step-sizes where, on the first process only, layers run inside a transform, so that they cannot be compared."""
    torch.manual_seed(0)
    network = LeakyResNet(WIDTH, 2, width=6, num_layers=NUM_LAYERS, effective_depth=DEPTH).double()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    StepSizeHook(network, every_n_steps=1, damping=0.5).attach(optimizer)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = network if rank else torch.func.vmap(network)
        run(torch.ones(1, WIDTH, dtype=torch.float64))
        optimizer.step()
    return network.step_sizes


def observed(rank: int = 0, world_size: int = 1, form: Form = "moments") -> dict[str, Tensor]:
    """Every quantity of a network, read by hooks from the shards; a process with an empty shard runs no batch."""
    torch.manual_seed(0)
    network = LeakyResNet(WIDTH, 2, width=6, num_layers=NUM_LAYERS, effective_depth=DEPTH).double()
    inputs = torch.randn(NUM_SAMPLES, WIDTH, dtype=torch.float64)[shard(rank, world_size)]
    settings = ReadingSettings(EVERYTHING, weight_decay=0.1, form=form)
    observer = PathObserver(network, network, settings).attach()
    if len(inputs):
        observer.arm()
        network(inputs).square().sum(-1).mean().backward()
        observer.drain()
    return observer.compute().quantities


def thinned(rank: int = 0, world_size: int = 1) -> tuple[Tensor, tuple[int, ...], tuple[int, ...], int]:
    """A part of a data set whose k-th sample is on process k mod W; what was read, how much, and its factorisations."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(Block(WIDTH) for _ in range(5))).double()
    inputs = torch.randn(300, WIDTH, dtype=torch.float64)[rank::world_size]
    settings = ReadingSettings(["cost_of_identity", "kinetic_energy", "block_influence", "stable_rank"], max_rows=40)
    observer = PathObserver(model, path_of(model, Block), settings).attach()
    for batch in inputs.split(7 + 4 * world_size):
        if observer.arm(Batch(batch)):
            model(batch)
            observer.drain()
    calls = mock.Mock(wraps=torch.linalg.cholesky_ex)
    with mock.patch("torch.linalg.cholesky_ex", calls):
        readings = observer.compute()
    factorised = sum(len(call.args[0]) for call in calls.mock_calls)
    return torch.stack(list(readings.quantities.values())), readings.num_samples, readings.samples_read, factorised


class Block(torch.nn.Module):
    """A residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return h + relu(Wh)."""
        return hidden + torch.relu(self.linear(hidden))


def found(rank: int = 0, world_size: int = 1) -> dict[str, Tensor]:
    """Cost of identity of blocks in two widths that nobody has named; an empty shard has nothing to find them by."""
    torch.manual_seed(0)
    stages = [torch.nn.Sequential(*(Block(width) for _ in range(2))) for width in (WIDTH, 2 * WIDTH)]
    model = torch.nn.Sequential(stages[0], torch.nn.Linear(WIDTH, 2 * WIDTH), stages[1]).double()
    inputs = torch.randn(NUM_SAMPLES, WIDTH, dtype=torch.float64)[shard(rank, world_size)]
    readings = {}
    for name, layers in (("found", None), ("segments", Block)):
        path = path_of(model, layers)
        observer = PathObserver(model, path, ReadingSettings(["cost_of_identity", "kinetic_energy"])).attach()
        if len(inputs):
            observer.arm()
            model(inputs)
            observer.drain()
        read = observer.compute()
        readings[name] = torch.cat([*read.quantities.values(), read.step_sizes, torch.tensor(read.segments).double()])
        observer.detach()
    return readings


class Parallel(torch.nn.Module):
    """Two stacks, of which a process may run the second block by block, apart from one another."""

    def __init__(self, is_apart: bool) -> None:
        super().__init__()
        self.blocks = torch.nn.Sequential(*(Block(WIDTH) for _ in range(3)))
        self.others = torch.nn.Sequential(*(Block(WIDTH) for _ in range(4)))
        self.is_apart = is_apart

    def forward(self, hidden: Tensor) -> None:
        """Run both."""
        self.blocks(hidden)
        if self.is_apart:
            for block in self.others:
                block(hidden)
        else:
            self.others(hidden)


def found_otherwise(rank: int, world_size: int) -> dict[str, Tensor]:
    """Readings where each process has found another run; the first one's is taken."""
    torch.manual_seed(0)
    model = Parallel(is_apart=rank == 0).double()
    observer = PathObserver(model, None, ReadingSettings(["cost_of_identity"])).attach()
    for _ in range(2):
        observer.reset()
        observer.arm()
        model(torch.ones(5 + rank, WIDTH, dtype=torch.float64))
        observer.drain()
        read = observer.compute()
    observer.detach()
    return {"otherwise": read["cost_of_identity"], "names": read.names}


FORMS: tuple[Form, ...] = ("moments", "samples", "auto")
AUTO_WIDTHS = (4, 16, 24, 64)
"""One process or all of them have more samples than neurons, or none."""


def automatic(rank: int = 0, world_size: int = 1, form: Form = "auto") -> dict[int, dict[str, Tensor]]:
    """Every quantity of the shards, by width."""
    readings = {}
    for width in AUTO_WIDTHS:
        weights = torch.ones(NUM_LAYERS, width, width + 1, dtype=torch.float64)
        reader = filled(rank, world_size, NUM_LAYERS, width, form)
        readings[width] = reader.compute(weights=weights).quantities
    return readings


def collectives_of_a_reading(rank: int, world_size: int, num_layers: int, form: Form) -> int:
    """How many collectives one reading of every quantity takes."""
    reader = filled(rank, world_size, num_layers, WIDTH, form)
    with counted_collectives() as calls:
        reader.compute()
    return len(calls)


def work(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """Run everything in one of several processes."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    results: dict[str, Any] = {name: metric_value(name, rank, size) for name in METRICS}
    results["step_sizes"] = {rule: adapted_step_sizes(rule, rank, size) for rule in RULES}
    results["complaining"] = step_sizes_of_one_that_complains(rank, size)
    results["observed"] = observed(rank, size)
    results["samples"] = observed(rank, size, "samples")
    results["automatic"] = automatic(rank, size)
    results["thinned"] = thinned(rank, size)
    results |= found(rank, size) | found_otherwise(rank, size)
    results["collectives"] = {
        form: [collectives_of_a_reading(rank, size, layers, form) for layers in (2, 12)] for form in FORMS
    }
    dist.destroy_process_group()
    return results
