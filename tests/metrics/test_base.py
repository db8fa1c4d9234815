"""What every metric promises: exact over batches and processes, and well behaved as a torchmetrics metric."""

import copy
import pickle
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torchmetrics import MetricCollection

from lightning_leaky import metrics
from lightning_leaky.functional import KNorm
from tests.metrics.cases import CASES, as_dict, assert_same_reading, paths, paths_in_batches, random_path

HALVES = (slice(0, 4), slice(4, None))

every_metric = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
every_sequence = pytest.mark.parametrize(
    ("case", "position"),
    [
        pytest.param(case, position, id=f"{key}-{name}")
        for key, case in CASES.items()
        for position, name in enumerate(case.arguments)
    ],
)


def fed(case, path, *batches):
    metric = case.make(path)
    for rows in batches:
        metric.update(*case.batch(path, rows))
    return metric


def test_there_is_a_case_for_every_public_metric():
    cases = {key.split("-")[0] for key in CASES}
    assert cases == set(metrics.__all__) - {"PathReader", "Readings", "SampleMean"}


@every_metric
@settings(max_examples=30)
@given(path=paths())
def test_equals_the_function_on_the_same_tensors(case, path):
    assert_same_reading(case.read(path), case.expected(path))


@every_metric
@settings(max_examples=30)
@given(drawn=paths_in_batches())
def test_any_split_into_batches_equals_one_batch(case, drawn):
    path, batches = drawn
    assert_same_reading(case.read(path, batches), case.read(path))


@every_metric
@settings(max_examples=20)
@given(path=paths(k_norms=(KNorm(),)))
def test_float32_batches_are_summed_in_float64(case, path):
    single = path.map(lambda tensor: tensor.float())._replace(weights=path.weights.float())
    exact = single.map(lambda tensor: tensor.double())._replace(weights=single.weights.double())
    # The momenta are divided by the number of samples in float32, before the metric sees them.
    assert_same_reading(case.read(single), case.read(exact), rtol=1e-5 if "momenta" in case.arguments else 1e-12)


@every_metric
def test_reset_forgets(case):
    path, other = random_path(), random_path(seed=1)
    metric = fed(case, other, slice(None))
    metric.compute()
    metric.reset()
    metric.update(*case.batch(path, slice(None)))
    assert_same_reading(metric.compute(), case.read(path))


@every_metric
def test_forward_returns_the_batch_and_keeps_the_whole(case):
    path, metric = random_path(), case.make(random_path())
    for rows in HALVES:
        assert_same_reading(metric(*case.batch(path, rows)), case.read(path, [rows]))
    assert_same_reading(metric.compute(), case.read(path))


@every_metric
def test_compute_may_be_called_between_batches(case):
    path, metric = random_path(), case.make(random_path())
    for rows in HALVES:
        metric.update(*case.batch(path, rows))
        metric.compute()
    assert_same_reading(metric.compute(), case.read(path))


@every_metric
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda metric: pickle.loads(pickle.dumps(metric))], ids=["deepcopy", "pickle"]
)
def test_a_copy_goes_on_alone(case, copied):
    path = random_path()
    metric = fed(case, path, HALVES[0])
    copy_of_it = copied(metric)
    copy_of_it.update(*case.batch(path, HALVES[1]))
    assert_same_reading(copy_of_it.compute(), case.read(path))
    assert_same_reading(metric.compute(), case.read(path, [HALVES[0]]))


@every_metric
@pytest.mark.parametrize("cast", ["half", "float", "bfloat16"])
def test_casting_leaves_the_sums_in_float64(case, cast):
    path = random_path()
    metric = getattr(fed(case, path, HALVES[0]), cast)()
    metric.update(*case.batch(path, HALVES[1]))
    assert {state.dtype for state in metric.metric_state.values()} == {torch.float64}
    assert_same_reading(metric.compute(), case.read(path))


@every_metric
def test_inputs_are_detached_and_left_alone(case):
    path = random_path().map(lambda tensor: tensor.requires_grad_())
    before = path.representations.detach().clone()
    for values in as_dict(case.read(path)).values():
        assert not values.requires_grad
    assert torch.equal(path.representations, before)


@every_metric
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_layer_spoils_its_own_entry_only(case, value):
    path, spoilt = random_path(num_layers=4), random_path(num_layers=4)
    spoilt.gradients[1, 2, 3] = value
    for name, found in as_dict(case.read(spoilt)).items():
        expected = as_dict(case.read(path))[name]
        if "momenta" in case.arguments:
            check_that_only_layer_is_spoilt(found, expected, layers=[1])
        else:
            torch.testing.assert_close(found, expected)

    spoilt = random_path(num_layers=4)
    spoilt.representations[1, 2, 3] = value
    for name, found in as_dict(case.read(spoilt)).items():
        if found.ndim == 0:
            assert not found.isfinite()
            continue
        # A_1 is where layer 2 is read, and where layer 1 arrives.
        arrives = name in ("kinetic_energy", "cross_term", "lagrangian", "energy_hamiltonian", "speed")
        arrives |= name == "value" and case.arguments == ("previous", "current")
        alone = name == "momentum_norm"
        layers = [] if alone else [0, 1] if arrives else [1]
        check_that_only_layer_is_spoilt(found, as_dict(case.read(path))[name], layers)


