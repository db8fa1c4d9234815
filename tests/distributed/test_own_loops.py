"""Loops without a Trainer in two processes: under torch's DDP and FSDP2, Fabric and accelerate, as in one process."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import DistributedSampler

from lightning_leaky import LeakyResNet, PathMonitor, StepSizeHook
from tests.blocks import Net
from tests.distributed.launch import launch

pytestmark = pytest.mark.slow

NUM_STEPS, GLOBAL_BATCH, NUM_VAL, DECAY, LAMBDA = 6, 12, 7, 0.05, 0.1
MOVES = ("cost_of_identity", "kinetic_energy", "momentum_norm")
QUANTITIES = {"leaky": (*MOVES, "hamiltonian", "criticality_residual"), "blocks": (*MOVES, "pontryagin_residual")}
ENERGIES = ["cost_of_identity", "kinetic_energy"]
Wrapped = tuple[nn.Module, Optimizer, Callable[[Tensor], Any]]
"""A model, its optimizer, and what runs a backward pass."""


def sgd(network: nn.Module) -> Optimizer:
    return torch.optim.SGD(network.parameters(), 0.05, weight_decay=DECAY)


def plain(network: nn.Module) -> Wrapped:
    return network, sgd(network), Tensor.backward


def with_ddp(network: nn.Module) -> Wrapped:
    return DistributedDataParallel(network), sgd(network), Tensor.backward


def with_fabric(network: nn.Module) -> Wrapped:
    fabric = Fabric(accelerator="cpu", devices=2)  # "64-true" would return outputs in float32
    fabric.launch()
    return *fabric.setup(network, sgd(network)), fabric.backward


def with_accelerate(network: nn.Module) -> Wrapped:
    accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True)
    return *accelerator.prepare(network, sgd(network)), accelerator.backward


def sharded(network: nn.Module) -> Wrapped:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    layers = network.layers if isinstance(network, LeakyResNet) else network.encoder
    for module in (*layers, network):
        fully_shard(module, mesh=mesh)
    return network, sgd(network), Tensor.backward


KITS: dict[str, Callable[[nn.Module], Wrapped]] = {
    "ddp": with_ddp,
    "fabric": with_fabric,
    "accelerate": with_accelerate,
    "fully_shard": sharded,
}


def draw(number: int, seed: int) -> Tensor:
    return torch.randn(number, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def micro_batches(rank: int, size: int, accumulate: int, step: int) -> Iterator[Tensor]:
    """This process's shares of a step's batch."""
    return iter(draw(GLOBAL_BATCH, step)[rank::size].chunk(accumulate))


def network_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    leaky = LeakyResNet(6, 2, width=6, num_layers=4, effective_depth=2.0)
    return (leaky if kind == "leaky" else Net()).double()


def trained(
    kind: str, kit: Callable[[nn.Module], Wrapped], rank: int = 0, size: int = 1, accumulate: int = 1
) -> dict[str, Any]:
    """Readings of every second step and step-sizes of every step, in a loop by hand, and a reading of a data set."""
    network = network_of(kind)
    model, optimizer, backward = kit(network)
    hook = StepSizeHook(model, every_n_steps=2).attach(optimizer) if kind == "leaky" else None
    weight_decay = LAMBDA if kind == "leaky" else None
    monitor = PathMonitor(
        model, every_n_steps=2, optimizer=optimizer, quantities=QUANTITIES[kind], weight_decay=weight_decay
    )
    readings, step_sizes = [], []
    for step in range(NUM_STEPS):
        for inputs in micro_batches(rank, size, accumulate, step):
            with monitor.batch(inputs, gradient_scale=1 / accumulate):
                backward(model(inputs).square().mean() / accumulate)
        readings += [found.quantities] if (found := monitor.read()) else []
        optimizer.step()
        optimizer.zero_grad()
        step_sizes += [network.step_sizes.clone()] if hook else []
    hook.detach() if hook else None
    evaluated = [data_set(model, sampled(rank, size))]
    evaluated += [] if kit is sharded else [data_set(model, shares(rank, size))]  # it computes on all or on none
    monitor.detach()
    return {"train": readings, "evaluation": evaluated, "step_sizes": step_sizes, "names": monitor.readings.names}


def shares(rank: int, size: int) -> list[tuple[Tensor, None]]:
    """Validation batches without padding: all on the first process, and none on the others."""
    return [(part, None) for part in draw(NUM_VAL, 99).split(3)] if rank == 0 else []


def sampled(rank: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """The share that torch's sampler gives, which repeats samples, and which of them are none."""
    data = draw(NUM_VAL, 99)
    places = torch.tensor(list(DistributedSampler(range(NUM_VAL), size, rank, shuffle=False)))
    return [(data[places], rank + size * torch.arange(len(places)) < NUM_VAL)]


