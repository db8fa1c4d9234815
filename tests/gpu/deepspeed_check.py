"""Real DeepSpeed against one plain process: `python -m tests.gpu.deepspeed_check`, by hand, because few have DeepSpeed.

It takes one GPU; `--device cpu --processes 2` takes none. Every case trains the same network on the same batches twice,
with DeepSpeed in its processes and without it in one, and compares what the callbacks have read and done. The exit
status is 0 if every check passed, 1 if one failed, and 2 if DeepSpeed is missing.

Lightning refuses DeepSpeed on a CPU, and DeepSpeed refuses fp16 there. The rehearsal lifts both refusals and changes
nothing else.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, Strategy
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_leaky import EnergyMonitor, LeakyResNetModule, StepSizeAdapter
from tests.distributed.launch import free_port

INSTALL = "DeepSpeed is missing. Install it: DS_BUILD_OPS=0 pip install --no-build-isolation deepspeed"
COMMAND = [sys.executable, "-m", "tests.gpu.deepspeed_check"]
TIMEOUT = 1200
NUM_SAMPLES, GLOBAL_BATCH, EPOCHS = 24, 8, 3
ENERGIES = ("cost_of_identity", "kinetic_energy")
TOLERANCES = {"32-true": 1e-5, "bf16-mixed": 1e-1, "16-mixed": 2e-2}
"""How far a reading may be off, as a share of its largest layer; of half precision only the first is compared."""


@dataclass(frozen=True)
class Case:
    """One setting of DeepSpeed, and what is read under it.

    `has_term` puts λ into the loss, `told` tells it to the monitor, and `decay` gives it to Adam. An argument that
    `may_be_refused` may end the fit with a ValueError that names it; else the case must be followed like the others.
    """

    stage: int
    accumulated: int = 1
    precision: str = "32-true"
    quantities: tuple[str, ...] = ENERGIES
    has_term: bool = False
    told: float | None = None
    decay: float = 0.0
    num_groups: int = 1
    scale_power: int = 18
    may_be_refused: str = ""
    zero: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] = field(default_factory=dict)


BOTH = ("monitor", "adapter")
PAIRED = ("stage 1", "stage 2", "stage 3")
"""Cases that are also run with the monitor alone and with no callback, whose losses must be the same bits."""

_OFFLOAD = {"offload_optimizer": {"device": "cpu", "pin_memory": False}}
_OFFLOAD_ALL = _OFFLOAD | {"offload_param": {"device": "cpu", "pin_memory": False}}
_STAGES = (1, 2, 3)
MOMENTA, WEIGHTS = ("hamiltonian", "first_order"), ("hamiltonian", "criticality_residual")
CASES = {
    **{f"stage {stage}": Case(stage) for stage in _STAGES},
    **{f"stage {stage}, 2 micro-batches": Case(stage, accumulated=2) for stage in _STAGES},
    **{f"stage {stage}, 2 groups": Case(stage, num_groups=2, zero={"sub_group_size": 40}) for stage in _STAGES},
    **{f"stage {stage}, L2 term": Case(stage, has_term=True, may_be_refused="weight_decay") for stage in _STAGES},
    **{f"stage {stage}, momenta": Case(stage, quantities=MOMENTA, told=0.1) for stage in _STAGES},
    **{
        f"stage {stage}, momenta, 2 micro-batches": Case(stage, accumulated=2, quantities=MOMENTA, told=0.1)
        for stage in _STAGES
    },
    **{f"stage {stage}, Adam's decay": Case(stage, quantities=MOMENTA, decay=0.1) for stage in _STAGES},
    **{f"stage {stage}, weights": Case(stage, quantities=WEIGHTS, told=0.1) for stage in _STAGES},
    "stage 2, optimizer on the CPU": Case(2, zero=_OFFLOAD),
    "stage 3, all on the CPU": Case(3, zero=_OFFLOAD_ALL),
    "stage 3, all on the CPU, momenta": Case(3, quantities=MOMENTA, told=0.1, zero=_OFFLOAD_ALL),
    **{f"stage {stage}, bf16": Case(stage, precision="bf16-mixed") for stage in _STAGES},
    **{f"stage {stage}, fp16": Case(stage, precision="16-mixed") for stage in _STAGES},
    **{
        f"stage {stage}, fp16, momenta": Case(stage, 1, "16-mixed", quantities=MOMENTA, told=0.1, scale_power=8)
        for stage in _STAGES
    },
    **{
        f"stage {stage}, {name}": Case(stage, adapter={name: True}, may_be_refused=name)
        for name in ("move_weights", "scale_gradients")
        for stage in _STAGES
    },
    **{
        f"stage {stage}, parameters": Case(
            stage, quantities=("pontryagin_residual",), told=0.1, may_be_refused="quantities"
        )
        for stage in _STAGES
    },
}


class Small(LeakyResNetModule):
    """Four layers, with or without the L2 term in the loss, trained by an Adam of one or two groups."""

    has_term, num_groups, decay = False, 1, 0.0

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return super().loss(outputs, targets) if self.has_term else self.cost(outputs, targets)

    def configure_optimizers(self) -> Any:
        if self.num_groups == 1:
            return torch.optim.Adam(self.parameters(), lr=3e-3, weight_decay=self.decay)
        layers = list(self.network.layers.parameters())
        others = [one for one in self.parameters() if all(one is not layer for layer in layers)]
        return torch.optim.Adam([{"params": layers}, {"params": others}], lr=3e-3)


class Data(LightningDataModule):
    """Batches whose union over processes and micro-batches is the batch of one process."""

    def __init__(self, accumulated: int) -> None:
        super().__init__()
        self.accumulated = accumulated

    def train_dataloader(self) -> DataLoader:
        data, size = _samples(NUM_SAMPLES, 1), self.trainer.world_size
        in_order = DistributedSampler(data, size, self.trainer.global_rank, shuffle=False)
        return DataLoader(data, GLOBAL_BATCH // size // self.accumulated, sampler=in_order)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(_samples(10, 2), 2)


def _samples(number: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(*(torch.randn(number, width, generator=generator) for width in (3, 2)))


class Seen(Callback):
    """What a process sees of each optimizer step and of the end."""

    def __init__(self, monitor: EnergyMonitor, adapter: StepSizeAdapter) -> None:
        self.monitor, self.adapter = monitor, adapter
        self.losses: list[float] = []
        self.step_sizes: list[torch.Tensor] = []
        self.readings: list[dict[str, torch.Tensor]] = []
        self.end: dict[str, Any] = {}
        self._read: object = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))
        self.step_sizes.append(pl_module.network.step_sizes.detach().double().cpu().clone())
        read = self.monitor.readings.get("train")
        if read is not None and read is not self._read:
            self._read = read
            self.readings.append({name: one.double().cpu() for name, one in read.quantities.items()})

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        engine = trainer.strategy.model
        taken = getattr(engine, "global_steps", trainer.global_step) - getattr(engine, "skipped_steps", 0)
        validated = self.monitor.readings.get("validate")
        self.end = {
            "steps": (taken, trainer.global_step),
            "counted": self.adapter.state_dict().get("num_steps"),
            "validated": {} if validated is None else {k: v.double().cpu() for k, v in validated.quantities.items()},
        }


def fit(case: Case, strategy: Strategy | None, device: str, size: int, kept: tuple[str, ...] = BOTH) -> dict[str, Any]:
    """Train with the callbacks kept; return what a process has seen, the error that ended it, and our warnings."""
    torch.manual_seed(0)
    decay = 0.1 if case.has_term else 0.0
    module = Small(3, 2, width=6, num_layers=4, effective_depth=2.0, weight_decay=decay)
    module.has_term, module.num_groups, module.decay = case.has_term, case.num_groups, case.decay
    monitor = EnergyMonitor(quantities=case.quantities, weight_decay=case.told)
    adapter = StepSizeAdapter(every_n_steps=2, damping=0.5, **case.adapter)
    seen = Seen(monitor, adapter)
    trainer = Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=size,
        strategy="auto" if strategy is None else strategy,
        precision="32-true" if strategy is None else case.precision,  # type: ignore[arg-type]
        accumulate_grad_batches=case.accumulated,
        max_epochs=EPOCHS,
        callbacks=[*([monitor] if "monitor" in kept else []), *([adapter] if "adapter" in kept else []), seen],
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    error = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trainer.fit(module, Data(case.accumulated))
        except Exception as raised:  # the next case goes on
            error = f"{type(raised).__name__}: {raised}"
    texts = {str(one.message) for one in caught if "lightning_leaky" in str(one.filename)}
    found = {"losses": seen.losses, "step_sizes": seen.step_sizes, "readings": seen.readings}
    return found | seen.end | {"error": error, "warnings": sorted(texts)}


def strategy_of(case: Case, device: str) -> DeepSpeedStrategy:
    """Lightning's own strategy; on a CPU without its refusal."""
    zero = {"stage": case.stage, "overlap_comm": False, "reduce_bucket_size": 10_000, "allgather_bucket_size": 10_000}
    if case.stage == 3:
        zero["stage3_param_persistence_threshold"] = 0  # else small parameters stay whole after the first batch
    config = {
        "zero_optimization": zero | case.zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "train_micro_batch_size_per_gpu": 1,
        "steps_per_print": 10**9,
    }
    kind = DeepSpeedStrategy if device == "cuda" else _on_cpu()
    return kind(config=config, initial_scale_power=case.scale_power, hysteresis=1, timeout=timedelta(seconds=60))