def check_that_only_layer_is_spoilt(found, expected, layers):
    kept = [layer for layer in range(len(expected)) if layer not in layers]
    assert not found[layers].isfinite().any()
    torch.testing.assert_close(found[kept], expected[kept], rtol=1e-12, atol=0)


@every_sequence
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda matrices: matrices[:-1], "` must hold one matrix for each of 3 layers, got 2"),
        (lambda matrices: [*matrices[:-1], matrices[-1][:, :-1]], r"\[2\]` must have shape \(9, 4\), got \(9, 3\)"),
        (lambda matrices: [*matrices[:-1], matrices[-1][None]], r"\[2\]` must have shape .*, got \(1, 9, 4\)"),
        (
            lambda matrices: [matrices[0].int(), *matrices[1:]],
            r"\[0\]` must be a floating-point tensor, got torch.int32",
        ),
    ],
    ids=["layers", "width", "dimensions", "integers"],
)
def test_bad_matrices_are_named_with_their_layer(case, position, spoil, message):
    path = random_path()
    arguments = list(case.batch(path, slice(None)))
    arguments[position] = spoil(list(arguments[position]))
    with pytest.raises(ValueError, match=f"`{case.arguments[position]}{message}"):
        case.make(path).update(*arguments)


@pytest.mark.parametrize("case", [CASES[key] for key in ("PathEnergies", "PathMomenta-mean")])
def test_both_matrices_of_a_layer_want_the_same_samples(case):
    path = random_path()
    arguments = list(case.batch(path, slice(None)))
    arguments[1] = arguments[1][:, :-1]
    with pytest.raises(ValueError, match=rf"`{case.arguments[1]}\[0\]` must have shape \(9, 4\), got \(8, 4\)"):
        case.make(path).update(*arguments)


@every_metric
def test_an_update_that_is_refused_adds_nothing(case):
    path = random_path()
    metric, arguments = case.make(path), list(case.batch(path, slice(None)))
    arguments[0] = [*arguments[0][:-1], arguments[0][-1][:, :-1]]
    with pytest.raises(ValueError, match="must have shape"):
        metric.update(*arguments)
    for name, state in metric.metric_state.items():
        torch.testing.assert_close(state, case.make(path).metric_state[name], rtol=0, atol=0, equal_nan=True)


@every_metric
@pytest.mark.parametrize("field", ["num_layers", "width"])
@pytest.mark.parametrize("value", [0, -2])
def test_sizes_must_be_positive(case, field, value):
    sizes = {"num_layers": 2, "width": 3, "depth": 1.0, "k_norm": None} | {field: value}
    with pytest.raises(ValueError, match=f"`{field}` must be at least 1, got {value}"):
        case.make(SimpleNamespace(**sizes))


@pytest.mark.parametrize(
    "cls",
    [metrics.PotentialEnergy, metrics.PathEnergies, metrics.KineticEnergy, metrics.PathMomenta, metrics.Hamiltonian],
)
@pytest.mark.parametrize("depth", [-1.0, float("nan")])
def test_bad_effective_depth_is_named_at_once(cls, depth):
    with pytest.raises(ValueError, match=f"`effective_depth`.*got {depth}"):
        cls(2, 3, effective_depth=depth)


# Several processes: the gathering of states replaced by one that knows the other process.


def synced_with(other):
    """A `dist_sync_fn` that gathers each state, in turn, with the same state of another metric; counts its calls."""
    states = iter(other.metric_state.values())
    calls = []

    def gather(state, group=None):
        calls.append(tuple(state.shape))
        return [state, next(states)]

    return gather, calls


def synced(case, path, mine, others):
    gather, calls = synced_with(fed(case, path, *others))
    metric = case.make(path, dist_sync_fn=gather, distributed_available_fn=lambda: True)
    for rows in mine:
        metric.update(*case.batch(path, rows))
    return metric, calls


@every_metric
@settings(max_examples=20)
@given(drawn=paths_in_batches())
def test_two_processes_equal_one(case, drawn):
    """Whatever each has seen, as long as this one has seen something, be it an empty batch."""
    path, batches = drawn
    metric, _ = synced(case, path, batches[::2], batches[1::2])
    assert_same_reading(metric.compute(), case.read(path))


@every_metric
def test_a_process_with_an_empty_batch_reads_what_the_others_saw(case):
    path = random_path()
    metric, _ = synced(case, path, [slice(0, 0)], HALVES)
    assert_same_reading(metric.compute(), case.read(path))


WANTING_WEIGHTS = {"CriticalityResidual", "PathMomenta-mean", "PathMomenta-sum"}


@pytest.mark.parametrize("key", sorted(set(CASES) - WANTING_WEIGHTS))
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_a_process_that_saw_nothing_reads_what_the_others_saw(key):
    """Weights are no data: every process has to give them, if with an empty batch."""
    path = random_path()
    metric, _ = synced(CASES[key], path, [], HALVES)
    assert_same_reading(metric.compute(), CASES[key].read(path))