def data_set(model: nn.Module, batches: list[tuple[Tensor, Tensor | None]]) -> dict[str, Tensor]:
    """What a second monitor reads of validation batches; the model is called unwrapped, as DDP wants of uneven ones."""
    monitor = PathMonitor(model, quantities=ENERGIES, evaluation=True)
    inner = getattr(model, "module", model)
    for inputs, fresh in batches:
        with torch.no_grad(), monitor.batch(inputs, fresh=fresh):
            inner(inputs)
    readings = monitor.read()
    monitor.detach()
    assert readings is not None
    return readings.quantities


def weights(rank: int, size: int, watches: bool) -> Tensor:
    """Weights after steps under DDP, read or not."""
    network = network_of("blocks")
    model, optimizer, backward = with_ddp(network)
    monitor = PathMonitor(model, every_n_steps=1 if watches else 100, optimizer=optimizer)
    for step in range(NUM_STEPS):
        (inputs,) = micro_batches(rank, size, 1, step)
        with monitor.batch(inputs) if watches else nullcontext():
            backward(model(inputs).square().mean())
        assert (monitor.read() is not None) == watches
        optimizer.step()
        optimizer.zero_grad()
    monitor.detach()
    return nn.utils.parameters_to_vector(network.parameters())


def loops(rank: int, size: int, folder: Path) -> dict[Any, Any]:
    """All loops by kind of network, kit and number of micro-batches."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    found: dict[Any, Any] = {
        (kind, name, accumulate): trained(kind, kit, rank, size, accumulate)
        for kind in ("leaky", "blocks")
        for name, kit in KITS.items()
        for accumulate in (1, 2)
    }
    found["weights"] = [weights(rank, size, watches) for watches in (True, False)]
    dist.destroy_process_group()
    return found


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What each of two processes finds."""
    return launch(loops, 2, tmp_path_factory.mktemp("loops"))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert values.isfinite().all()
        torch.testing.assert_close(found[name], values, rtol=1e-9, atol=0)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kit", KITS)
@pytest.mark.parametrize("kind", ["leaky", "blocks"])
def test_readings_are_those_of_one_process(processes, kind, kit, accumulate):
    """Of steps, and of data sets that one process has alone or whose sampler repeats samples."""
    expected = trained(kind, plain)
    assert len(expected["train"]) == NUM_STEPS // 2
    for found in processes:
        one = found[kind, kit, accumulate]
        assert one["names"] == expected["names"]
        for reading, other in zip(one["train"], expected["train"], strict=True):
            assert_same(reading, other)
        for reading in one["evaluation"]:
            assert_same(reading, expected["evaluation"][0])


@pytest.mark.parametrize("kit", KITS)
def test_step_sizes_are_the_same_bits_on_all_processes(processes, kit):
    expected = trained("leaky", plain)["step_sizes"]
    first, second = (found["leaky", kit, 1]["step_sizes"] for found in processes)
    assert len(first) == NUM_STEPS
    assert float((first[-1] - 0.25).abs().max()) > 1e-2
    for one, other, alone in zip(first, second, expected, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, alone, rtol=1e-9, atol=0)


def test_a_monitor_leaves_the_weights_under_ddp_bit_equal(processes):
    for found in processes:
        assert torch.equal(*found["weights"])
