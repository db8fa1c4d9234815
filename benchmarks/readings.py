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
from lightning_leaky.metrics.recipe import Precision

QUANTITIES = Energies._fields
OF_A_STEP = {"c1": 1.25, "c2": 0.8, "c3": 0.2, "g1": 0.5, "g2": 0.5}
OF_PSEUDO_INVERSES = {"c1": 1 / 200}
LARGEST_ERRORS: dict[Precision, float] = {"default": 5e-5, "high": 1e-6}

# A pseudo-inverse of more samples, or references of all layers above this many entries, would take minutes.
MOST_SAMPLES = 1024
MOST_ENTRIES = 2**20


def run(settings: Settings) -> Iterator[Row]:
    """Time of one reading against a training step and against pseudo-inverses, and its errors."""
    for size in settings.sizes:
        yield from _rows(size, settings)


def reading(path: list[Tensor], size: Size, precision: Precision = "default") -> Callable[[], Readings]:
    """One reading of A_0, …, A_L, as `EnergyMonitor` takes it, to be called again and again."""
    reader, step_sizes = _reader(size, precision), equidistant_step_sizes(size.num_layers)

    def read() -> Readings:
        reader.reset()
        reader.update(path[:-1], path[1:], step_sizes, is_last=True)
        return reader.compute()

    return read


def rows_read(path: list[Tensor], size: Size) -> list[Tensor]:
    """The samples that `EnergyMonitor` reads: of those that would take more than 1 GiB, as many as fit."""
    room = _reader(size).room(path[0].dtype)
    return path if room is None else [Layout().limited(room).rows(representation) for representation in path]


def _reader(size: Size, precision: Precision = "default") -> PathReader:
    return PathReader([(size.width, size.num_layers)], Recipe(QUANTITIES, size.effective_depth, precision=precision))


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


def worst_errors(path: list[Tensor], size: Size) -> dict[Precision, float]:
    """Greatest relative error of both quantities over the layers, against singular values in float64, by precision."""
    references = {index: by_svd(_layer(path, size, index).cpu())._asdict() for index in _checked_layers(size)}
    worst: dict[Precision, float] = {}
    for precision in LARGEST_ERRORS:
        found = reading(path, size, precision)()
        errors = [
            abs(float(found[name][index]) / float(expected) - 1)
            for index, energies in references.items()
            for name, expected in energies.items()
        ]
        worst[precision] = math.nan if any(map(math.isnan, errors)) else max(errors)
    return worst


def _errors(path: list[Tensor], size: Size, device: torch.device) -> tuple[dict[str, float], dict[str, float]]:
    """Errors on a forward pass and at rank one, in each precision, and their bounds, by columns."""
    paths = {"error": path, "error at rank one": rows_read(rank_one_path(size, device), size)}
    endings: dict[Precision, str] = {"default": "", "high": ', precision="high"'}
    errors, bounds = dict[str, float](), dict[str, float]()
    for name, each in paths.items():
        for precision, error in worst_errors(each, size).items():
            column = f"{name}{endings[precision]}"
            errors[column], bounds[column] = error, LARGEST_ERRORS[precision]
    return errors, bounds


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
    errors, bounds = _errors(path, size, settings.device)
    thinned = len(path[0]) < size.samples
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