@every_metric
def test_after_a_sync_each_process_goes_on_alone(case):
    path = random_path()
    metric, _ = synced(case, path, HALVES[:1], HALVES[1:])
    metric.compute()
    local = fed(case, path, HALVES[0]).metric_state
    for name, state in metric.metric_state.items():
        torch.testing.assert_close(state, local[name], rtol=0, atol=0, equal_nan=True)


@every_metric
def test_the_number_of_collectives_does_not_depend_on_the_number_of_layers(case):
    counts = set()
    for num_layers in (1, 4, 32):
        metric, calls = synced(case, random_path(num_layers), HALVES[:1], HALVES[1:])
        metric.compute()
        counts.add(len(calls))
    assert counts == {len(metric.metric_state)}
    assert max(counts) <= 5


def test_a_collection_reads_each_metric_for_itself():
    path = random_path(depth=3.0)
    collection = MetricCollection(
        {key: CASES[key].make(path) for key in ("CostOfIdentity", "PotentialEnergy", "StableRank", "SingularValues")},
        compute_groups=False,
    )
    for rows in HALVES:
        collection.update(path.previous(rows))
    for key, values in collection.compute().items():
        assert_same_reading(values, CASES[key].expected(path))


def test_a_collection_of_energies():
    path = random_path()
    keys = ("KineticEnergy", "CrossTerm", "Lagrangian", "EnergyHamiltonian", "PathLength")
    collection = MetricCollection({key: CASES[key].make(path) for key in keys}, compute_groups=False)
    for rows in HALVES:
        collection.update(path.previous(rows), path.current(rows), path.step_sizes)
    for key, values in collection.compute().items():
        assert_same_reading(values, CASES[key].expected(path))


def test_a_collection_with_compute_groups_tells_each_metric_the_weights():
    """States of metrics with momenta are equal, and weights are no state."""
    path = random_path()
    keys = ("Hamiltonian", "CriticalityResidual", "PathMomenta-mean")
    collection = MetricCollection({key: CASES[key].make(path) for key in keys})
    for scale in (1.0, 2.0):
        collection.reset()
        for rows in HALVES:
            collection.update(path.previous(rows), path.momenta(rows), scale * path.weights)
        alone = CASES["CriticalityResidual"].make(path)
        for rows in HALVES:
            alone.update(path.previous(rows), path.momenta(rows), scale * path.weights)
        found = collection.compute()
        torch.testing.assert_close(found["CriticalityResidual"], alone.compute())
        torch.testing.assert_close(found["criticality_residual"], alone.compute())


@pytest.mark.parametrize("key", sorted(WANTING_WEIGHTS))
def test_weights_are_forgotten_with_the_samples(key):
    path = random_path()
    metric = fed(CASES[key], path, HALVES[0])
    assert metric.weights is not None
    metric.reset()
    assert metric.weights is None


# Figures.

CURVES = {"PathEnergies": 7, "PathMomenta-mean": 4, "PathMomenta-sum": 4}
PLOTTED = {key: case for key, case in CASES.items() if key not in ("PathLength", "SingularValues")}


@pytest.mark.parametrize("key", PLOTTED)
@pytest.mark.parametrize("num_layers", [1, 3])
def test_plot_draws_a_point_a_layer(key, num_layers):
    path = random_path(num_layers)
    metric = fed(CASES[key], path, slice(None))
    figure, axes = metric.plot()
    assert isinstance(figure, Figure)
    assert isinstance(axes, Axes)
    assert len(axes.lines) == CURVES.get(key, 1)
    for line, values in zip(axes.lines, as_dict(metric.compute()).values(), strict=True):
        assert line.get_xdata().tolist() == list(range(1, num_layers + 1))
        assert line.get_ydata().tolist() == values.reshape(-1).tolist()


def test_plot_of_singular_values_has_a_curve_a_rank():
    path = random_path()
    _, axes = fed(CASES["SingularValues"], path, slice(None)).plot()
    assert [len(line.get_xdata()) for line in axes.lines] == [path.num_layers] * path.width


def test_plot_of_a_path_length_is_one_point():
    _, axes = fed(CASES["PathLength"], random_path(), slice(None)).plot()
    assert [len(line.get_xdata()) for line in axes.lines] == [1]


def test_plot_takes_values_and_axes():
    figure = Figure()
    axes = figure.add_subplot()
    assert metrics.CostOfIdentity(3, 4).plot(torch.tensor([1.0, 2.0, 3.0]), ax=axes) == (figure, axes)
    assert axes.lines[0].get_ydata().tolist() == [1.0, 2.0, 3.0]


@every_metric
def test_before_any_update_compute_warns(case):
    """And returns, unless it wants weights."""
    metric = case.make(random_path())
    with pytest.warns(UserWarning, match="before the ``update`` method"), suppress(ValueError):
        metric.compute()


@pytest.mark.parametrize("bad", [torch.tensor(1.0), [1.0]], ids=["scalar", "list"])
def test_what_is_no_matrix_is_named(bad):
    with pytest.raises(ValueError, match=r"`representations\[0\]`"):
        metrics.CostOfIdentity(1, 3).update([bad])
