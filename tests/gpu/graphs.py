"""Compiled and captured networks: hooks fit into both, and step-sizes that change in place are seen."""

import copy
from contextlib import contextmanager
from typing import Any

import torch
from torch._dynamo.testing import CompileCounterWithBackend

from lightning_leaky import LeakyResNet, StepSizeHook
from lightning_leaky.functional import irregular_step_sizes
from lightning_leaky.metrics import QUANTITIES
from lightning_leaky.reading.observer import PathObserver
from lightning_leaky.reading.settings import ReadingSettings
from tests.gpu.fits import assert_near, fit, small


def compiled_networks_read_as_eager_ones(device):
    """By inductor, in as many graphs as there are kinds of steps, however many steps there are."""
    counter = CompileCounterWithBackend("inductor")
    _reads_as_the_eager_one(device, backend=counter)
    # Steps that the monitor reads, the adapter's first step, which makes its sums, and its later ones.
    assert counter.frame_count == 3, f"{counter.frame_count} graphs"


def networks_compiled_to_cuda_graphs_read_as_eager_ones(device):
    """Where replays run no Python, the last of which is compared: of each graph it is the third run."""
    _reads_as_the_eager_one(device, mode="reduce-overhead")


def _reads_as_the_eager_one(device, **how):
    # The monitor reads every even step, the adapter follows every odd one.
    settings = {"precision": "64-true", "limit_val_batches": 0, "log_every_n_steps": 2}
    eager, module = fit(small(), device, **settings), small()
    torch._dynamo.reset()
    module.network.compile(fullgraph=True, **how)
    compiled = fit(module, device, **settings)
    (expected, found) = (one.recorder.readings[-1] for one in (eager, compiled))
    assert found is not None, "nothing was read"
    assert_near(found.quantities, expected.quantities, 1e-6)
    torch.testing.assert_close(compiled.step_sizes, eager.step_sizes, rtol=1e-6, atol=0)


class Watched:
    """A network with the hooks of a monitor and an adapter, none of which is to be armed, and a batch for it."""

    def __init__(self, device: torch.device) -> None:
        torch.manual_seed(0)
        self.network = LeakyResNet(3, 2, width=6, num_layers=4, effective_depth=2.0).to(device)
        self.twin = copy.deepcopy(self.network)
        self.inputs = torch.randn(24, 3, device=device)
        optimizer = torch.optim.Adam(self.network.parameters())
        self.hooks: list[Any] = [
            PathObserver(self.network, self.network, ReadingSettings(list(QUANTITIES), weight_decay=0.1)).attach(),
            StepSizeHook(self.network, start_step=1000).attach(optimizer),
        ]

    def set_step_sizes(self, step_sizes) -> None:
        for network in (self.network, self.twin):
            network.set_step_sizes(step_sizes)

    def assert_follows_the_twin(self, replay) -> None:
        """Outputs and gradients of a replay are those of a network that is not captured, before and after a change."""
        found = []
        for step_sizes in ([0.25] * 4, irregular_step_sizes(4), [0.1, 0.2, 0.3, 0.4]):
            self.set_step_sizes(step_sizes)
            outputs, expected = replay(), backward(self.twin, self.inputs)
            torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)
            for parameter, other in zip(self.network.parameters(), self.twin.parameters(), strict=True):
                torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-5)
            found.append(outputs.detach().clone())
        assert not torch.allclose(found[0], found[1]), "outputs do not depend on the step-sizes"


def backward(network, inputs):
    """A forward and a backward pass that leave the gradients of this batch alone; its outputs."""
    network.zero_grad(set_to_none=True)
    outputs = network(inputs)
    outputs.square().sum().backward()
    return outputs


def captured_passes_see_new_step_sizes(device):
    """`torch.cuda.graph` around forward and backward."""
    watched = Watched(device)
    # A capture wants the first passes, which allocate and choose kernels, on a stream of their own.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            backward(watched.network, watched.inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    watched.network.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        outputs = watched.network(watched.inputs)
        outputs.square().sum().backward()

    def replay():
        graph.replay()
        return outputs

    watched.assert_follows_the_twin(replay)


def graphed_callables_see_new_step_sizes(device):
    """`torch.cuda.make_graphed_callables` of the network."""
    watched = Watched(device)
    graphed = torch.cuda.make_graphed_callables(watched.network, (watched.inputs,))
    watched.assert_follows_the_twin(lambda: backward(graphed, watched.inputs))


def hooks_that_are_not_armed_do_not_synchronise(device):
    """Nor does the network: the processor runs ahead of the device as it would without hooks."""
    watched = Watched(device)
    backward(watched.network, watched.inputs)  # the first pass sets up libraries
    with no_synchronisation():
        backward(watched.network, watched.inputs)
    try:
        with no_synchronisation():
            watched.inputs.sum().item()
    except RuntimeError:
        return
    raise AssertionError("torch does not notice a synchronisation, so that this check says nothing")


@contextmanager
def no_synchronisation():
    """Let torch raise where the processor waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
