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
from tests.metrics.cases import CASES
from tests.metrics.paths import DEFAULT_MEASURES, EVERYTHING, MEASURES, Path, assert_same_reading, random_path
from tests.references import assert_close
from tests.strategies import Problem

RHO = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)

# Beside the readings of one layer: what else there is a reference for.
ALONG_THE_PATH = {
    "path_length": Reading(
        lambda p: functional.path_length(p.A, p.V, RHO.to(p.A.device), p.k_norm, p.S),
        lambda p: references.path_length(p.V, p.features, RHO, p.k_norm),
        ("representations", "velocities", "features"),
    ),
    "stable_rank": Reading(
        lambda p: functional.stable_rank(p.A), lambda p: references.stable_rank(p.A), ("representation",)
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


def layers(num_samples, k_norm, feature_map=None) -> Problem:
    """Three layers of width 6, with the features that functions form by themselves where no others are named."""
    fields = {} if feature_map is None else {"feature_map": feature_map}
    problem = random_path(3, num_samples, width=6, k_norm=k_norm, **fields).problem()
    return problem._replace(S=None) if feature_map in (None, functional.features) else problem


def functions_equal_the_references(device, dtype):
    """Every reading by every route, norm and features, where samples are fewer and more than neurons."""
    for measure in MEASURES:
        for problem in (layers(4, *measure).to(dtype), layers(40, *measure).to(dtype)):
            for name, reading in (READINGS | ALONG_THE_PATH).items():
                for key, route in reading.routes.items():
                    with about(f"{name} from {key}, {measure}, N = {problem.A.shape[-2]}"):
                        _equals_the_reference(route, reading.reference, problem, device)


def _equals_the_reference(route, reference, problem, device):
    moved = problem.to(device)
    with Stays(device):
        found = route(moved)
    assert found.device == moved.A.device, f"is on {found.device}"
    assert_close(found.cpu(), reference(problem.to(torch.float64)))


def derivatives_equal_those_of_the_cpu(device):
    """Of every reading, with respect to the representations, through the features that are formed of them."""
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
    """Of single quantities, and the reader of everything in each form."""
    for k_norm, feature_map in MEASURES:
        path = random_path(num_samples=40, k_norm=k_norm, feature_map=feature_map)
        for form in ("moments", "samples"):
            with about(f"reader, {form}, {k_norm}, {feature_map}"):
                _reader_equals_that_of_the_cpu(path, form, device, dtype)
    for k_norm, _ in DEFAULT_MEASURES:
        for name, case in CASES.items():
            with about(f"{name}, {k_norm}"):
                _metric_equals_that_of_the_cpu(case, random_path(num_samples=40, k_norm=k_norm), device, dtype)


FIRST, SECOND, HOST = slice(0, 15), slice(15, None), torch.device("cpu")


def _reader_equals_that_of_the_cpu(path, form, device, dtype):
    there, here = _on(path, device, dtype), _on(path, HOST, dtype)
    reader = there.feed(there.reader(EVERYTHING, form), [FIRST, SECOND])
    assert reader.stores[0].device.type == device.type, "sums or samples left the device"
    expected = here.read(EVERYTHING, form, batches=[FIRST, SECOND]).quantities
    # Samples in float32 are measured in products of float32.
    rtol = 1e-6 if form == "samples" and dtype == torch.float32 else 1e-9
    assert_same_reading(reader.compute(weights=path.weights).quantities, expected, rtol)


def _metric_equals_that_of_the_cpu(case, path, device, dtype):
    """In batches, by `update` and by `forward`, after a reset, and moved between two batches in either direction."""
    there, here = _on(path, device, dtype), _on(path, HOST, dtype)
    # Both add the same float32 numbers in float64; only momenta are divided in float32 before.
    rtol = 1e-5 if dtype == torch.float32 and case.key == "hamiltonian" else 1e-9

    metric = case.make(path).to(device)
    metric.update(**case.batch(there, SECOND))
    metric.reset()
    assert {state.device.type for state in metric.metric_state.values()} == {device.type}, "states left the device"
    metric.update(**case.batch(there, FIRST))
    of_batch, whole = metric(**case.batch(there, SECOND)), metric.compute()
    assert {of_batch.device.type, whole.device.type} == {device.type}, "values left the device"
    case.assert_reads(of_batch.cpu(), here, SECOND, rtol)
    case.assert_reads(whole.cpu(), here, rtol=rtol)

    case.assert_reads(case.fed(there, FIRST, SECOND).compute(), here, rtol=rtol)  # from anywhere to where it is
    for start, end in ((device, HOST), (HOST, device)):
        metric = case.make(path).to(start)
        metric.update(**case.batch(_on(path, start, dtype), FIRST))
        metric.to(end).update(**case.batch(_on(path, end, dtype), SECOND))
        case.assert_reads(metric.compute().cpu(), here, rtol=rtol)


def _on(path, device, dtype) -> Path:
    moved = path.map(lambda tensor: tensor.to(device, dtype))
    return moved._replace(step_sizes=path.step_sizes.to(device))


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
