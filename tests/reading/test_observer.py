"""`measure_path`: readings without a trainer, of a network left as it was."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_leaky import EnergyMonitor, KNorm, Quantity, measure_path
from lightning_leaky.paths.block_path import path_of
from lightning_leaky.paths.leaky_path import knows_weights
from lightning_leaky.reading.observer import PathObserver
from lightning_leaky.reading.passed_batch import Batch
from lightning_leaky.reading.settings import ReadingSettings
from tests.callbacks.helpers import ALL, MOMENTA, OF_PARAMETERS, readings_by_hand

COST = ReadingSettings(["cost_of_identity"])


@pytest.fixture
def module(make_module):
    return make_module(step_sizes=[0.125, 0.25, 0.375, 0.25]).double()


@pytest.fixture
def batch():
    return torch.randn(11, 3).double(), torch.randn(11, 2).double()


def assert_readings(readings, expected):
    for name, values in readings.quantities.items():
        torch.testing.assert_close(values, expected[name].detach(), rtol=1e-10, atol=1e-10)


def test_reads_what_the_functions_say(module, batch):
    readings = measure_path(module, [batch], cost=module.cost, weight_decay=0.1)
    assert set(readings.quantities) == set(ALL)
    assert_readings(readings, readings_by_hand(module, *batch))
    torch.testing.assert_close(readings.positions, torch.tensor([0.0, 0.125, 0.375, 0.75]).double())


def test_a_data_set_of_inputs_alone_comes_in_lists_of_one(module, batch):
    assert_readings(measure_path(module.network, [[batch[0]]]), readings_by_hand(module, *batch))
    with pytest.raises(ValueError, match="`batches` must hold inputs, or pairs"):
        measure_path(module.network, [(batch[0], batch[1], batch[1])])


def test_batches_of_any_size_add_up(module, batch):
    inputs, targets = batch
    parts = list(zip(inputs.split([4, 6, 1]), targets.split([4, 6, 1]), strict=True))
    readings = measure_path(module, parts, cost=module.cost, weight_decay=0.1)
    assert_readings(readings, readings_by_hand(module, *batch))


def test_a_network_on_its_own_with_bare_inputs(module, batch):
    readings = measure_path(module.network, [batch[0]])
    assert set(readings.quantities) == set(ALL) - {*OF_PARAMETERS, *MOMENTA}
    assert_readings(readings, readings_by_hand(module, *batch))


@pytest.mark.parametrize(
    ("settings", "k_norm"),
    [({"gamma": 0.5}, KNorm(0.5)), ({"gamma_rel": 0.1}, KNorm(None, 0.1)), ({"gamma": 0.0}, KNorm(0.0))],
)
def test_the_stabiliser_is_the_one_asked_for(module, batch, settings, k_norm):
    readings = measure_path(module, [batch], ["cost_of_identity", "kinetic_energy"], **settings)
    assert_readings(readings, readings_by_hand(module, *batch, k_norm))


def test_the_networks_own_features_are_used(make_module, batch):
    """Without the constant column and with another activation."""
    module = make_module(constant_column=False, activation="tanh").double()
    readings = measure_path(module, [batch], ["cost_of_identity"], gamma=0.5)
    previous = module.network.representations(batch[0])[:-1].detach()
    kernel = previous.tanh() @ previous.tanh().mT + 0.5 * torch.eye(len(previous[0])).double()
    expected = (previous * torch.linalg.solve(kernel, previous)).sum((1, 2))
    torch.testing.assert_close(readings["cost_of_identity"], expected)


def test_only_the_quantities_asked_for(module, batch):
    readings = measure_path(module, [batch], ["stable_rank", "hamiltonian"], module.cost, weight_decay=0.1)
    assert list(readings.quantities) == ["stable_rank", "hamiltonian"]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(module, batch, hooks_of, training):
    module.train(training)
    module.loss(module(batch[0]), batch[1]).backward()
    gradients = [parameter.grad.clone() for parameter in module.parameters()]
    weights = [parameter.detach().clone() for parameter in module.parameters()]
    random_state = torch.get_rng_state()
    measure_path(module, [batch, batch], cost=module.cost, weight_decay=0.1)
    assert module.training is training
    assert module.network.layers[0].training is training
    assert hooks_of(module) == 0
    assert all(torch.equal(parameter.grad, old) for parameter, old in zip(module.parameters(), gradients, strict=True))
    assert all(map(torch.equal, module.parameters(), weights))
    assert torch.equal(torch.get_rng_state(), random_state)


def test_no_gradients_appear_where_there_were_none(module, batch):
    measure_path(module, [batch], cost=module.cost, weight_decay=0.1)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_model_is_read_in_evaluation_mode(make_network):
    model = nn.Sequential(nn.Dropout(0.9), make_network())
    inputs = torch.randn(11, 3)
    whole = measure_path(model[1], [inputs])
    assert torch.equal(measure_path(model, [inputs])["cost_of_identity"], whole["cost_of_identity"])


def test_parts_keep_modes_of_their_own(make_network):
    """A batch norm that somebody has frozen in a model that trains."""
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(), make_network())
    model[0].eval()
    modes = [part.training for part in model.modules()]
    measure_path(model, [torch.randn(11, 3)])
    assert [part.training for part in model.modules()] == modes
    assert not model[0].training


def test_a_residual_of_layers_without_weights_of_a_path_is_refused():
    blocks = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    arguments = {"cost": nn.functional.mse_loss, "weight_decay": 0.1, "layers": "*"}
    with pytest.raises(ValueError, match='`quantities` cannot include "criticality_residual"'):
        measure_path(blocks, [(torch.randn(5, 3), torch.randn(5, 3))], ["criticality_residual"], **arguments)


def test_an_error_leaves_no_hooks_and_the_mode(module, batch, hooks_of):
    module.train()
    with pytest.raises(RuntimeError):
        measure_path(module, [batch, (torch.randn(5, 7).double(), None)])
    assert hooks_of(module) == 0
    assert module.training


def test_a_frozen_network_reads_its_momenta(module, batch):
    """Layers of a network without trainable layers still have ∂C/∂A_l."""
    expected = readings_by_hand(module, *batch)
    module.network.layers.requires_grad_(False)
    readings = measure_path(module, [batch], MOMENTA, module.cost, weight_decay=0.1)
    assert_readings(readings, expected)


def test_measuring_inside_no_grad_works(module, batch):
    expected = readings_by_hand(module, *batch)
    with torch.no_grad():
        assert_readings(measure_path(module, [batch], ALL, module.cost, weight_decay=0.1), expected)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("batches", {"batches": []}),
        ("quantities", {"quantities": ["energy"]}),
        ("quantities", {"quantities": []}),
        ("cost", {"quantities": ["hamiltonian"], "weight_decay": 0.1}),
        ("weight_decay", {"quantities": ["hamiltonian"], "cost": nn.functional.mse_loss}),
        ("weight_decay", {"quantities": ["hamiltonian"], "cost": nn.functional.mse_loss, "weight_decay": 0.0}),
        ("gamma", {"gamma": -1.0}),
    ],
)
def test_wrong_arguments_are_named(module, batch, name, arguments):
    with pytest.raises(ValueError, match=f"`{name}`"):
        measure_path(module, **({"batches": [batch]} | arguments))


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ValueError, match="No layers are read"):
        measure_path(nn.Linear(3, 3), [torch.randn(4, 3)])


def test_it_reads_what_the_monitor_reads(make_module, make_data, make_trainer):
    """Two ways to the same numbers: the validation readings of a trainer."""
    module, data, monitor = make_module(), make_data(batch_size=4), EnergyMonitor(precision="high")
    make_trainer(monitor).validate(module, datamodule=data, verbose=False)
    readings = measure_path(module, data.val_dataloader())
    for name, values in monitor.readings["validate"].quantities.items():
        torch.testing.assert_close(values, readings[name])


def test_an_unarmed_observer_sees_nothing(make_network):
    network = make_network()
    observer = PathObserver(network, network, COST).attach()
    network(torch.randn(5, 3))
    assert not any(map(observer.capture.passages[0].ran, range(len(network.layers))))
    assert observer.compute() is None


def test_a_reset_forgets_every_batch(make_network):
    network, batch = make_network(), torch.randn(5, 3)
    observer = PathObserver(network, network, COST).attach()
    for inputs in (100 * torch.randn(5, 3), batch):
        observer.reset()
        observer.arm()
        network(inputs)
        observer.drain()
    expected = measure_path(network, [batch], ["cost_of_identity"], precision="default")
    assert torch.equal(observer.compute()["cost_of_identity"], expected["cost_of_identity"])


@pytest.mark.parametrize("failing_layer", range(3))
def test_a_batch_that_fails_in_one_layer_stays_in_none(failing_layer):
    """Layers of different samples would be compared: the reading is of what comes afterwards, and that is said."""
    torch.manual_seed(0)
    model, odd = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), []
    batches = [torch.randn(number, 4) for number in (20, 7, 20)]

    def size(previous, current):
        odd.extend([None] * (len(previous) == 7))
        if len(previous) == 7 and len(odd) > failing_layer:
            raise RuntimeError("an odd batch")
        return previous.abs().sum()[None]

    def read(some):
        quantity = Quantity("size", lambda sums: sums.own[:, 0], "own", sums=size)
        settings = ReadingSettings(
            ["cost_of_identity", quantity], exact=True
        )  # so that batches are summed as they come
        observer = PathObserver(model, path_of(model, "*"), settings).attach()
        for batch in some:
            observer.arm()
            model(batch)
            observer.drain()
        return observer.compute()

    with pytest.warns(
        UserWarning, match="an odd batch; some layers have this batch .* so all batches so far are forgot"
    ):
        found = read(batches)
    last = read(batches[2:])
    for key in ("cost_of_identity", "size"):
        torch.testing.assert_close(found[key], last[key], rtol=1e-12, atol=0)


@pytest.mark.parametrize("frozen", ["network.layers", "network"])
def test_frozen_parameters_do_not_stop_the_gradients(module, batch, frozen):
    expected = measure_path(module, [batch], cost=module.cost, weight_decay=0.1)
    module.get_submodule(frozen).requires_grad_(False)
    found = measure_path(module, [batch], cost=module.cost, weight_decay=0.1)
    of_others = {key: values for key, values in expected.quantities.items() if key not in OF_PARAMETERS}
    torch.testing.assert_close(found.quantities, of_others, rtol=1e-12, atol=1e-12)


def test_repeats_that_cannot_be_told_are_read_with_a_warning(module, batch):
    observer = PathObserver(module.network, module.network, COST).attach()
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            observer.arm(Batch(batch, fresh=torch.tensor([True, True, False])))
            module(batch[0])
            observer.drain()
    readings = observer.compute()
    observer.detach()
    assert not caught, "a second time"
    twice = measure_path(module.network, [batch[0], batch[0]], ["cost_of_identity"])
    torch.testing.assert_close(readings["cost_of_identity"], twice["cost_of_identity"], rtol=1e-5, atol=0)


def test_a_layer_that_is_left_out_may_have_any_axes():
    """Where samples repeat, only layers that are read must say where their batch is."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Unflatten(1, (1, 1, 1, 1, 6)))
    observer = PathObserver(model, path_of(model, lambda name, module: bool(name)), COST).attach()
    inputs = torch.randn(4, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        observer.arm(Batch(inputs, fresh=torch.tensor([True, True, True, False])))
        model(inputs)
        observer.drain()
    observer.detach()
    expected = measure_path(model[:2], [inputs[:3]], ["cost_of_identity"], layers="*")
    torch.testing.assert_close(observer.compute()["cost_of_identity"], expected["cost_of_identity"])


def test_weights_are_no_path_s_that_only_has_a_parameter_of_the_name(module):
    """Nor of one whose layers are not all its own."""
    assert knows_weights(module.network)
    module.network.layers[0] = nn.Linear(6, 6)
    assert not knows_weights(module.network)
    layers = [module.network.layers[1]]
    assert not knows_weights(SimpleNamespace(layers=layers, weights=nn.Parameter(torch.ones(1))))


@pytest.mark.parametrize("other", [{"features": "linear"}, {"features": "crelu"}, {"constant_column": False}])
def test_weights_are_compared_with_the_features_that_they_act_on_only(module, batch, other):
    """With others the residual would be a number that says nothing."""
    arguments = {"cost": module.cost, "weight_decay": 0.1}
    found = measure_path(module, [batch], **arguments, **other)
    assert not {"criticality_residual", "hamiltonian"} & set(found.quantities)
    with pytest.raises(ValueError, match=r"`features` must be those of the path to read \"criticality_residual\""):
        measure_path(module, [batch], ["criticality_residual"], **arguments, **other)
    own = measure_path(module, [batch], ["criticality_residual"], features="relu", constant_column=True, **arguments)
    expected = measure_path(module, [batch], ["criticality_residual"], **arguments)
    assert torch.equal(own["criticality_residual"], expected["criticality_residual"])


def test_features_may_be_an_import_path():
    settings = ReadingSettings(features="torch.nn.functional.softplus")
    assert settings.features is torch.nn.functional.softplus
    A = torch.randn(5, 4)
    found = measure_path(
        nn.Sequential(nn.Identity()), [A], ["cost_of_identity"], layers="*", features=settings.features
    )
    named = measure_path(
        nn.Sequential(nn.Identity()), [A], ["cost_of_identity"], layers="*", features="torch.nn.functional.softplus"
    )
    assert torch.equal(found["cost_of_identity"], named["cost_of_identity"])
    with pytest.raises(ValueError, match=r"`features` must be one of .* or a function, got 'torch\.no_such'"):
        ReadingSettings(features="torch.no_such")
