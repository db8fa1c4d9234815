"""The metrics of single quantities: exact, and well behaved as metrics of torchmetrics."""

import copy
import pickle
from collections import ChainMap

import pytest
import torch
from hypothesis import given, settings
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import MetricCollection

from lightning_leaky.functional import KNorm
from lightning_leaky.metrics import CostOfIdentity, Hamiltonian, KineticEnergy, StableRank
from tests.metrics.cases import CASES
from tests.metrics.paths import ALL_ROWS, DEFAULT_MEASURES, HALVES, paths_in_batches, random_path

every_metric = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@every_metric
@settings(max_examples=40)
@given(drawn=paths_in_batches(measures=DEFAULT_MEASURES))
def test_equals_the_function_over_any_batches(case, drawn):
    path, batches = drawn
    case.assert_reads(case.fed(path, *batches).compute(), path)


@every_metric
def test_forward_returns_the_batch_and_keeps_the_whole(case):
    path = random_path()
    metric = case.fed(path, slice(0, 2))
    metric.reset()
    for rows in HALVES:
        case.assert_reads(metric(**case.batch(path, rows)), path, rows)
        metric.compute()
    case.assert_reads(metric.compute(), path)


@every_metric
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda metric: pickle.loads(pickle.dumps(metric))])
def test_a_copy_goes_on_alone(case, copied):
    path = random_path()
    metric = case.fed(path, HALVES[0])
    twin = copied(metric)
    twin.update(**case.batch(path, HALVES[1]))
    case.assert_reads(twin.compute(), path)
    case.assert_reads(metric.compute(), path, HALVES[0])


@every_metric
@pytest.mark.parametrize("cast", ["half", "float", "bfloat16", "to"])
def test_a_cast_of_the_module_leaves_the_sums_in_float64(case, cast):
    path = random_path()
    metric = case.fed(path, HALVES[0])
    module = nn.ModuleDict({"metric": metric})
    module.to(torch.bfloat16) if cast == "to" else getattr(module, cast)()
    metric.update(**case.batch(path, HALVES[1]))
    assert {state.dtype for state in metric.metric_state.values()} == {torch.float64}
    case.assert_reads(metric.compute(), path)


@every_metric
def test_values_of_float32_inputs_have_no_graph_and_lists_are_as_good_as_tensors(case):
    path = random_path().map(lambda tensor: tensor.float().requires_grad_())
    stacked = case.fed(path, ALL_ROWS).compute()
    listed = case.make(path)
    listed.update(**{name: value if name == "step_sizes" else list(value) for name, value in batch_of(case, path)})
    assert torch.equal(stacked, listed.compute())
    assert not stacked.requires_grad
    # Momenta are divided by the number of samples in float32, before the metric sees them.
    case.assert_reads(stacked, path.map(Tensor.detach), rtol=1e-5 if case.key == "hamiltonian" else 1e-10)


def batch_of(case, path):
    return case.batch(path, ALL_ROWS).items()


@every_metric
@pytest.mark.parametrize("spoilt", ["first", "last"])
def test_bad_matrices_are_named_with_their_layer_and_nothing_is_added(case, spoilt):
    path = random_path()
    metric, matrices = case.fed(path, ALL_ROWS), dict(batch_of(case, path))
    name = [name for name in matrices if name != "step_sizes"][0 if spoilt == "first" else -1]
    before = {key: state.clone() for key, state in metric.metric_state.items()}
    for bad, message in (
        (matrices[name][:-1], "must hold one matrix for each of 3 layers, got 2"),
        ([*matrices[name], matrices[name][0]], "must hold one matrix for each of 3 layers, got 4"),
        ([*matrices[name][:-1], matrices[name][-1][:, 1:]], None),
        ([*matrices[name][:-1], matrices[name][-1].int()], None),
        ([*matrices[name][:-1], [1.0]], None),
    ):
        with pytest.raises(ValueError, match=f"`{name}` {message}" if message else rf"`{name}\[2\]` must be"):
            metric.update(**(matrices | {name: bad}))
    for key, state in metric.metric_state.items():
        assert torch.equal(state, before[key])