def _on_cpu() -> type[DeepSpeedStrategy]:
    class OnCPU(DeepSpeedStrategy):
        """Lifts what keeps Lightning and DeepSpeed from a CPU: a refusal each, and devices without a number."""

        def setup_environment(self) -> None:
            from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

            CPU_Accelerator.is_fp16_supported = lambda self: True
            self.set_world_ranks()
            self._init_deepspeed_distributed()

        @property
        def root_device(self) -> torch.device:
            return torch.device("cpu", self.local_rank)

        def _get_process_group_backend(self) -> str:
            return "gloo"

    return OnCPU


def work(names: list[str], device: str, size: int, folder: Path) -> None:
    """What each process runs: one fit after another."""
    torch.set_num_threads(1)
    rank, found = int(os.environ["RANK"]), {}
    for name in names:
        found[name] = fit(CASES[name], strategy_of(CASES[name], device), device, size)
        if name in PAIRED:
            for key, callbacks in (("unwatched", ()), ("watched", ("monitor",))):
                found[name][key] = fit(CASES[name], strategy_of(CASES[name], device), device, size, callbacks)["losses"]
        torch.save(found, folder / f"{rank}.pt")  # each time, because a crash may follow


def in_processes(names: list[str], device: str, size: int, folder: Path) -> list[dict[str, Any]]:
    """Run `work` in so many processes."""
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "check"}
    command = [*COMMAND, "--device", device, "--processes", str(size), "--folder", str(folder), "--cases", *names]
    processes = []
    for rank in range(size):
        own = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        environment = os.environ | places | {name: str(value) for name, value in own.items()}
        log = (folder / f"{rank}.log").open("w")
        processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(codes):
        print(f"FAIL  processes ended with {codes}:\n{(folder / '0.log').read_text()[-3000:]}")
    return [torch.load(one, weights_only=False) if one.exists() else {} for one in sorted(folder.glob("*.pt"))]


