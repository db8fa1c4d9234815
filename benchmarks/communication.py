"""What a reading costs many processes: formulas, their tables, and a simulation that counts what is exchanged.

``python -m benchmarks.communication`` starts gloo processes on this machine, counts the bytes that each of them hands
to collectives and gets from them during `compute()`, and fails where the formulas say another number. With ``--table``
it prints the tables of docs/scale.md instead.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import ROUND_CEILING, Context
from pathlib import Path
from statistics import linear_regression
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.environment import environment
from lightning_leaky.block_path import path_of
from lightning_leaky.functional import equidistant_step_sizes
from lightning_leaky.metrics.path_reader import PathReader, moments_in_bytes
from lightning_leaky.metrics.segments import MEMORY_LIMIT, Form, SegmentReaders
from lightning_leaky.observer import PathObserver

ENERGIES = ("cost_of_identity", "kinetic_energy")
DEFAULTS = (*ENERGIES, "stable_rank")
MOMENTA = ("hamiltonian", "momentum_norm")
GIB = 2**30

# What is exchanged.


@dataclass(frozen=True)
class Reading:
    """A reading of a path in one segment.

    Attributes:
        processes: P.
        rows: N, the most of any process.
        num_layers: L.
        width: w.
        with_momenta: Whether momenta are read, beside the quantities that are read by default.
    """

    processes: int
    rows: int
    num_layers: int
    width: int
    with_momenta: bool = False

    @property
    def samples(self) -> int:
        """Samples n = P N of all processes."""
        return self.processes * self.rows

    @property
    def states(self) -> int:
        """How much is kept of each sample and layer: A_{l−1}, A_l and, for momenta, B_l."""
        return 3 if self.with_momenta else 2

    @property
    def quantities(self) -> tuple[str, ...]:
        """The quantities that are read."""
        return DEFAULTS + (MOMENTA if self.with_momenta else ())


@dataclass(frozen=True)
class Traffic:
    """Collectives that a process joins, and bytes that it hands to them and gets from them, its own among these."""

    collectives: int = 0
    given: int = 0
    taken: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.collectives + other.collectives, self.given + other.given, self.taken + other.taken)


def gathered(processes: int, given: int) -> Traffic:
    """Traffic of one all_gather."""
    return Traffic(1, given, processes * given)


def summed(given: int) -> Traffic:
    """Traffic of one all_reduce."""
    return Traffic(1, given, given)


def samples_traffic(reading: Reading) -> Traffic:
    """Form "samples": for each state a barrier, its three sizes as int64, and N × L × w numbers in float32.

    A process with fewer rows than others pads its own.
    """
    barrier, sizes = Traffic(1), gathered(reading.processes, 3 * 8)
    state = gathered(reading.processes, 4 * reading.rows * reading.num_layers * reading.width)
    return sum([barrier, sizes, state] * reading.states, Traffic())


def moments_traffic(reading: Reading) -> Traffic:
    """Form "moments": one sum a state, in float64.

    Of the energies Sᵀ[S, A, V] and the four inner products of (A, V), of the stable rank AᵀA, of the momenta SᵀB,
    tr(BᵀA), ‖B‖² and the number of samples.
    """
    w, d = reading.width, reading.width + 1
    numbers = [d * (d + 2 * w), 4, w * w] + ([d * w, 1, 1, 1] if reading.with_momenta else [])
    return sum((summed(8 * reading.num_layers * number) for number in numbers), Traffic())


def auto_traffic(reading: Reading) -> Traffic:
    """Form "auto" where moments fit: two int64 (whether a process has turned to sums, its rows), and either form."""
    form = samples_traffic if reading.samples <= reading.width else moments_traffic
    return summed(2 * 8) + form(reading)


FORMS: dict[Form, Callable[[Reading], Traffic]] = {
    "samples": samples_traffic,
    "moments": moments_traffic,
    "auto": auto_traffic,
}


def agreement_traffic(reading: Reading) -> Traffic:
    """What `EnergyMonitor` adds: a flag, and for each layer its segment, width and bytes of an entry, as int64."""
    return gathered(reading.processes, 8 * (1 + 3 * reading.num_layers))


# What is kept.


def samples_memory(reading: Reading) -> int:
    """Bytes of the samples of all processes, which each of them holds while it computes."""
    return 4 * reading.states * reading.samples * reading.num_layers * reading.width


def samples_peak(reading: Reading) -> int:
    """Bytes at the peak: for a moment the gathered pieces and what they are joined to are both there."""
    return 2 * samples_memory(reading)


def moments_peak(reading: Reading) -> int:
    """Bytes at the peak: the moments, and those of the energies three times more while they are summed."""
    sizes = reading.num_layers, reading.width
    return moments_in_bytes(*sizes, reading.quantities) + 3 * moments_in_bytes(*sizes, ENERGIES)


# What is computed, without momenta.

POWERS = 96
"""Matrix-vector products, at most, by which the operator norm of K is found."""


@dataclass(frozen=True)
class Work:
    """What each process computes.

    Attributes:
        products32: FLOPs of matrix products in float32.
        products64: FLOPs of matrix products in float64.
        factorisations: FLOPs of Cholesky factors, their inverses, eigenvalues and powers, in float64.
        waits: Short steps that wait for one another: columns of an eigenvalue problem, powers of a matrix, and looks of
            the host at the sizes that other processes have sent.
    """

    products32: float
    products64: float
    factorisations: float
    waits: int


def samples_work(reading: Reading, with_spectrum: bool = True) -> Work:
    """Work of a reading from n ≤ w samples.

    Per layer: K = SSᵀ and, for the stable rank, AAᵀ in float64; the inverse factor of K times A and V in float32; the
    factor (n³/3), its inverse (n³), eigenvalues (4n³/3) and powers of n × n matrices in float64.

    Args:
        reading: Its sizes.
        with_spectrum: Whether the stable rank is read.

    Raises:
        ValueError: If there are more samples than neurons.
    """
    n, w, layers, spectrum = reading.samples, reading.width, reading.num_layers, int(with_spectrum)
    if n > w:
        raise ValueError(f"`reading` must have no more samples than neurons, got {reading}.")
    return Work(
        products32=layers * 4 * n**2 * w,
        products64=layers * (2 * n**2 * (w + 1) + spectrum * 2 * n**2 * w),
        factorisations=layers * (4 / 3 * n**3 + 2 * POWERS * n**2 + spectrum * 4 / 3 * n**3),
        waits=layers * (POWERS + spectrum * n) + reading.states * 3 * reading.processes,
    )


def moments_work(reading: Reading) -> Work:
    """Work of a reading from second moments.

    Per layer: Sᵀ[S, A, V] and AᵀA of the own rows, a factor (d³/3) and its quotients of two matrices (2d²w),
    eigenvalues (4w³/3) and powers, all in float64.
    """
    rows, w, d, layers = reading.rows, reading.width, reading.width + 1, reading.num_layers
    return Work(
        products32=0,
        products64=layers * (2 * rows * d * (d + 2 * w) + 2 * rows * w**2 + 2 * d**2 * w),
        factorisations=layers * (d**3 / 3 + 4 / 3 * w**3 + 2 * POWERS * d**2),
        waits=layers * (POWERS + w),
    )


# How long it takes.


@dataclass(frozen=True)
class Assumptions:
    """One GPU, its share of the network, and what it trains on. None of these was measured.

    Attributes:
        training: FLOP/s of the training, sustained, in bf16.
        products32: FLOP/s of matrix products in float32, without TF32.
        products64: FLOP/s of matrix products in float64.
        factorisations: FLOP/s of factorisations and eigenvalues in float64, far below that of products.
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