@pytest.mark.parametrize(
    ("step_sizes", "message"),
    [(torch.tensor([0.5, 0.5]), r"must have shape \(3,\)"), (torch.tensor([0.5, 0.5, 0.0]), "must be positive")],
)
def test_bad_step_sizes_are_named_and_nothing_is_added(step_sizes, message):
    path = random_path()
    metric = CASES["KineticEnergy"].fed(path, ALL_ROWS)
    with pytest.raises(ValueError, match=f"`step_sizes` {message}"):
        metric.update(path.previous(), path.current(), step_sizes)
    CASES["KineticEnergy"].assert_reads(metric.compute(), path)


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (CostOfIdentity, (0, 3), "`num_layers` must be at least 1, got 0"),
        (StableRank, (2, -2), "`width` must be at least 1, got -2"),
        (KineticEnergy, (2, 3, -1.0), "`effective_depth` .*got -1.0"),
        (Hamiltonian, (2, 3, float("nan")), "`effective_depth` .*got nan"),
        (Hamiltonian, (2, 3, 1.0, "none"), '`loss_reduction` must be "mean" or "sum", got \'none\''),
    ],
)
def test_bad_arguments_are_named(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(*arguments)


def test_the_rank_of_a_data_set_is_not_that_of_its_batches():
    metric = StableRank(num_layers=1, width=3)
    for row in torch.eye(3):
        assert float(metric([row[None]])) == pytest.approx(1.0)
    assert float(metric.compute()) == pytest.approx(3.0)


@every_metric
def test_before_any_update_compute_warns(case):
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        case.make(random_path()).compute()


# Several processes: the gathering of states replaced by one that knows the other process.


def synced(case, path, mine, others):
    """A metric that gathers each state, in turn, with the same state of another one; and the calls of its gathering."""
    states, calls = iter(case.fed(path, *others).metric_state.values()), []

    def gather(state, group=None):
        calls.append(tuple(state.shape))
        return [state, next(states)]

    return case.fed(path, *mine, dist_sync_fn=gather, distributed_available_fn=lambda: True), calls


@every_metric
@settings(max_examples=20)
@given(drawn=paths_in_batches(measures=DEFAULT_MEASURES))
def test_two_processes_equal_one(case, drawn):
    """Whatever each has seen, as long as this one has seen something, be it an empty batch."""
    path, batches = drawn
    metric, _ = synced(case, path, batches[::2], batches[1::2])
    case.assert_reads(metric.compute(), path)


@every_metric
@pytest.mark.parametrize("mine", [[], [slice(0, 0)]], ids=["no batch", "an empty one"])
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_a_process_that_saw_nothing_reads_what_the_others_saw(case, mine):
    path = random_path()
    metric, _ = synced(case, path, mine, HALVES)
    case.assert_reads(metric.compute(), path)


@every_metric
def test_after_a_sync_each_process_goes_on_alone(case):
    path = random_path()
    metric, _ = synced(case, path, HALVES[:1], HALVES[1:])
    metric.compute()
    for name, state in case.fed(path, HALVES[0]).metric_state.items():
        assert torch.equal(metric.metric_state[name], state)


@every_metric
def test_the_number_of_collectives_does_not_depend_on_the_number_of_layers(case):
    for num_layers in (1, 4, 32):
        metric, calls = synced(case, random_path(num_layers), HALVES[:1], HALVES[1:])
        metric.compute()
        assert len(calls) == len(metric.metric_state) <= 2


# Collections and figures.


@pytest.mark.parametrize("compute_groups", [True, False])
def test_a_collection_reads_each_metric_for_itself(compute_groups):
    """Two with the same sums, too, which torchmetrics then keeps once."""
    path = random_path(depth=3.0)
    other = CASES["CostOfIdentity"], path._replace(k_norm=KNorm(gamma=0.3))
    members = {key: (case, path) for key, case in CASES.items() if key != "Hamiltonian, sum"} | {"other": other}
    collection = MetricCollection(
        {key: case.make(own) for key, (case, own) in members.items()}, compute_groups=compute_groups
    )
    for rows in HALVES:
        batches = (case.batch(path, rows) for case in CASES.values() if case.reduction == "mean")
        collection.update(**ChainMap(*batches))
    found = collection.compute()
    for key, (case, own) in members.items():
        case.assert_reads(found[key], own)
    assert not torch.allclose(found["other"], found["CostOfIdentity"], rtol=1e-2)


def test_a_collection_tells_a_mean_from_a_sum():
    """Of a first batch of one sample both have the same sums, and torchmetrics keeps equal states once."""
    path = random_path()
    members = {reduction: Hamiltonian(3, 4, path.depth, reduction) for reduction in ("mean", "sum")}
    collection, alone = MetricCollection(members), Hamiltonian(3, 4, path.depth, "sum")
    for rows in (slice(0, 1), slice(1, 9)):
        for metric in (collection, alone):
            metric.update(path.previous(rows), path.momenta(rows, "sum"))
    assert torch.equal(collection.compute()["sum"], alone.compute())


@every_metric
@pytest.mark.parametrize("num_layers", [1, 3])
def test_plot_draws_a_point_a_layer(case, num_layers):
    path = random_path(num_layers)
    metric = case.fed(path, ALL_ROWS)
    figure, axes = metric.plot()
    assert axes.figure is figure
    (line,) = axes.lines
    assert line.get_xdata().tolist() == list(range(1, num_layers + 1))
    assert line.get_ydata().tolist() == metric.compute().reshape(-1).tolist()


def test_plot_takes_values_and_axes():
    figure = Figure()
    axes = figure.add_subplot()
    assert CostOfIdentity(3, 4).plot(torch.tensor([1.0, 2.0, 3.0]), ax=axes) == (figure, axes)
    assert axes.lines[0].get_ydata().tolist() == [1.0, 2.0, 3.0]
