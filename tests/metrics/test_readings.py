"""Readings: positions, summaries, log keys, the table, and what is finite."""

import pytest
import torch

from lightning_leaky.metrics import Readings
from lightning_leaky.metrics.readings import layer_key
from tests import references
from tests.metrics.own_records import EFFECTIVE_RANK
from tests.metrics.paths import QUANTITIES, random_path

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


def test_segments_have_summaries_of_their_own():
    """Of a record of one's own, too; names are in the table."""
    own = {"effective_rank": torch.tensor([4.0, 3.0, 2.5, 3.5])}
    rho = BY_HAND.step_sizes
    readings = Readings(BY_HAND.quantities | own, rho, 4.0, tuple("abcd"), segments=(1, 3), own=(EFFECTIVE_RANK,))
    summaries = readings.summaries()
    for number, part in enumerate(readings.split(), start=1):
        for key, value in part.summaries().items():
            assert summaries.pop(key.replace("/", f"/segment_{number}/")) == value
        assert torch.equal(part.step_sizes, rho[:1] if number == 1 else rho[1:])
    assert not summaries
    found = {key: float(value) for key, value in readings.summaries("val_").items()}
    assert found["val_cost_of_identity/segment_2/min"] == 3.0
    assert found["val_speed/segment_1/path_length"] == 0.25
    assert found["val_effective_rank/segment_2/min"] == 2.5
    lines = readings.table(["speed"]).splitlines()[1:]
    assert ["".join(line.split()[:2]) for line in lines] == ["1a", "2b", "3c", "4d"]


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
    readings = path.read()
    assert readings.positions.tolist() == [0.0]
    assert len(readings.table().splitlines()) == 2
    scalars = readings.scalars()
    assert {key for key in scalars if "layer" in key} == {f"{name}/layer_01" for name in QUANTITIES}
    assert float(scalars["hamiltonian/spread"]) == 0
    p = path.problem()
    expected = references.path_length(p.V, p.features, path.step_sizes, p.k_norm).value
    assert float(scalars["speed/path_length"]) == pytest.approx(float(expected), rel=1e-10)