MODELS = ("20x2048", "48x4096", "80x10240")
PROCESSES = (8, 64, 512, 1024)
SAMPLES = 1024
"""Samples n of the readings that are costed: one row of each of 1024 processes."""


# The tables.


def up(value: float) -> str:
    """Three digits, rounded against us: everything here is a cost.

    Example:
        >>> up(1.0001)
        '1.01'
    """
    return f"{Context(prec=3, rounding=ROUND_CEILING).create_decimal_from_float(float(value)):f}"


def gib(size: float) -> str:
    """Bytes in GiB."""
    return up(size / GIB)


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (header, rule, *rows))


def models_table(models: Sequence[Model], assumed: Assumptions) -> str:
    """The models: their sizes, and what hooks keep of a micro-batch in bf16."""
    header = ["parameters", "L", "w", "state, GiB", "step, s", "moments, GiB", "by hooks, GiB", "by masks, GiB"]
    rows = []
    for model in models:
        L, w = model.num_layers, model.width
        tokens = 2 * assumed.tokens * w
        sizes = [moments_in_bytes(L, w, DEFAULTS), tokens * (L + 1), tokens * 2 * L]
        state, step = gib(assumed.state * model.parameters), up(assumed.step(model.parameters))
        rows.append([model.name, L, w, state, step, *map(gib, sizes)])
    return markdown(header, rows)


