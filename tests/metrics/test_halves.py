"""Readings of two halves of the samples, and how many samples there were."""

import pytest
import torch

from lightning_leaky.metrics import PathReader, Recipe
from tests.metrics.paths import QUANTITIES, assert_same_reading, random_path

FORMS = ("moments", "samples", "auto")


def halves_of(rows: slice) -> tuple[slice, slice]:
    middle = (rows.start + rows.stop + 1) // 2
    return slice(rows.start, middle), slice(middle, rows.stop)


@pytest.mark.parametrize("form", FORMS)
def test_each_half_is_read_as_if_by_itself(form):
    path, batches = random_path(num_samples=13, width=4), (slice(0, 6), slice(6, 13))
    keys = [key for key, record in QUANTITIES.items() if not record.has_gradients]
    reader = PathReader([(4, 3)], Recipe(keys, path.depth), form, halves=True)
    for rows in batches:
        reader.update(path.previous(rows), path.current(rows), path.step_sizes)
    readings = reader.compute()
    assert readings.num_samples == (13, 13, 13)
    for number, found in enumerate(readings.halves):
        parts = [halves_of(rows)[number] for rows in batches]
        expected = path.read(keys, form, batches=parts)
        assert_same_reading(found, expected.quantities)
    reader.reset()
    reader.update(*path.batch(slice(0, 2))[:3])
    assert reader.compute().num_samples == (2, 2, 2)


def test_gradients_are_of_the_whole_batch_only():
    path = random_path(num_samples=8)
    reader = PathReader([(4, 3)], Recipe(["first_order", "cost_of_identity"], path.depth), halves=True)
    reader.update(*path.batch())
    assert [list(half) for half in reader.compute().halves] == [["cost_of_identity"]] * 2
    alone = PathReader([(4, 3)], Recipe(["first_order"], path.depth), halves=True)
    alone.update(*path.batch())
    assert alone.compute().halves == ()


def test_nobody_pays_for_halves_unasked():
    path = random_path()
    assert path.read(["cost_of_identity"]).halves == ()


def test_halves_follow_their_segments():
    path = random_path(num_layers=3, num_samples=8)
    reader = PathReader([(4, 1), (4, 2)], Recipe(["cost_of_identity"], path.depth), halves=True)
    reader.update(*path.batch()[:3])
    readings = reader.compute()
    first, second = readings.split()
    assert (first.num_samples, second.num_samples) == ((8,), (8, 8))
    assert (readings.widths, first.widths, second.widths) == ((4, 4, 4), (4,), (4, 4))
    for number in range(2):
        joined = torch.cat([part.halves[number]["cost_of_identity"] for part in (first, second)])
        assert torch.equal(joined, readings.halves[number]["cost_of_identity"])


@pytest.mark.parametrize(("num_batches", "expected"), [(1, 0), (2, 2), (5, 2)])
def test_batches_of_one_sample_go_to_either_half(num_batches, expected):
    path = random_path(num_samples=num_batches, width=4)
    reader = PathReader([(4, 3)], Recipe(["cost_of_identity"], path.depth), "samples", halves=True)
    for number in range(num_batches):
        reader.update(*path.batch(slice(number, number + 1))[:3])
    assert len(reader.compute().halves) == expected
