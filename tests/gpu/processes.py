"""Lightning's strategies of several processes, started as scripts: `python -m tests.gpu.processes ddp cuda 1 FOLDER`.

They take two GPUs where there are two. One GPU allows one process: its strategy is set up as for many, by nccl, the
network is wrapped and sharded as for many, and our collectives are called, though there is nobody to sum with. So does
a CPU, by gloo.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import Mock, patch

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard

import lightning_leaky.utilities.processes
from lightning_leaky import EnergyMonitor, StepSizeAdapter
from lightning_leaky.models import LeakyLayer
from tests.callbacks.helpers import ConstantRate
from tests.gpu.fits import assert_near, small, teacher, trainer_of

ROOT = Path(__file__).parents[2]
TIMEOUT = 100


class OfCost(ConstantRate):
    """Trains on the cost alone: the regulariser wants the weights of all layers at once, which sharding parts."""

    def loss(self, outputs, targets):
        return self.cost(outputs, targets)


class Sharded(OfCost):
    """Shards each layer by itself."""

    def configure_model(self):
        if not isinstance(self.network, FSDPModule):
            for module in (*self.network.layers, self.network):
                fully_shard(module, mesh=self.device_mesh["data_parallel"])


# What wants a λ or weights is read where the weights are whole.
ENERGIES = ("cost_of_identity", "kinetic_energy", "potential_energy", "energy_hamiltonian", "stable_rank")


class Case(NamedTuple):
    """A strategy for some number of processes, what it trains, and what one process trains to compare with."""

    strategy: Callable[[int], Strategy]
    module: type[ConstantRate]
    alone: type[ConstantRate]
    quantities: tuple[str, ...] | None


CASES = {
    "ddp": Case(lambda size: DDPStrategy(), ConstantRate, ConstantRate, None),
    "fsdp": Case(lambda size: FSDPStrategy(auto_wrap_policy={LeakyLayer}), OfCost, OfCost, ENERGIES),
    "model_parallel": Case(
        lambda size: ModelParallelStrategy(data_parallel_size=size, tensor_parallel_size=1), Sharded, OfCost, ENERGIES
    ),
}


class Several(int):
    """A number of processes that counts as more than one: of one process, code for several runs too."""

    def __gt__(self, other):
        return True

    def __eq__(self, other):
        return False

    __hash__ = int.__hash__


@contextmanager
def counted_as_several():
    """Let our code call its collectives whatever the number of processes; yields a spy that has seen them."""
    with ExitStack() as patches:
        for name, module in list(sys.modules.items()):
            if name.startswith("lightning_leaky.") and hasattr(module, "num_processes"):
                patches.enter_context(patch.object(module, "num_processes", lambda: Several(dist.get_world_size())))
        yield patches.enter_context(patch.object(lightning_leaky.utilities.processes, "dist", Mock(wraps=dist)))


def fit(module, device, quantities, **settings) -> dict[str, Any]:
    """Train and return what a process ends with."""
    monitor = EnergyMonitor(quantities=quantities)
    trainer = trainer_of(device, monitor, StepSizeAdapter(every_n_steps=2, damping=0.5), max_epochs=6, **settings)
    trainer.fit(module, datamodule=teacher())
    return {
        "rank": trainer.global_rank,
        "backend": dist.get_backend() if dist.is_initialized() else None,
        "is_sharded": any(isinstance(one, (FSDPModule, FullyShardedDataParallel)) for one in module.modules()),
        "step_sizes": module.network.step_sizes.cpu(),
        "readings": {stage: readings.quantities for stage, readings in monitor.readings.items()},
    }


def strategies_do_as_one_process(device, name):
    """The same readings and step-sizes as without a strategy, on every process."""
    size = max(1, min(2, torch.cuda.device_count()))
    case = CASES[name]
    expected = fit(small(case.alone), device, case.quantities)
    assert float((expected["step_sizes"] - 0.25).abs().max()) > 1e-3, "step-sizes did not move"
    for found in _in_processes(name, device, size):
        assert found["collectives"] >= {"all_gather", "all_reduce"}, f"called {found['collectives']}"
        assert found["backend"] == ("nccl" if device.type == "cuda" else "gloo"), f"ran on {found['backend']}"
        assert found["is_sharded"] == (name != "ddp"), f"is sharded: {found['is_sharded']}"
        torch.testing.assert_close(found["step_sizes"], expected["step_sizes"], rtol=1e-4, atol=0)
        assert found["readings"].keys() == expected["readings"].keys() == {"train", "validate"}
        for stage, readings in expected["readings"].items():
            assert_near(found["readings"][stage], readings, 1e-3)


def _in_processes(name, device, size):
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.gpu.processes", name, device.type, str(size), folder]
        places = {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        environment = os.environ | places | {"MASTER_ADDR": "127.0.0.1", "NCCL_SOCKET_IFNAME": "lo"}
        run = subprocess.run(command, cwd=ROOT, env=environment, timeout=TIMEOUT, capture_output=True, text=True)
        if run.returncode:
            print(run.stderr, file=sys.stderr)
            raise RuntimeError(f"exit status {run.returncode}: {run.stderr.strip().splitlines()[-1:]}")
        return [torch.load(Path(folder) / f"rank_{rank}.pt") for rank in range(size)]


def main(name: str, device: str, size: str, folder: str) -> None:
    case = CASES[name]
    settings = {"devices": int(size), "strategy": case.strategy(int(size))}
    with counted_as_several() as spy:
        found = fit(small(case.module), torch.device(device), case.quantities, **settings)
    found["collectives"] = {name for name, *_ in spy.method_calls}
    torch.save(found, Path(folder) / f"rank_{found['rank']}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
