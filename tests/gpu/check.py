"""Whether all that a GPU could do otherwise is right on this one: `python -m tests.gpu.check` prints a table.

It ends with status 0 if every check has passed, 1 if one failed, and 2, loudly, without a CUDA device. With
`--device cpu` the checks that do not want CUDA run there, which says whether the checks work, and nothing of a GPU.
"""

import argparse
import datetime
import logging
import platform
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import lightning
import torch

import lightning_leaky
from tests.gpu import fits, graphs, processes, tensors
from tests.others.networks import NETWORKS

Check = Callable[[torch.device], None]

NO_CUDA = "NOT RUN: no CUDA device. Run `python -m tests.gpu.check` where there is one."
PASSED, NEEDS_CUDA, FAILED = "passed", "needs CUDA", "FAILED"

ANYWHERE: dict[str, Check] = {
    "functions of float64 tensors": partial(tensors.functions_equal_the_references, dtype=torch.float64),
    "functions of float32 tensors": partial(tensors.functions_equal_the_references, dtype=torch.float32),
    "derivatives": tensors.derivatives_equal_those_of_the_cpu,
    "metrics of float64 batches": partial(tensors.metrics_equal_those_of_the_cpu, dtype=torch.float64),
    "metrics of float32 batches": partial(tensors.metrics_equal_those_of_the_cpu, dtype=torch.float32),
    "measure_path, moments": partial(tensors.measured_paths_equal_those_of_the_cpu, form="moments"),
    "measure_path, samples": partial(tensors.measured_paths_equal_those_of_the_cpu, form="samples"),
    **{
        f"monitor not felt, {precision}": partial(fits.the_monitor_is_not_felt, precision=precision)
        for precision in fits.TOLERANCES
    },
    **{
        f"readings, {precision}": partial(fits.readings_are_those_of_the_cpu, precision=precision)
        for precision in fits.TOLERANCES
    },
    "skipped steps of fp16, Adam": partial(fits.skipped_steps_do_not_count, optimizer=fits.OfAdam),
    "skipped steps of fp16, fused Adam": partial(fits.skipped_steps_do_not_count, optimizer=fits.OfFusedAdam),
    "resumed fit": fits.a_resumed_fit_equals_an_uninterrupted_one,
    **{
        f"network of others, {name}": partial(fits.a_network_of_others_reads_as_on_the_cpu, name=name)
        for name in NETWORKS
    },
    "torch.compile, inductor": graphs.compiled_networks_read_as_eager_ones,
    "ddp": partial(processes.strategies_do_as_one_process, name="ddp"),
    "ModelParallelStrategy, fully_shard": partial(processes.strategies_do_as_one_process, name="model_parallel"),
}
ON_CUDA: dict[str, Check] = {
    "FSDPStrategy": partial(processes.strategies_do_as_one_process, name="fsdp"),
    "torch.compile, reduce-overhead": graphs.networks_compiled_to_cuda_graphs_read_as_eager_ones,
    "torch.cuda.graph": graphs.captured_passes_see_new_step_sizes,
    "torch.cuda.make_graphed_callables": graphs.graphed_callables_see_new_step_sizes,
    "no synchronisation": graphs.hooks_that_are_not_armed_do_not_synchronise,
}
CHECKS = ANYWHERE | ON_CUDA


class Row(NamedTuple):
    """A line of the table."""

    name: str
    result: str
    seconds: float


def run(name: str, check: Check, device: torch.device) -> Row:
    """Run one check; whatever it raises becomes its result, and the traceback goes to stderr."""
    start = time.perf_counter()
    try:
        check(device)
        result = PASSED
    except Exception as error:
        traceback.print_exc()
        reason = " ".join(str(error).replace("|", "/").split())
        result = f"{FAILED}: {type(error).__name__}: {reason[:300]}"
    return Row(name, result, time.perf_counter() - start)


def run_all(device: torch.device, anywhere: Mapping[str, Check], on_cuda: Mapping[str, Check]) -> list[Row]:
    """Run what the device can run."""
    rows = [run(name, check, device) for name, check in anywhere.items()]
    if device.type == "cuda":
        return rows + [run(name, check, device) for name, check in on_cuda.items()]
    return rows + [Row(name, NEEDS_CUDA, 0.0) for name in on_cuda]


def heading(device: torch.device) -> str:
    """What the table is about."""
    name = f"CPU ({platform.machine()}), not a GPU"
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, of {torch.cuda.device_count()}"
    versions = {
        "torch": torch.__version__,
        "CUDA": torch.version.cuda,
        "lightning": lightning.__version__,
        "lightning-leaky": lightning_leaky.__version__,
        "Python": platform.python_version(),
    }
    shown = ", ".join(f"{what} {version}" for what, version in versions.items())
    return f"Device: {name}  \nDate: {datetime.date.today()}  \nVersions: {shown}"


def table(rows: list[Row]) -> str:
    """The rows and how many of each result there are."""
    lines = [f"| {name} | {result} | {seconds:.1f} |" for name, result, seconds in rows]
    counts = [
        f"{sum(row.result.startswith(result) for row in rows)} {result}" for result in (PASSED, FAILED, NEEDS_CUDA)
    ]
    return "\n".join(["| check | result | seconds |", "| --- | --- | --- |", *lines, "", ", ".join(counts)])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", default="", metavar="TEXT", help="run the checks whose names contain this")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print(NO_CUDA, file=sys.stderr)
        return 2
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    device = torch.device(given.device)
    chosen = [{name: check for name, check in checks.items() if given.only in name} for checks in (ANYWHERE, ON_CUDA)]
    rows = run_all(device, *chosen)
    print(f"\n{heading(device)}\n\n{table(rows)}")
    return int(any(row.result.startswith(FAILED) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
