"""CurvatureRecorder: sums over passes, of whole paths in training mode only."""

import pytest
import torch

from lightning_leaky.refining import discretisation_errors
from lightning_leaky.refining.curvature import CurvatureRecorder
from lightning_leaky.refining.mesh import discretisation_errors_of


@pytest.fixture
def recorded(make_network):
    """A network on an uneven mesh and its recorder, armed."""
    network = make_network(step_sizes=[0.1, 0.2, 0.3, 0.4]).double()
    recorder = CurvatureRecorder(network).attach()
    recorder.armed = True
    return network, recorder


def inputs_of(num_samples):
    return torch.randn(num_samples, 3, dtype=torch.float64)


def test_passes_add_up_to_one_of_all_samples(recorded):
    network, recorder = recorded
    inputs = inputs_of(9)
    network(inputs[:2])
    network(inputs[2:])
    found = discretisation_errors_of(recorder.squares, network.step_sizes)
    recorder.armed = False
    torch.testing.assert_close(
        found, discretisation_errors(network.representations(inputs).detach(), network.step_sizes)
    )


def test_disarmed_and_evaluation_passes_do_not_count(recorded):
    network, recorder = recorded
    network(inputs_of(3))
    before = recorder.squares.clone()
    assert bool((before[:, 1:] > 0).all())
    network.eval()
    network(inputs_of(3))
    network.train()
    recorder.armed = False
    network(inputs_of(3))
    assert torch.equal(recorder.squares, before)
    recorder.clear()
    assert not recorder.squares.any()


def test_layers_that_do_not_follow_one_another_are_not_compared(recorded):
    """Of a pass that broke off, or one that leaves layers out."""
    network, recorder = recorded
    hidden, rho = torch.randn(3, 6, dtype=torch.float64), network.step_sizes
    for index in (0, 1, 3, 0, 2):
        network.layers[index](hidden, rho[index])
    assert (recorder.squares[0] > 0).tolist() == [False, True, False, False]
    assert (recorder.squares[1] > 0).all()


def test_float32_passes_are_summed_in_float64(make_network):
    network = make_network()
    recorder = CurvatureRecorder(network).attach()
    recorder.armed = True
    network(torch.randn(3, 3))
    assert recorder.squares.dtype == torch.float64
    recorder.detach()
    before = recorder.squares.clone()
    network(torch.randn(3, 3))
    assert torch.equal(recorder.squares, before)
