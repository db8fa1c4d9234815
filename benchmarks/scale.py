"""``python -m benchmarks.scale``: the tables of docs/scale.md, what a reading costs models on many GPUs, by formulas.

Bytes are those that `benchmarks.communication` counts; seconds rest on `Assumptions`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from benchmarks.tables import shown, table
from benchmarks.traffic import (
    ENERGIES,
    Reading,
    agreement_traffic,
    moments_peak,
    moments_traffic,
    samples_memory,
    samples_peak,
    samples_traffic,
)
from lightning_leaky.metrics import Recipe
from lightning_leaky.metrics.path_reader import MEMORY_LIMIT

POWERS = 96
"""Matrix-vector products, at most, by which the operator norm of K is found."""


@dataclass(frozen=True)
class Work:
    """What each process computes.

    Attributes:
        products32: FLOPs of matrix products in float32.
        products64: FLOPs of matrix products in float64.
        factorisations: FLOPs of Cholesky factors, their inverses, eigenvalues and powers.
        waits: Short steps that wait for one another: columns of an eigenvalue problem, powers of a matrix, and looks of
            the host at the sizes that other processes have sent.
    """

    products32: float
    products64: float
    factorisations: float
    waits: int


def samples_work(reading: Reading) -> Work:
    """Work of a reading from n ≤ w samples.

    One process per layer forms K = SSᵀ and multiplies A and V by the inverse factor of K, in float32. The stable rank
    adds AAᵀ in float64. The n × n matrices take a factor (n³/3), its inverse (n³), eigenvalues (4n³/3) and powers.

    Args:
        reading: Its sizes.

    Raises:
        ValueError: If there are more samples than neurons.
    """
    n, w, spectrum = reading.samples, reading.width, int(reading.with_spectrum)
    layers = math.ceil(reading.num_layers / reading.processes)
    if n > w:
        raise ValueError(f"`reading` must have no more samples than neurons, got {reading}.")
    return Work(
        products32=layers * 6 * n**2 * w,
        products64=layers * spectrum * 2 * n**2 * w,
        factorisations=layers * (4 / 3 * n**3 + 2 * POWERS * n**2 + spectrum * 4 / 3 * n**3),
        waits=POWERS + layers * spectrum * n + 3 * reading.processes,
    )


def moments_work(reading: Reading) -> Work:
    """Work of a reading from second moments.

    Each process forms Sᵀ[S, A, V] of its own rows for every layer. One process per layer finds a factor (d³/3), divides
    two matrices by it (2d²w) and takes powers. All is in float64.
    """
    rows, w, d = reading.rows, reading.width, reading.width + 1
    layers = math.ceil(reading.num_layers / reading.processes)
    return Work(
        products32=0,
        products64=reading.num_layers * 2 * rows * d * (d + 2 * w) + layers * 2 * d**2 * w,
        factorisations=layers * (d**3 / 3 + 2 * POWERS * d**2),
        waits=POWERS,
    )


@dataclass(frozen=True)
class Assumptions:
    """One GPU, its share of the network, and what it trains on. None of these was measured.

    Attributes:
        training: FLOP/s of the training, sustained, in bf16.
        products32: FLOP/s of matrix products in float32, without TF32.
        products64: FLOP/s of matrix products in float64.
        factorisations: FLOP/s of factorisations and eigenvalues, far below that of products.
        wait: Seconds of a short step that the next one waits for.
        bandwidth: Bytes/s into one GPU between nodes.
        collective: Seconds of a collective beside its bytes.
        memory: Bytes of one GPU.
        state: Bytes of weights, gradients and Adam's moments per parameter, in mixed precision.
        tokens: Tokens of each GPU in an optimizer step, in one micro-batch.
        share: The part of the training's time that readings may take.
    """

    training: float = 400e12
    products32: float = 40e12
    products64: float = 40e12
    factorisations: float = 0.5e12
    wait: float = 20e-6
    bandwidth: float = 25e9
    collective: float = 1e-3
    memory: float = 80e9
    state: float = 16.0
    tokens: float = 8192.0
    share: float = 0.01

    def step(self, parameters: int) -> float:
        """Seconds of an optimizer step: 6 FLOPs for each parameter and token."""
        return 6 * parameters * self.tokens / self.training

    def compute(self, work: Work) -> float:
        """Seconds of what a process computes."""
        return (
            work.products32 / self.products32
            + work.products64 / self.products64
            + work.factorisations / self.factorisations
            + work.waits * self.wait
        )

    def gather(self, reading: Reading) -> float:
        """Seconds to get the samples of the other processes, with the agreement of the monitor."""
        traffic = agreement_traffic(reading) + samples_traffic(reading)
        from_others = traffic.taken * (reading.processes - 1) / reading.processes
        return from_others / self.bandwidth + traffic.collectives * self.collective

    def sum(self, reading: Reading) -> float:
        """Seconds to sum moments around a ring, where each byte passes twice, with the agreement."""
        traffic = moments_traffic(reading)
        passed = 2 * traffic.given * (reading.processes - 1) / reading.processes
        return passed / self.bandwidth + (traffic.collectives + 1) * self.collective

    def every(self, seconds: float, parameters: int) -> int:
        """Least number of optimizer steps from one reading of so many seconds to the next."""
        return math.ceil(seconds / (self.share * self.step(parameters)))


@dataclass(frozen=True)
class Model:
    """A transformer of about 12 L w² parameters."""

    num_layers: int
    width: int

    @property
    def parameters(self) -> int:
        """12 L w²."""
        return 12 * self.num_layers * self.width**2

    @property
    def name(self) -> str:
        """The number of parameters, in two digits."""
        return f"{self.parameters:.1e}".replace("e+0", "e").replace("e+", "e")

    def reading(self, processes: int, rows: int) -> Reading:
        """A reading of so many rows of each process."""
        return Reading(processes, rows, self.num_layers, self.width)

    def room(self, processes: int) -> int:
        """Rows of each process that fit in what samples may take; one always does."""
        return max(1, MEMORY_LIMIT // samples_memory(self.reading(processes, 1)))

    def usual_reading(self, processes: int) -> Reading:
        """A reading of `SAMPLES`, or of as many as there is room for."""
        return self.reading(processes, min(self.room(processes), SAMPLES // processes))


MODELS = (Model(20, 2048), Model(48, 4096), Model(80, 10240))
PROCESSES = (8, 64, 512, 1024)
SAMPLES = 1024
"""Samples n of the readings that are costed, where as many fit: one row of each of 1024 processes."""


def up(value: float) -> str:
    """Three digits, rounded against us."""
    return shown(value, digits=3)


def gib(size: float) -> str:
    """Bytes in GiB."""
    return up(size / 2**30)


def models_table(models: Sequence[Model], assumed: Assumptions) -> str:
    """The models: their sizes, and what hooks keep of a micro-batch in bf16."""
    header = ["parameters", "L", "w", "state, GiB", "step, s", "moments, GiB", "held by hooks, GiB"]
    rows: list[list[object]] = []
    for model in models:
        L, w = model.num_layers, model.width
        sizes = [Recipe(ENERGIES).state_bytes(L, w), 2 * assumed.tokens * w * (L + 1)]
        state, step = gib(assumed.state * model.parameters), up(assumed.step(model.parameters))
        rows.append([model.name, L, w, state, step, *map(gib, sizes)])
    return table(header, rows)


def rows_table(models: Sequence[Model], assumed: Assumptions) -> str:
    """What every process would gather if all rows were read, and how many rows of each are."""
    rows: list[list[object]] = []
    for model in models:
        all_rows = [gib(samples_memory(model.reading(P, int(assumed.tokens)))) for P in PROCESSES]
        rows.append([model.name, "all rows, GiB", *all_rows])
        rows.append([model.name, "rows read of each process", *map(model.room, PROCESSES)])
    return table(["parameters", "", *(f"{P} GPUs" for P in PROCESSES)], rows)


def readings_table(models: Sequence[Model]) -> str:
    """Bytes moved, bytes of memory and FLOPs of one reading."""
    header = ["parameters", "GPUs", "n", "given, MiB", "taken, GiB", "held, GiB"]
    rows: list[list[object]] = []
    for model in models:
        for processes in PROCESSES:
            reading = model.usual_reading(processes)
            traffic, work = agreement_traffic(reading) + samples_traffic(reading), samples_work(reading)
            moved = [up(traffic.given / 2**20), gib(traffic.taken)]
            memory = [gib(samples_memory(reading)), gib(samples_peak(reading))]
            flops = [up(each / 1e12) for each in (work.products32, work.products64, work.factorisations)]
            rows.append([model.name, processes, reading.samples, *moved, *memory, *flops])
    return table([*header, "peak, GiB", "TFLOP, float32", "float64", "factorisations"], rows)


def fits(model: Model, reading: Reading, assumed: Assumptions) -> str:
    """Which of the two ways to train leaves room for a reading on each GPU."""
    state, peak = assumed.state * model.parameters, samples_peak(reading)
    if state + peak <= assumed.memory:
        return "both"
    return "sharded" if state / reading.processes + peak <= assumed.memory else "neither"


def rhythm_table(models: Sequence[Model], assumed: Assumptions) -> str:
    """Seconds of one reading, and the least number of steps between two of them in some cases."""
    header = ["parameters", "GPUs", "n", "fits", "gather, s", "compute, s", "every … steps", "at twice the bandwidth"]
    fast = replace(assumed, bandwidth=2 * assumed.bandwidth)
    rows: list[list[object]] = []
    for model in models:
        for processes in PROCESSES:
            reading = model.usual_reading(processes)
            gather, compute = assumed.gather(reading), assumed.compute(samples_work(reading))
            seconds = (
                gather + compute,
                fast.gather(reading) + compute,
                gather + assumed.compute(samples_work(replace(reading, with_spectrum=True))),
            )
            every = [assumed.every(each, model.parameters) for each in seconds]
            rows.append(
                [model.name, processes, reading.samples, fits(model, reading, assumed), up(gather), up(compute), *every]
            )
    return table([*header, "with stable rank"], rows)


def moments_table(models: Sequence[Model], assumed: Assumptions) -> str:
    """What the form "moments" takes on the most processes; "auto" does not choose it for models of this size."""
    header = ["parameters", "summed, GiB", "peak, GiB", "TFLOP", "sum, s", "compute, s", "every … steps"]
    rows: list[list[object]] = []
    for model in models:
        reading = model.reading(max(PROCESSES), int(assumed.tokens))
        work = moments_work(reading)
        seconds = assumed.sum(reading), assumed.compute(work)
        sizes = [
            gib(moments_traffic(reading).given),
            gib(moments_peak(reading)),
            up((work.products64 + work.factorisations) / 1e12),
        ]
        rows.append([model.name, *sizes, *map(up, seconds), assumed.every(sum(seconds), model.parameters)])
    return table(header, rows)


def tables(models: Sequence[Model], assumed: Assumptions) -> dict[str, str]:
    """All of them, by their titles."""
    return {
        "Models": models_table(models, assumed),
        "Rows": rows_table(models, assumed),
        "One reading": readings_table(models),
        "Rhythm": rhythm_table(models, assumed),
        "Second moments": moments_table(models, assumed),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser("python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS, type=_model, metavar="LxW", help="L layers of width w")
    names = ", ".join(asdict(Assumptions()))
    parser.add_argument("--assume", nargs="+", default=(), metavar="NAME=VALUE", help=f"of {names}")
    options = parser.parse_args(arguments)
    assumed = replace(Assumptions(), **dict(map(_assumption, options.assume)))
    found = tables(options.models, assumed)
    print("\n\n".join(f"## {title}\n\n{lines}" for title, lines in found.items()))


def _model(text: str) -> Model:
    num_layers, width = map(int, text.split("x"))
    return Model(num_layers, width)


def _assumption(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    if name not in asdict(Assumptions()):
        raise SystemExit(f"{name}: not one of {', '.join(asdict(Assumptions()))}")
    return name, float(value)


if __name__ == "__main__":
    main()
