"""Which reading of a fit is shown, and what of."""

import torch

from lightning_leaky import Quantity, Readings
from lightning_leaky.explain.shown import has_equal_steps, shown_readings


def readings(value: float, *names: str, layers: int = 2, own=()) -> Readings:
    quantities = {name: torch.full((layers,), value) for name in names}
    return Readings(quantities, torch.full((layers,), 1 / layers), 1.0, own=own)


def of_momenta(sums):
    return sums.momentum_square


MINE = Quantity("mine", of_momenta, needs="momenta")
TRAIN = readings(9.0, "speed", "hamiltonian", "mine", own=(MINE,))


def test_validation_data_come_first_and_momenta_are_of_training():
    shown, source = shown_readings({"train": TRAIN, "validate": readings(1.0, "speed")})
    assert {name: float(values[0]) for name, values in shown.quantities.items()} == {
        "speed": 1.0,
        "hamiltonian": 9.0,
        "mine": 9.0,
    }
    assert source == "validation data, momenta of a training batch"
    assert list(shown.records) == ["speed", "hamiltonian", "mine"]


def test_without_validation_data_it_is_the_training_batch():
    assert shown_readings({"train": TRAIN, "test": readings(1.0, "speed")}) == (TRAIN, "a training batch")


def test_momenta_of_other_layers_are_left_out():
    shown, source = shown_readings({"train": TRAIN, "validate": readings(1.0, "speed", layers=3)})
    assert (list(shown.quantities), source) == (["speed"], "validation data")


def test_of_several_loaders_the_first_is_shown():
    found = {"validate": readings(1.0, "speed"), "validate/dataloader_idx_1": readings(2.0, "speed")}
    assert shown_readings(found) == (found["validate"], "validation data")


def test_equal_steps_are_equal_up_to_rounding():
    assert has_equal_steps(torch.full((3,), 1 / 3, dtype=torch.float32).double())
    assert not has_equal_steps(torch.tensor([0.333, 0.333, 0.334]))
