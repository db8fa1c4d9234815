"""The reader of any choice of quantities, and the readings it returns."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_leaky.metrics import PathReader, Readings, path_reader
from lightning_leaky.metrics.path_reader import ENERGIES, MOMENTA, QUANTITIES, SPECTRUM, check_quantities, layer_key
from tests import references
from tests.metrics.cases import CASES, assert_same_reading, paths_in_batches, random_path


def read(path, quantities=QUANTITIES, batches=(slice(None),), reduction="mean", form="moments"):
    reader = PathReader(path.num_layers, path.width, path.depth, quantities, path.k_norm, reduction, form)
    feed(reader, path, batches, reduction)
    return reader.compute()


def feed(reader, path, batches=(slice(None),), reduction="mean"):
    for rows in batches:
        steps = path.previous(rows), path.current(rows), path.step_sizes
        reader.update(*steps, path.momenta(rows, reduction), path.weights)


def expected_of(path, reduction="mean"):
    found = CASES["PathEnergies"].expected(path) | CASES[f"PathMomenta-{reduction}"].expected(path)
    return found | {"stable_rank": CASES["StableRank"].expected(path)}


@pytest.mark.parametrize("form", ["moments", "samples", "auto"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@settings(max_examples=50)
@given(drawn=paths_in_batches(), chosen=st.sets(st.sampled_from(QUANTITIES), min_size=1))
def test_any_choice_over_any_batches_equals_the_functions(form, reduction, drawn, chosen):
    path, batches = drawn
    readings = read(path, chosen, batches, reduction, form)
    assert list(readings.quantities) == [name for name in QUANTITIES if name in chosen]
    assert_same_reading(readings.quantities, {name: expected_of(path, reduction)[name] for name in chosen})
    assert all(values.shape == (path.num_layers,) for values in readings.quantities.values())
    assert torch.equal(readings.step_sizes, path.step_sizes)


def test_samples_are_kept_until_they_are_more_than_neurons():
    path, held = random_path(num_samples=12, width=5), []
    reader = PathReader(path.num_layers, path.width, path.depth, QUANTITIES, path.k_norm, form="auto")
    for rows in (slice(0, 2), slice(2, 5), slice(5, 6), slice(6, 12)):
        feed(reader, path, [rows])
        held.append((reader.samples.num_rows(), reader.energies is not None))
    assert held == [(2, False), (5, False), (0, True), (0, True)]
    reader.reset()
    feed(reader, path, [slice(0, 2)])
    assert reader.samples.num_rows() == 2
    expected = read(path, batches=[slice(0, 2)])
    assert_same_reading(reader.compute().quantities, expected.quantities)


def test_layers_of_different_numbers_of_samples_are_summed():
    """As those of a padding mask for some layers only."""
    paths = [random_path(num_layers=1, num_samples=count, width=6, seed=count) for count in (2, 3)]
    reader = PathReader(2, 6, 2.0, ENERGIES, form="auto")
    reader.update(*([getattr(path, end)()[0] for path in paths] for end in ("previous", "current")), torch.ones(2) / 2)
    found = reader.compute()
    for index, path in enumerate(paths):
        alone = read(path._replace(step_sizes=torch.tensor([0.5])), ENERGIES)
        for name in ENERGIES:
            torch.testing.assert_close(found[name][index], alone[name][0], rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("quantities", "held"), [(ENERGIES, "energies"), (SPECTRUM, "spectrum"), (MOMENTA, "momenta")], ids=str
)
def test_only_the_sums_that_are_needed_are_held(quantities, held):
    for quantity in quantities:
        reader = PathReader(2, 3, 1.0, [quantity])
        assert [name for name in ("energies", "spectrum", "momenta") if getattr(reader, name) is not None] == [held]


def test_momenta_and_weights_may_be_missing_where_they_are_not_read():
    path = random_path()
    reader = PathReader(path.num_layers, path.width, path.depth, [*ENERGIES, *SPECTRUM])
    reader.update(path.previous(), path.current(), path.step_sizes)
    assert list(reader.compute().quantities) == [*ENERGIES, *SPECTRUM]
    reader = PathReader(path.num_layers, path.width, path.depth, QUANTITIES)
    reader.update(path.previous(), path.current(), path.step_sizes, path.momenta())
    assert set(QUANTITIES) - set(reader.compute().quantities) == {"criticality_residual"}


def test_missing_momenta_are_named_with_what_wants_them():
    path = random_path()
    reader = PathReader(path.num_layers, path.width, path.depth, ["hamiltonian", "cost_of_identity"])
    with pytest.raises(ValueError, match=r"`momenta` must be given to read \['hamiltonian'\]"):
        reader.update(path.previous(), path.current(), path.step_sizes)


def test_reset_forgets():
    path = random_path()
    reader = PathReader(path.num_layers, path.width, path.depth, QUANTITIES)
    feed(reader, random_path(seed=1))
    reader.compute()
    reader.reset()
    feed(reader, path)
    assert_same_reading(reader.compute().quantities, expected_of(path))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda reader: pickle.loads(pickle.dumps(reader))], ids=["deepcopy", "pickle"]
)
def test_a_copy_goes_on_alone(copied):
    path, halves = random_path(), (slice(0, 4), slice(4, None))
    reader = PathReader(path.num_layers, path.width, path.depth, QUANTITIES)
    feed(reader, path, halves[:1])
    copy_of_it = copied(reader)
    feed(copy_of_it, path, halves[1:])
    assert_same_reading(copy_of_it.compute().quantities, expected_of(path))
    assert_same_reading(reader.compute().quantities, read(path, QUANTITIES, halves[:1]).quantities)


@pytest.mark.parametrize("cast", ["half", "float", "bfloat16"])
def test_casting_leaves_the_sums_in_float64(cast):
    path = random_path()
    reader = getattr(PathReader(path.num_layers, path.width, path.depth, QUANTITIES), cast)()
    feed(reader, path)
    assert_same_reading(reader.compute().quantities, expected_of(path))


def test_casting_by_to_leaves_the_sums_in_float64():
    path = random_path()
    reader = PathReader(path.num_layers, path.width, path.depth, QUANTITIES).to(torch.bfloat16)
    feed(reader, path)
    assert_same_reading(reader.compute().quantities, expected_of(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"num_layers": 0}, "`num_layers`.*got 0", id="num_layers"),
        pytest.param({"width": 0}, "`width`.*got 0", id="width"),
        pytest.param({"effective_depth": -1.0}, "`effective_depth`.*got -1.0", id="depth"),
        pytest.param({"effective_depth": -1.0, "quantities": SPECTRUM}, "`effective_depth`", id="depth_of_rank"),
        pytest.param({"quantities": []}, "`quantities` must be chosen from .*got none", id="no_quantity"),
        pytest.param(
            {"quantities": ["speed", "mass", "charge"]},
            r"`quantities` .*got \['charge', 'mass'\]",
            id="unknown_quantity",
        ),
        pytest.param({"loss_reduction": "none"}, "`loss_reduction`.*'none'", id="reduction"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    arguments = {"num_layers": 2, "width": 3, "effective_depth": 1.0, "quantities": ["hamiltonian", "speed"]}
    with pytest.raises(ValueError, match=message):
        PathReader(**(arguments | changes))


def test_bad_step_sizes_are_named_and_not_kept():
    path = random_path()
    reader = PathReader(path.num_layers, path.width, path.depth, SPECTRUM)
    feed(reader, path)
    with pytest.raises(ValueError, match=r"`step_sizes` must have shape \(3,\)"):
        reader.update(path.previous(), path.current(), torch.ones(1))
    assert torch.equal(reader.compute().step_sizes, path.step_sizes)


def test_readings_keep_the_step_sizes_they_were_taken_at():
    path, rho = random_path(), random_path().step_sizes
    reader = PathReader(path.num_layers, path.width, path.depth, SPECTRUM)
    reader.update(path.previous(), path.current(), rho)
    rho.copy_(rho.flip(0))
    assert torch.equal(reader.compute().step_sizes, path.step_sizes)


def test_quantities_come_in_their_fixed_order():
    assert check_quantities(list(reversed(QUANTITIES))) == QUANTITIES
    assert len(set(QUANTITIES)) == len(QUANTITIES) == 12


# Readings.

BY_HAND = Readings(
    quantities={
        "cost_of_identity": torch.tensor([5.0, 3.0, 4.0, 6.0], dtype=torch.float64),
        "speed": torch.tensor([2.0, 0.0, 1.0, 4.0], dtype=torch.float64),
        "energy_hamiltonian": torch.tensor([-8.0, -2.0, -4.0, -6.0], dtype=torch.float64),
        "hamiltonian": torch.tensor([-3.0, -2.0, -1.0, 1.0], dtype=torch.float64),
        "criticality_residual": torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64),
    },
    step_sizes=torch.tensor([0.125, 0.25, 0.5, 0.125], dtype=torch.float64),
    effective_depth=4.0,
)

SUMMARIES_BY_HAND = {
    "cost_of_identity/min": 3.0,
    "speed/path_length": 0.125 * 2 + 0.5 * 1 + 0.125 * 4,
    "criticality_residual/max": 0.4,
    "hamiltonian/bottleneck_rank": -2 * -1.0 / 4,
    "hamiltonian/bottleneck_rank_min": -2 * 1.0 / 4,
    "hamiltonian/bottleneck_rank_max": -2 * -3.0 / 4,
    "hamiltonian/spread": 4.0,
    "energy_hamiltonian/bottleneck_rank": -2 * -4.0 / 4,  # a step of one half
    "energy_hamiltonian/bottleneck_rank_min": -2 * -2.0 / 4,
    "energy_hamiltonian/bottleneck_rank_max": -2 * -8.0 / 4,
    "energy_hamiltonian/spread": 6.0,
}


def test_a_cycle_that_begins_with_many_samples_after_one_with_few():
    """The weights of the first cycle are no sign of samples in the second."""
    few, many = random_path(num_samples=3, width=4), random_path(num_samples=9, width=4)
    reader = PathReader(few.num_layers, few.width, few.depth, QUANTITIES, few.k_norm, form="auto")
    for path in (few, many):
        reader.reset()
        reader.update(path.previous(), path.current(), path.step_sizes, path.momenta(), path.weights)
    alone = PathReader(few.num_layers, few.width, few.depth, QUANTITIES, few.k_norm, form="moments")
    alone.update(many.previous(), many.current(), many.step_sizes, many.momenta(), many.weights)
    for name, values in alone.compute().quantities.items():
        torch.testing.assert_close(reader.compute()[name], values, rtol=1e-9, atol=1e-12)


def test_a_string_is_no_list_of_quantities():
    with pytest.raises(ValueError, match="got the string 'hamiltonian'"):
        PathReader(2, 3, 1.0, "hamiltonian")


def test_readings_can_be_kept_in_sets():
    other = Readings(BY_HAND.quantities, BY_HAND.step_sizes, BY_HAND.effective_depth)
    assert len({BY_HAND, other, BY_HAND}) == 2


def test_positions_are_where_the_steps_start():
    assert BY_HAND.positions.tolist() == [0.0, 0.125, 0.375, 0.875]


def test_summaries_by_hand():
    assert {key: float(value) for key, value in BY_HAND.summaries().items()} == pytest.approx(SUMMARIES_BY_HAND)


def test_summaries_of_what_was_not_read_are_left_out():
    assert Readings({"stable_rank": torch.ones(2)}, torch.tensor([0.5, 0.5]), 1.0).summaries() == {}
    resnet = Readings(BY_HAND.quantities, BY_HAND.step_sizes, effective_depth=0.0)
    assert SUMMARIES_BY_HAND.keys() - resnet.summaries().keys() == {
        f"{form}/bottleneck_rank{end}" for form in ("hamiltonian", "energy_hamiltonian") for end in ("", "_min", "_max")
    }


@pytest.mark.parametrize("prefix", ["", "val_"])
def test_scalars_are_every_layer_and_every_summary(prefix):
    scalars = BY_HAND.scalars(prefix)
    layers = {
        f"{prefix}{name}/layer_{index + 1:02d}": float(value)
        for name, values in BY_HAND.quantities.items()
        for index, value in enumerate(values)
    }
    expected = layers | {prefix + key: value for key, value in SUMMARIES_BY_HAND.items()}
    assert {key: float(value) for key, value in scalars.items()} == pytest.approx(expected)
    assert all(value.ndim == 0 for value in scalars.values())


@pytest.mark.parametrize("num_layers", [1, 9, 10, 99, 100, 1000])
def test_layer_keys_sort_as_layers_do(num_layers):
    keys = [layer_key(index, num_layers) for index in range(num_layers)]
    assert keys == sorted(keys)
    assert [int(key.removeprefix("layer_")) for key in keys] == list(range(1, num_layers + 1))


def test_the_table_has_a_line_for_each_layer():
    header, *lines = BY_HAND.table().splitlines()
    assert header.split() == ["layer", "step_size", "position", *BY_HAND.quantities]
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "4"]
    assert [float(line.split()[2]) for line in lines] == pytest.approx(BY_HAND.positions.tolist(), abs=1e-4)
    assert [float(line.split()[3]) for line in lines] == BY_HAND["cost_of_identity"].tolist()
    assert len({len(line) for line in [header, *lines]}) == 1


def test_the_table_shows_what_is_asked_for():
    header, first, *_ = BY_HAND.table(["hamiltonian", "speed"]).splitlines()
    assert header.split() == ["layer", "step_size", "position", "hamiltonian", "speed"]
    assert first.split() == ["1", "0.1250", "0.0000", "-3", "2"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_layer_shows(value):
    assert BY_HAND.is_finite()
    spoilt = BY_HAND["speed"].clone()
    spoilt[1] = value
    readings = Readings(BY_HAND.quantities | {"speed": spoilt}, BY_HAND.step_sizes, 4.0)
    assert not readings.is_finite()
    assert not readings.summaries()["speed/path_length"].isfinite()
    assert readings.summaries()["cost_of_identity/min"] == 3.0


def test_a_path_of_one_layer():
    path = random_path(num_layers=1)
    readings = read(path)
    assert readings.positions.tolist() == [0.0]
    assert len(readings.table().splitlines()) == 2
    scalars = readings.scalars()
    assert {key for key in scalars if "layer" in key} == {f"{name}/layer_01" for name in QUANTITIES}
    assert float(scalars["hamiltonian/spread"]) == 0
    expected = references.path_length(path.previous(), path.velocities(), path.step_sizes, path.k_norm).value
    assert float(scalars["speed/path_length"]) == pytest.approx(float(expected), rel=1e-10)


def test_quantities_of_the_reader_are_those_of_its_metrics():
    path = random_path()
    assert set(path_reader.ENERGIES) == set(CASES["PathEnergies"].read(path))
    assert set(path_reader.MOMENTA) == set(CASES["PathMomenta-mean"].read(path))


def test_keys_of_many_layers_sort():
    """Three digits where there are a hundred layers or more."""
    keys = list(Readings({"speed": torch.ones(120)}, torch.full((120,), 1 / 120), 1.0).scalars())
    assert keys[0] == "speed/layer_001"
    assert keys[:120] == sorted(keys[:120])