def checks_of(case: Case, found: list[dict[str, Any]], plain: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name of each check and what is wrong with it, empty if nothing is."""
    first, tolerance = found[0], TOLERANCES[case.precision]
    is_whole, num_compared = case.precision == "32-true", case.accumulated
    if case.may_be_refused and all(one["error"].startswith(f"ValueError: `{case.may_be_refused}") for one in found):
        yield f"refuses {case.may_be_refused}", ""
        return
    yield "fits", next((one["error"] for one in found if one["error"]), "") or plain["error"]
    if first["error"]:
        return
    losses = torch.tensor([one["losses"] for one in found]).mean(0)
    compared = slice(None) if is_whole else slice(num_compared)
    yield "losses", _off(losses[compared], torch.tensor(plain["losses"])[compared], tolerance)
    number, wanted = len(first["readings"]), len(plain["readings"])
    yield "number of readings", "" if number == wanted else f"{number}, expected {wanted}"
    for name in plain["readings"][0]:
        pairs = list(zip(first["readings"], plain["readings"], strict=False))[: None if is_whole else 1]
        missing = torch.tensor([torch.nan])
        yield name, next(filter(None, (_off(one.get(name, missing), two[name], tolerance) for one, two in pairs)), "")
    for name, two in plain["validated"].items() if is_whole else ():
        yield f"{name} of validation", _off(first["validated"].get(name, torch.tensor([torch.nan])), two, tolerance)
    if is_whole:
        yield "step-sizes", _off(torch.stack(first["step_sizes"]), torch.stack(plain["step_sizes"]), tolerance)
    moved = float((first["step_sizes"][-1] - 0.25).abs().max())
    yield "step-sizes move", "" if moved > 1e-3 else f"by {moved:.1e}"
    same = all(torch.equal(torch.stack(one["step_sizes"]), torch.stack(first["step_sizes"])) for one in found)
    yield "step-sizes are the same bits on all processes", "" if same else "they differ"
    taken, told = first["steps"]
    right = first["counted"] == taken
    yield "steps counted", "" if right else f"{first['counted']}, DeepSpeed took {taken}, Lightning counts {told}"
    if "unwatched" in first:
        yield "the monitor changes no bit of the losses", "" if first["watched"] == first["unwatched"] else "it does"
    if case.precision == "16-mixed" and case.scale_power > 16:
        yield "some steps were skipped", "" if taken < told else "none was, so nothing was tried"


def _off(found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> str:
    if found.shape != wanted.shape:
        return f"shape {tuple(found.shape)}, expected {tuple(wanted.shape)}"
    share = float((found - wanted).abs().max() / wanted.abs().max())
    return "" if share <= tolerance else f"off by {share:.1e} of the largest, allowed is {tolerance:.0e}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ModuleNotFoundError:
        print(INSTALL, file=sys.stderr)
        return 2
    if chosen.folder is not None:
        work(chosen.cases, chosen.device, chosen.processes, chosen.folder)
        return 0
    print(f"DeepSpeed {deepspeed.__version__}, torch {torch.__version__}, {chosen.processes} × {chosen.device}")
    with TemporaryDirectory() as folder:
        found = in_processes(chosen.cases, chosen.device, chosen.processes, Path(folder))
    return report(chosen.cases, found, chosen.device)


def report(names: list[str], found: list[dict[str, Any]], device: str) -> int:
    """Print every check, and return the exit status."""
    num_failed = num_passed = 0
    for name in names:
        if not found or any(name not in one for one in found):
            print(f"FAIL  {name}: the processes ended before it")
            num_failed += 1
            continue
        results = list(checks_of(CASES[name], [one[name] for one in found], fit(CASES[name], None, device, 1)))
        passed = [check for check, wrong in results if not wrong]
        print(f"{'PASS' if len(passed) == len(results) else 'FAIL'}  {name}: passed: {', '.join(passed)}")
        for check, wrong in results:
            if wrong:
                print(f"      failed: {check}: {wrong}")
        for text in found[0][name]["warnings"]:
            if "has no logger" in text:
                continue
            print(f"      warned: {text}")
        num_passed, num_failed = num_passed + len(passed), num_failed + len(results) - len(passed)
    print(f"{num_passed} checks passed, {num_failed} failed.")
    return int(num_failed > 0)


if __name__ == "__main__":
    sys.exit(main())
