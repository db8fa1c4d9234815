"""One reading of cost of identity and kinetic energy of all layers: its time and its accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.networks import autocast, batch_of, leaky
from benchmarks.references import Energies, Layer, by_pseudo_inverse, by_svd
from benchmarks.sizes import Settings, Size
from benchmarks.tables import Row, ratio_row
from benchmarks.timing import in_turn
from benchmarks.training import training_step
from lightning_leaky import Layout, Readings
from lightning_leaky.functional import equidistant_step_sizes
from lightning_leaky.metrics import PathReader, Recipe

QUANTITIES = Energies._fields
OF_A_STEP = {"c1": 1.0, "c2": 0.5, "c3": 0.15, "g1": 0.5, "g2": 0.5}
OF_PSEUDO_INVERSES = {"c1": 1 / 200}
LARGEST_ERROR = 1e-6

# A pseudo-inverse of more samples, or references of all layers above this many entries, would take minutes.
MOST_SAMPLES = 1024
MOST_ENTRIES = 2**20


def run(settings: Settings) -> Iterator[Row]:
    """Time of one reading against a training step and against pseudo-inverses, and its errors."""
    for size in settings.sizes:
        yield from _rows(size, settings)


def reading(path: list[Tensor], size: Size) -> Callable[[], Readings]:
    """One reading of A_0, …, A_L, as `EnergyMonitor` takes it, to be called again and again."""
    reader, step_sizes = _reader(size), equidistant_step_sizes(size.num_layers)

    def read() -> Readings:
        reader.reset()
        reader.update(path[:-1], path[1:], step_sizes, is_last=True)
        return reader.compute()

    return read


def rows_read(path: list[Tensor], size: Size) -> list[Tensor]:
    """The samples that `EnergyMonitor` reads: of those that would take more than 1 GiB, as many as fit."""
    room = _reader(size).room(path[0].dtype)
    return path if room is None else [Layout().limited(room).rows(representation) for representation in path]


def _reader(size: Size) -> PathReader:
    return PathReader([(size.width, size.num_layers)], Recipe(QUANTITIES, size.effective_depth, precision="default"))


@torch.no_grad()
def path_of(size: Size, device: torch.device) -> list[Tensor]:
    """A_0, …, A_L of a forward pass, each a tensor of its own as hooks see them."""
    with autocast(size, device):
        stacked = leaky(size, device).representations(batch_of(size, device)[0])
    return [representation.clone() for representation in stacked]


def rank_one_path(size: Size, device: torch.device) -> list[Tensor]:
    """Representations of rank one over the same samples: far fewer dimensions than neurons, where sums cancel."""
    generator = torch.Generator().manual_seed(1)
    samples = torch.randn(size.samples, 1, generator=generator)
    neurons = torch.randn(size.num_layers + 1, 1, size.width, generator=generator)
    return list(samples.to(device) * neurons.to(device))


def worst_error(path: list[Tensor], size: Size) -> float:
    """Greatest relative error of both quantities over the layers, against singular values in float64."""
    found = reading(path, size)()
    errors = [
        abs(float(found[name][index]) / float(expected) - 1)
        for index in _checked_layers(size)
        for name, expected in by_svd(_layer(path, size, index).cpu())._asdict().items()
    ]
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def _rows(size: Size, settings: Settings) -> list[Row]:
    path = rows_read(path_of(size, settings.device), size)
    sides: dict[str, Callable[[], object]] = {
        "reading": reading(path, size),
        "training step": training_step(leaky(size, settings.device), size, settings.device),
    }
    if size.samples <= MOST_SAMPLES:
        # One layer of the L, which all take as long: all of them would take most of the run.
        sides["pseudo-inverse"] = lambda: by_pseudo_inverse(_layer(path, size, 0))
    seconds = in_turn(sides, settings)
    name, step, inverses = "one reading", "one training step", "N × N pseudo-inverse of each layer, float64"
    paths = {"error": path, "error at rank one": rows_read(rank_one_path(size, settings.device), size)}
    errors = {name: worst_error(each, size) for name, each in paths.items()}
    bounds, thinned = dict.fromkeys(errors, LARGEST_ERROR), len(path[0]) < size.samples
    measures = errors | ({"samples read": float(len(path[0]))} if thinned else {})
    goal = OF_A_STEP.get(size.name)
    rows = [ratio_row(name, size.name, step, seconds["reading"], seconds["training step"], goal, measures, bounds)]
    if "pseudo-inverse" not in seconds:
        return [*rows, Row(name, size.name, inverses, note="takes too long")]
    of_all_layers = [size.num_layers * each for each in seconds["pseudo-inverse"]]
    goal = OF_PSEUDO_INVERSES.get(size.name)
    return [*rows, ratio_row(name, size.name, inverses, seconds["reading"], of_all_layers, goal)]


def _layer(path: list[Tensor], size: Size, index: int) -> Layer:
    return Layer(path[index], path[index + 1], 1 / size.num_layers, size.effective_depth)


def _checked_layers(size: Size) -> list[int]:
    """All layers, or the first, middle and last of a large path."""
    if size.samples * size.width <= MOST_ENTRIES:
        return list(range(size.num_layers))
    return [0, size.num_layers // 2, size.num_layers - 1]
