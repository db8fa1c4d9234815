"""Functions, metrics and `measure_path` on a device: the values of the CPU, and nothing moves without being told to."""

import copy
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_leaky import LeakyResNet, functional, measure_path
from lightning_leaky.functional import KNorm
from tests import references
from tests.functional.readings import READINGS, Reading
from tests.metrics.cases import ALL_ROWS, CASES, PATH_NORMS, Path, as_dict, assert_same_reading, random_path
from tests.references import assert_close
from tests.strategies import Problem, generator_of, normal

RHO = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)

# Beside the readings of one layer: what else there is a reference for. Both routes, as of a `Reading`.
ALONG_THE_PATH = {
    "path_length": Reading(
        lambda p: functional.path_length(p.A, p.V, RHO.to(p.A.device), p.k_norm),
        lambda p: functional.path_length_from_moments(p.moments(), RHO, p.k_norm),
        lambda p: references.path_length(p.A, p.V, RHO, p.k_norm),
        ("representations", "velocities"),
    ),
    "stable_rank": Reading(
        lambda p: functional.stable_rank(p.A),
        lambda p: functional.stable_rank_from_moments(p.A.double().mT @ p.A.double()),
        lambda p: references.stable_rank(p.A),
        ("representation",),
    ),
}


class Stays(TorchDispatchMode):
    """Raises where an operator turns a tensor of a device into a matrix elsewhere: a detour would not show at its end.

    Single numbers may be looked at, as a check of the values does.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if any(map(self._holds, tree_leaves((args, kwargs)))):
            left = [
                one for one in tree_leaves(made) if isinstance(one, Tensor) and one.ndim > 1 and not self._holds(one)
            ]
            assert not left, f"{func} makes a matrix of shape {tuple(left[0].shape)} on {left[0].device}"
        return made

    def _holds(self, value):
        return isinstance(value, Tensor) and value.device.type == self.device.type


@contextmanager
def about(name):
    """Say which of many cases an error is about."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error


def layers(num_samples, k_norm) -> Problem:
    """Three layers of width 6."""
    generator = generator_of(0)
    A, V, B = (normal(3, num_samples, 6, generator=generator) for _ in range(3))
    return Problem(A, V, B, normal(3, 6, 6 + k_norm.constant_column, generator=generator), 2.0, k_norm)


def functions_equal_the_references(device, dtype):
    """Every reading by every route and norm, where samples are fewer and more than neurons."""
    for k_norm in PATH_NORMS:
        for problem in (layers(4, k_norm).to(dtype), layers(40, k_norm).to(dtype)):
            for name, reading in (READINGS | ALONG_THE_PATH).items():
                for route in (reading.from_tensors, reading.from_moments):
                    with about(f"{name}, {k_norm}, N = {problem.A.shape[-2]}"):
                        _equals_the_reference(route, reading.reference, problem, device)


def _equals_the_reference(route, reference, problem, device):
    moved = problem.to(device)
    with Stays(device):
        found = route(moved)
    assert found.device == moved.A.device, f"is on {found.device}"
    assert_close(found.cpu(), reference(problem.to(torch.float64)))


def derivatives_equal_those_of_the_cpu(device):
    """Of every reading, with respect to the representations."""
    for name, reading in READINGS.items():
        gradients = []
        for place in (torch.device("cpu"), device):
            problem = layers(40, KNorm()).to(place)
            problem.A.requires_grad_()
            gradients += torch.autograd.grad(reading.from_tensors(problem).sum(), problem.A)
        with about(name):
            assert gradients[1].device.type == device.type
            torch.testing.assert_close(gradients[1].cpu(), gradients[0], rtol=1e-8, atol=1e-8)


def metrics_equal_those_of_the_cpu(device, dtype):
    """In batches, by `update` and by `forward`, after a reset, and moved between two batches in either direction."""
    for name, case in CASES.items():
        for k_norm in PATH_NORMS:
            with about(f"{name}, {k_norm}"):
                _metric_equals_that_of_the_cpu(case, random_path(num_samples=40, k_norm=k_norm), device, dtype)


def _metric_equals_that_of_the_cpu(case, path, device, dtype):
    first, second, host = slice(0, 15), slice(15, None), torch.device("cpu")
    there, here = _on(path, device, dtype), _on(path, host, dtype)
    # Both add the same float32 numbers in float64; only momenta are divided in float32 before.
    rtol = 1e-5 if dtype == torch.float32 and "momenta" in case.arguments else 1e-9
    expected = case.read(here)

    metric = case.make(path).to(device)
    metric.update(*case.batch(there, second))
    metric.reset()
    assert {state.device.type for state in metric.metric_state.values()} == {device.type}, "states left the device"
    metric.update(*case.batch(there, first))
    of_batch = metric(*case.batch(there, second))
    whole = metric.compute()
    for values in (*as_dict(of_batch).values(), *as_dict(whole).values()):
        assert values.device.type == device.type, f"is on {values.device}"
    assert_same_reading(_on_cpu(of_batch), case.read(here, [second]), rtol)
    assert_same_reading(_on_cpu(whole), expected, rtol)

    metric = case.make(path)  # a metric takes batches from anywhere to where it is
    metric.update(*case.batch(there, ALL_ROWS))
    assert_same_reading(metric.compute(), expected, rtol)
    for start, end in ((device, host), (host, device)):
        metric = case.make(path).to(start)
        metric.update(*case.batch(_on(path, start, dtype), first))
        metric.to(end).update(*case.batch(_on(path, end, dtype), second))
        assert_same_reading(_on_cpu(metric.compute()), expected, rtol)


def _on(path, device, dtype) -> Path:
    moved = path.map(lambda tensor: tensor.to(device, dtype))
    return moved._replace(weights=path.weights.to(device, dtype), step_sizes=path.step_sizes.to(device))


def _on_cpu(values):
    return {name: value.cpu() for name, value in as_dict(values).items()}


def measured_paths_equal_those_of_the_cpu(device, form):
    """Every quantity, over batches of unequal size; the network stays where it is."""
    torch.manual_seed(0)
    network = LeakyResNet(3, 2, width=6, num_layers=4, effective_depth=2.0).double()
    batches = [(torch.randn(size, 3).double(), torch.randn(size, 2).double()) for size in (30, 11)]
    settings = {"cost": torch.nn.functional.mse_loss, "weight_decay": 0.1, "form": form}
    expected = measure_path(network, batches, **settings)
    moved = copy.deepcopy(network).to(device)
    found = measure_path(moved, [tuple(tensor.to(device) for tensor in batch) for batch in batches], **settings)
    assert len(found.quantities) == len(expected.quantities) == 12, "not every quantity was read"
    assert_same_reading(found.quantities, expected.quantities, rtol=1e-9)
    assert {tensor.device.type for tensor in (*moved.parameters(), *moved.buffers())} == {device.type}
