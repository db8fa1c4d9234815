"""Whether all that a GPU could do otherwise is right on this one: `python -m tests.gpu.check` prints a table.

It ends with status 0 if every check has passed, 1 if one failed, and 2, loudly, without a CUDA device. With
`--device cpu` the checks that do not want CUDA run there, which says whether the checks work, and nothing of a GPU.
"""

import argparse
import logging
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.environment import environment
from benchmarks.tables import table, write
from tests.gpu import NO_CUDA, fits, graphs, processes, tensors
from tests.others.networks import NETWORKS

Check = Callable[[torch.device], None]

PASSED, NEEDS_CUDA, FAILED, RUNNING, NOT_REACHED = "passed", "needs CUDA", "FAILED", "running", "not reached"

# The cheap ones come first: what is cut short has said most.
ON_ONE_DEVICE: dict[str, Check] = {
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
    "no synchronisation": graphs.hooks_that_are_not_armed_do_not_synchronise,
    "torch.cuda.graph": graphs.captured_passes_see_new_step_sizes,
    "torch.cuda.make_graphed_callables": graphs.graphed_callables_see_new_step_sizes,
    "torch.compile, inductor": graphs.compiled_networks_read_as_eager_ones,
    "torch.compile, reduce-overhead": graphs.networks_compiled_to_cuda_graphs_read_as_eager_ones,
}
PARTS: dict[str, dict[str, Check]] = {
    "checks": ON_ONE_DEVICE,
    "nccl": {"ddp": partial(processes.strategies_do_as_one_process, name="ddp")},
    "fsdp": {
        "ModelParallelStrategy, fully_shard": partial(processes.strategies_do_as_one_process, name="model_parallel"),
        "FSDPStrategy": partial(processes.strategies_do_as_one_process, name="fsdp"),
    },
}
WANT_CUDA = {
    "no synchronisation",
    "torch.cuda.graph",
    "torch.cuda.make_graphed_callables",
    "torch.compile, reduce-overhead",
    "FSDPStrategy",
}


@dataclass
class Row:
    """A line of the table."""

    name: str
    result: str = NOT_REACHED
    seconds: float = 0.0


def run(row: Row, check: Check, device: torch.device) -> None:
    """Run one check; whatever it raises becomes its result, and the traceback goes to stderr."""
    start = time.perf_counter()
    try:
        check(device)
        row.result = PASSED
    except Exception as error:
        traceback.print_exc()
        reason = " ".join(str(error).replace("|", "/").split())
        row.result = f"{FAILED}: {type(error).__name__}: {reason[:300]}"
    row.seconds = time.perf_counter() - start


def run_all(checks: dict[str, Check], device: torch.device, output: Path | None) -> list[Row]:
    """Run what the device can run, and write the table before and after each check: a run may be cut short."""
    rows = [Row(name) for name in checks]
    for row, check in zip(rows, checks.values(), strict=True):
        needs_cuda = row.name in WANT_CUDA and device.type != "cuda"
        row.result = NEEDS_CUDA if needs_cuda else RUNNING
        save(rows, output)
        if not needs_cuda:
            run(row, check, device)
    save(rows, output)
    return rows


def save(rows: list[Row], output: Path | None) -> None:
    """Write the rows as they are now."""
    if output is not None:
        write(output, {"checks": [asdict(row) for row in rows]}, shown(rows))


def shown(rows: list[Row]) -> str:
    """The rows as a table, and how many of each result there are."""
    lines = [(row.name, row.result, f"{row.seconds:.1f}") for row in rows]
    results = (PASSED, FAILED, NEEDS_CUDA, RUNNING, NOT_REACHED)
    counts = {result: sum(row.result.startswith(result) for row in rows) for result in results}
    return f"{table(('check', 'result', 'seconds'), lines)}\n\n" + ", ".join(
        f"{count} {result}" for result, count in counts.items() if count
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="by default all")
    parser.add_argument("--only", default="", metavar="TEXT", help="run the checks whose names contain this")
    parser.add_argument("--output", type=Path, help="JSON file to write, with a Markdown file beside it")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print(NO_CUDA, file=sys.stderr)
        return 2
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    device = torch.device(given.device)
    chosen = {name: check for part in given.parts for name, check in PARTS[part].items() if given.only in name}
    rows = run_all(chosen, device, given.output)
    where = "\n".join(f"- {name}: {value}" for name, value in environment(device).items())
    print(f"\n{where}\n\n{shown(rows)}")
    return int(any(row.result.startswith(FAILED) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