def bounds_table(models: Sequence[Model], assumed: Assumptions) -> str:
    """What every process gathers where nothing bounds the rows, and the `max_samples` that 1 GiB holds."""
    rows = []
    for model in models:
        all_rows = [gib(samples_memory(model.reading(P, int(assumed.tokens)))) for P in PROCESSES]
        rows.append([model.name, "all rows, GiB", *all_rows])
        for name, memory in {"held": samples_memory, "peak": samples_peak}.items():
            most = [MEMORY_LIMIT // memory(model.reading(P, 1)) for P in PROCESSES]
            rows.append([model.name, f"`max_samples`, {name} ≤ 1 GiB", *most])
    return markdown(["parameters", "", *(f"{P} GPUs" for P in PROCESSES)], rows)


def readings_table(models: Sequence[Model]) -> str:
    """Bytes moved, bytes of memory and FLOPs of one reading."""
    header = ["parameters", "GPUs", "`max_samples`", "given, MiB", "taken, GiB", "held, GiB"]
    rows = []
    for model in models:
        for processes in PROCESSES:
            reading = model.reading(processes, SAMPLES // processes)
            traffic, work = agreement_traffic(reading) + samples_traffic(reading), samples_work(reading)
            moved = [up(traffic.given / 2**20), gib(traffic.taken)]
            memory = [gib(samples_memory(reading)), gib(samples_peak(reading))]
            flops = [up(each / 1e12) for each in (work.products32, work.products64, work.factorisations)]
            rows.append([model.name, processes, reading.rows, *moved, *memory, *flops])
    return markdown([*header, "peak, GiB", "TFLOP, float32", "float64", "factorisations"], rows)


def fits(model: Model, reading: Reading, assumed: Assumptions) -> str:
    """Under which of the two ways to train a model its state and a reading fit into one GPU."""
    state, peak = assumed.state * model.parameters, samples_peak(reading)
    if state + peak <= assumed.memory:
        return "both"
    return "sharded" if state / reading.processes + peak <= assumed.memory else "neither"


def rhythm_table(models: Sequence[Model], assumed: Assumptions) -> str:
    """Seconds of one reading, and the least number of steps between two of them in some cases."""
    header = ["parameters", "GPUs", "fits", "gather, s", "compute, s", "every … steps", "at twice the bandwidth"]
    fast = replace(assumed, bandwidth=2 * assumed.bandwidth)
    rows = []
    for model in models:
        for processes in PROCESSES:
            reading = model.reading(processes, SAMPLES // processes)
            twice = model.reading(processes, 2 * SAMPLES // processes)
            share = replace(reading, num_layers=math.ceil(model.num_layers / processes))
            gather, compute = assumed.gather(reading), assumed.compute(samples_work(reading))
            seconds = (
                gather + compute,
                fast.gather(reading) + compute,
                gather + assumed.compute(samples_work(reading, with_spectrum=False)),
                assumed.gather(twice) + assumed.compute(samples_work(twice)),
                assumed.gather(share) + assumed.compute(samples_work(share)),
            )
            every = [assumed.every(each, model.parameters) for each in seconds]
            rows.append([model.name, processes, fits(model, reading, assumed), up(gather), up(compute), *every])
    return markdown([*header, "no stable rank", f"n = {2 * SAMPLES}", "layers shared out"], rows)


def moments_table(models: Sequence[Model], assumed: Assumptions) -> str:
    """What the form "moments" takes on the most processes; "auto" does not choose it for models of this size."""
    header = ["parameters", "summed, GiB", "peak, GiB", "TFLOP", "sum, s", "compute, s", "every … steps", "peak fits"]
    rows = []
    for model in models:
        reading = model.reading(max(PROCESSES), int(assumed.tokens))
        peak, work = moments_peak(reading), moments_work(reading)
        seconds = assumed.sum(reading), assumed.compute(work)
        sizes = [gib(moments_traffic(reading).given), gib(peak), up((work.products64 + work.factorisations) / 1e12)]
        every, is_small = assumed.every(sum(seconds), model.parameters), peak <= assumed.memory
        rows.append([model.name, *sizes, *map(up, seconds), every, "yes" if is_small else "no"])
    return markdown(header, rows)


def tables(models: Sequence[Model], assumed: Assumptions) -> str:
    """All of them."""
    found = {
        "Models": models_table(models, assumed),
        "Bounds": bounds_table(models, assumed),
        f"One reading of {SAMPLES} samples": readings_table(models),
        "Rhythm": rhythm_table(models, assumed),
        "Second moments": moments_table(models, assumed),
    }
    return "\n\n".join(f"## {title}\n\n{table}" for title, table in found.items())


# The simulation.


@dataclass(frozen=True)
class Case:
    """A reading to be taken, and how.

    Attributes:
        reading: Its sizes.
        form: The form to take.
        missing: Rows that the last process has fewer than the others.
        by_observer: Whether the core of `EnergyMonitor` reads a network, in place of readers that are given states.
    """

    reading: Reading
    form: Form
    missing: int = 0
    by_observer: bool = False

    @property
    def predicted(self) -> Traffic:
        """What the formulas say."""
        traffic = FORMS[self.form](self.reading)
        return agreement_traffic(self.reading) + traffic if self.by_observer else traffic

    def rows_of(self, rank: int) -> int:
        """Rows of one process."""
        return self.reading.rows - (self.missing if rank == self.reading.processes - 1 else 0)


QUICK_SHAPES = ((4, 3, 16), (48, 6, 96))
SHAPES = (*QUICK_SHAPES, (1, 1, 64), (33, 7, 24), (70, 4, 64))
"""Rows N of a process, L and w."""
TIMED_SHAPES = ((32, 4, 128), (64, 8, 256), (128, 8, 512))
"""Those of which the exchange is timed too."""


def cases_of(processes: int, shapes: Sequence[tuple[int, int, int]]) -> list[Case]:
    """Every form at every shape: with and without momenta, with fewer rows on a process or none, by an observer."""
    cases = []
    for shape in shapes:
        plain, with_momenta = (Reading(processes, *shape, with_momenta=each) for each in (False, True))
        for form in FORMS:
            cases += [Case(plain, form), Case(with_momenta, form, missing=1)]
            cases += [Case(plain, form, missing=shape[0]), Case(plain, form, by_observer=True)]
    return cases


class Tally(TorchDispatchMode):
    """Counts the collectives of this process, whoever calls them: all of them pass torch's dispatcher."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.traffic = Traffic()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Count a collective and do it."""
        if "c10d" in func.namespace:
            self.traffic += traffic_of_call(func.name(), args)
        return func(*args, **(kwargs or {}))


def traffic_of_call(name: str, arguments: tuple[Any, ...]) -> Traffic:
    """Traffic of one collective, by the tensors that it is called with; ValueError for one that no formula has."""
    if name == "c10d::barrier":
        return Traffic(1)
    if name == "c10d::allreduce_":
        return summed(num_bytes(arguments[0]))
    if name == "c10d::allgather_":
        return Traffic(1, given=num_bytes(arguments[1]), taken=num_bytes(arguments[0]))
    raise ValueError(f"A reading has called {name!r}, of which the formulas know nothing.")


def num_bytes(tensors: Any) -> int:
    """Bytes of tensors in lists of lists."""
    return tensors.nbytes if isinstance(tensors, Tensor) else sum(map(num_bytes, tensors))


def counted(rank: int, cases: Sequence[Case]) -> list[Traffic]:
    """What one process counts, by case."""
    found = []
    for case in cases:
        read, tally = observed(case, rank) if case.by_observer else filled(case, rank), Tally()
        with tally:
            read.compute()
        found.append(tally.traffic)
    return found


def filled(case: Case, rank: int) -> SegmentReaders:
    """Readers that hold the synthetic states of one process."""
    size = case.reading
    readers = SegmentReaders([(size.width, size.num_layers)], 0.0, size.quantities, form=case.form)
    path = [torch.randn(case.rows_of(rank), size.width) for _ in range(size.num_layers + 1)]
    momenta = path[1:] if size.with_momenta else None
    readers.update(path[:-1], path[1:], equidistant_step_sizes(size.num_layers), momenta)
    return readers


@torch.no_grad()
def observed(case: Case, rank: int) -> PathObserver:
    """The core of `EnergyMonitor`, after one batch of a network of one process."""
    size = case.reading
    network = nn.Sequential(*(nn.Linear(size.width, size.width) for _ in range(size.num_layers)))
    observer = PathObserver(network, path_of(network, "*"), size.quantities, form=case.form, strict=True).attach()
    observer.arm()
    network(torch.randn(case.rows_of(rank), size.width))
    observer.drain()
    return observer


def exchange_seconds(rank: int, cases: Sequence[Case], rounds: int = 3) -> list[float]:
    """Least time in which metrics exchange their states, by case."""
    found = []
    for case in cases:
        readers, seconds = filled(case, rank), []
        for _ in range(rounds):
            dist.barrier()
            start = time.perf_counter()
            for reader in readers.readers:
                _exchange(reader)
            seconds.append(time.perf_counter() - start)
        found.append(min(seconds))
    return found


def _exchange(reader: nn.Module) -> None:
    """Synchronise every metric of a reader, and take it back."""
    if isinstance(reader, PathReader):
        for metric in (reader.energies, reader.spectrum, reader.momenta, reader.samples):
            if metric is not None:
                metric.sync(dist_sync_fn=metric.dist_sync_fn)
                metric.unsync()


def growth(rank: int, case: Case) -> float:
    """Bytes by which one reading makes a fresh process grow at most; NaN where the system does not say."""
    readers, statm = filled(case, rank), Path("/proc/self/statm")
    before = int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else math.nan
    readers.compute()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


def on_processes(processes: int, task: Callable[[int, Any], Any], argument: object) -> list[Any]:
    """What a task returns on each of some processes that can speak to one another."""
    multiprocessing.set_forkserver_preload(["lightning_leaky.observer"])  # imports once, not once a process
    with tempfile.TemporaryDirectory() as folder:
        arguments = (processes, Path(folder), task, argument)
        start_processes(_work, arguments, nprocs=processes, start_method="forkserver")  # type: ignore[no-untyped-call]
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(processes)]


def _work(rank: int, processes: int, folder: Path, task: Callable[[int, Any], Any], argument: object) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", (folder / "meeting").as_uri(), rank=rank, world_size=processes)
    torch.save(task(rank, argument), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


# The report.

GROWN = Case(Reading(processes=2, rows=64, num_layers=16, width=8192), "samples")


def disagreements(case: Case, of_processes: Sequence[Traffic]) -> list[str]:
    """What differs from the formula, in words."""
    return [
        f"{case}: process {rank} counted {traffic}, the formula says {case.predicted}"
        for rank, traffic in enumerate(of_processes)
        if traffic != case.predicted
    ]


def cases_table(found: Sequence[tuple[Case, Sequence[Traffic]]]) -> str:
    """Every case: what the formula says, and what the first process has counted."""
    header = ["form", "by", "processes", "N", "fewer on the last", "L", "w", "momenta"]
    pairs = ["collectives, predicted / counted", "bytes given", "bytes taken", "all processes agree"]
    rows = []
    for case, of_processes in found:
        size, said, first = case.reading, asdict(case.predicted), asdict(of_processes[0])
        shape = [size.rows, case.missing, size.num_layers, size.width, "yes" if size.with_momenta else "no"]
        by, agree = "observer" if case.by_observer else "readers", not disagreements(case, of_processes)
        counts = [f"{said[name]} / {first[name]}" for name in said]
        rows.append([case.form, by, size.processes, *shape, *counts, "yes" if agree else "no"])
    return markdown([*header, *pairs], rows)


def measured_speeds(numbers: Sequence[int]) -> str:
    """How fast gloo is here, by least squares of the time against the bytes: information, no more."""
    rows = []
    for processes in numbers:
        for form in ("samples", "moments"):
            cases = [Case(Reading(processes, *shape), form) for shape in TIMED_SHAPES]
            seconds = map(max, zip(*on_processes(processes, exchange_seconds, cases), strict=True))
            line = linear_regression([case.predicted.taken for case in cases], list(seconds))
            rows.append([form, processes, f"{1e-6 / line.slope:.0f}", f"{1e3 * line.intercept:.1f}"])
    return markdown(["form", "processes", "MB/s taken by each", "ms beside the bytes"], rows)


def measured_growth() -> str:
    """By how much a process grows in one reading: information, no more, for allocators keep what they like."""
    grown = max(on_processes(GROWN.reading.processes, growth, GROWN))
    return f"A process grows by {grown / samples_peak(GROWN.reading):.3f} times the peak of the formula."


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, or simulate and return the exit status: 1 where a process counted another number."""
    options = _parser().parse_args(arguments)
    if options.table:
        assumed = replace(Assumptions(), **dict(map(_assumption, options.assume)))
        print(tables([Model(*map(int, each.split("x"))) for each in options.models], assumed))
        return 0
    numbers, shapes = ((2, 3, 4), QUICK_SHAPES) if options.quick else ((2, 3, 4, 8), SHAPES)
    where = environment(torch.device("cpu"))
    print("\n".join(f"- {name}: {value}" for name, value in where.items()), flush=True)
    found: list[tuple[Case, list[Traffic]]] = []
    for processes in numbers:
        cases = cases_of(processes, shapes)
        by_case = zip(*on_processes(processes, counted, cases), strict=True)
        found += zip(cases, map(list, by_case), strict=True)
    wrong = [line for case, of_processes in found for line in disagreements(case, of_processes)]
    measured = [] if options.quick else [measured_speeds(numbers), measured_growth()]
    print("", cases_table(found), *measured, sep="\n\n", end="\n\n")
    print(f"{len(found)} cases on {', '.join(map(str, numbers))} processes, {len(wrong)} disagreements.")
    print(*wrong, sep="\n", end="\n" if wrong else "", file=sys.stderr)
    if options.output is not None:
        listed = [
            {**asdict(case), "predicted": asdict(case.predicted), "counted": list(map(asdict, of_processes))}
            for case, of_processes in found
        ]
        report = {"environment": where, "cases": listed, "measured": measured, "disagreements": wrong}
        options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.communication", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer sizes, and no more than 4 processes")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--table", action="store_true", help="print the tables of docs/scale.md, and simulate nothing")
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="LxW", help="models of the tables: %(default)s")
    names = ", ".join(asdict(Assumptions()))
    parser.add_argument("--assume", nargs="+", default=(), metavar="NAME=VALUE", help=f"for the tables, of {names}")
    return parser


def _assumption(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    if name not in asdict(Assumptions()):
        raise SystemExit(f"{name}: not one of {', '.join(asdict(Assumptions()))}")
    return name, float(value)


if __name__ == "__main__":
    sys.exit(main())
