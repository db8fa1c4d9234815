"""Which samples of a large data set are read: evenly spread, the same however it is cut, never too many."""

import functools
from types import SimpleNamespace

import pytest
import torch

from lightning_leaky.metrics import PathReader, Recipe
from lightning_leaky.metrics.layer_store import LayerStore
from lightning_leaky.metrics.path_reader import NUM_LEVELS
from lightning_leaky.reading.passed_batch import Batch
from lightning_leaky.reading.sample_count import FIRST_LEVEL, SampleCount, row_levels, sample_levels
from lightning_leaky.reading.settings import ReadingSettings
from lightning_leaky.utilities import data_parallel
from tests.metrics.paths import random_path

MAX_ROWS = 40
HALVING = 4  # levels
CUTS = [[500], [7] * 72, [50] * 10, [1, 299, 200], [450, 50]]
every_cut = pytest.mark.parametrize("sizes", CUTS, ids=lambda sizes: f"{len(sizes)} batches")


def share(level):
    """Of the samples that are read at a level."""
    return 2 ** ((FIRST_LEVEL - level) / HALVING)


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 8, 13])
@pytest.mark.parametrize("number", [100, 1000, 50_000])
def test_levels_halve_the_samples_evenly_on_every_process(processes, number):
    """Within a few samples, of any number of them."""
    for process in range(processes):
        levels = sample_levels(process + processes * torch.arange(number))
        for level in range(FIRST_LEVEL, FIRST_LEVEL + 11 * HALVING):
            assert abs(int((levels >= level).sum()) - number * share(level)) <= 4 + 2 * processes


def test_the_samples_of_a_level_are_spread_over_the_data_set():
    """No stretch of it is left out: gaps are at most three times as long as they are in the mean."""
    levels = sample_levels(torch.arange(10_000))
    for level in range(FIRST_LEVEL, FIRST_LEVEL + 7 * HALVING):
        places = (levels >= level).nonzero()[:, 0]
        assert int(places.diff().max()) <= 3 / share(level)


def test_levels_are_of_the_number_alone_and_within_bounds():
    numbers = torch.arange(10_000)
    levels = sample_levels(numbers)
    assert torch.equal(torch.cat([sample_levels(part) for part in numbers.split(77)]), levels)
    assert torch.equal(sample_levels(numbers.flip(0)), levels.flip(0))
    assert FIRST_LEVEL <= int(levels.min()) <= int(levels.max()) < NUM_LEVELS


# Rows, where samples have several.


def rows_of(counts):
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def test_rows_of_samples_that_have_one_stay_as_long_as_these():
    numbers = torch.arange(30, 130)
    assert torch.equal(row_levels(rows_of([1] * 100), numbers, MAX_ROWS), sample_levels(numbers))


def test_few_rows_of_a_sample_that_has_many_stay_as_long_as_it():
    """A 256th of the bound, 10 of 2560; the others go first."""
    numbers, counts = torch.arange(60), [300, 10, 4] * 20
    samples = rows_of(counts)
    levels = row_levels(samples, numbers, 2560)
    of_samples = sample_levels(numbers)
    assert bool(((levels < FIRST_LEVEL) | (levels == of_samples[samples])).all())
    stay = torch.bincount(samples[levels >= FIRST_LEVEL], minlength=60)
    assert torch.equal(stay[1::3], torch.full((20,), 10))
    assert torch.equal(stay[2::3], torch.full((20,), 4))
    assert torch.equal(stay[::3], torch.full((20,), 10))


@pytest.mark.parametrize("max_rows", [6, 256, 600, 4096])
def test_every_sample_that_is_read_has_rows(max_rows):
    """So that the number of samples read says of how many there are rows, and no more of any than a 256th."""
    numbers, counts = torch.arange(200), [1, 2, 7, 16, 49, 196, 197, 257] * 25
    samples = rows_of(counts)
    stay = torch.bincount(samples[row_levels(samples, numbers, max_rows) >= FIRST_LEVEL], minlength=200)
    assert stay.tolist() == [min(count, max(1, max_rows // 256)) for count in counts]


def test_rows_of_samples_become_fewer_before_samples_do_and_little_by_little():
    """Each sample has 300 rows, and 10 stay. Each level has 2^(-1/4) of the others that the level before had."""
    samples = rows_of([300] * 60)
    levels = row_levels(samples, torch.arange(60), 2560)
    for level in range(4 * HALVING):
        stay = torch.bincount(samples[levels >= level], minlength=60)
        assert bool((abs(stay - 10 - 290 * 2 ** (-level / HALVING)) <= 5).all())
        assert int(stay.min()) >= 10


def test_places_of_the_rows_that_stay_vary_with_the_sample():
    levels = row_levels(rows_of([300] * 2), torch.arange(2), 2560).reshape(2, 300)
    assert not torch.equal(levels[0] >= FIRST_LEVEL, levels[1] >= FIRST_LEVEL)


def test_levels_of_rows_do_not_depend_on_the_batch():
    numbers, counts = torch.arange(40), [20, 3, 1, 90] * 10
    whole = row_levels(rows_of(counts), numbers, 2560)
    parts = [row_levels(rows_of(counts[at : at + 7]), numbers[at : at + 7], 2560) for at in range(0, 40, 7)]
    assert torch.equal(torch.cat(parts), whole)


# Counting.


def numbers_of(sizes, count, is_known=True):
    """Numbers that batches of these sizes get; told before they pass, or by what has passed."""
    found = []
    for size in sizes:
        batch = Batch(torch.zeros(size, 3)) if is_known else Batch()
        count.add(batch, FIRST_LEVEL)
        found.append(count.numbers_of(passed(batch, size)))
    return torch.cat(found)


def passed(batch, size, places=()):
    """A batch of which some samples have rows."""
    places_read = functools.partial(torch.tensor, places, dtype=torch.long)
    return SimpleNamespace(batch=batch, num_samples=lambda: size, places_read=places_read)


def histogram(numbers):
    return torch.bincount(sample_levels(torch.as_tensor(numbers)), minlength=NUM_LEVELS)


@every_cut
@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize(("process", "processes"), [(0, 1), (2, 3)])
def test_samples_are_numbered_and_counted_as_samplers_deal_them(monkeypatch, sizes, is_known, process, processes):
    monkeypatch.setattr(data_parallel, "number_of_process", lambda: process)
    monkeypatch.setattr(data_parallel, "num_processes", lambda: processes)
    expected, count = process + processes * torch.arange(sum(sizes)), SampleCount()
    assert torch.equal(numbers_of(sizes, count, is_known), expected)
    assert torch.equal(count.of_levels[0], histogram(expected))


def test_a_batch_is_wanted_where_a_sample_of_it_has_the_level():
    count = SampleCount()
    level = FIRST_LEVEL + 4 * HALVING
    wanted = [count.add(Batch(torch.zeros(4, 3)), level) for _ in range(50)]
    assert wanted == [bool(part.any()) for part in (sample_levels(torch.arange(200)) >= level).split(4)]
    assert 0 < sum(wanted) < 50
    assert SampleCount().add(Batch(), 4)  # of unknown length


def test_repeats_are_not_counted():
    count, fresh = SampleCount(), torch.tensor([True, False, True])
    count.add(Batch(torch.zeros(3, 2), fresh), 1)
    assert torch.equal(count.of_levels[0], histogram([0, 2]))


def test_samples_without_rows_are_not_counted_as_read():
    count, batch = SampleCount(), Batch(torch.zeros(4, 2))
    count.add(batch, FIRST_LEVEL)
    count.add(batch, FIRST_LEVEL)
    count.add_read(passed(batch, 4, [1, 3]))
    assert torch.equal(count.of_levels, torch.stack([histogram(range(8)), histogram([5, 7])]))


@pytest.mark.parametrize("length", [1, 9])
def test_a_batch_whose_first_tensor_is_not_of_samples_is_counted_once_it_has_passed(length):
    """Such as weights of classes, or tokens first: then each batch is numbered by what its layers return."""
    count, found, batch = SampleCount(), [], Batch(torch.zeros(length))
    for size in (4, 4, 3):
        assert count.add(batch, NUM_LEVELS if found else 0)  # the first one is always looked at
        found.append(count.numbers_of(passed(batch, size)))
    assert torch.equal(torch.cat(found), torch.arange(11))
    assert torch.equal(count.of_levels[0], histogram(range(11)))


# The reader.


PATH = random_path(num_samples=500, width=5)


def bounded(sizes, halves=False):
    """A reader, and how many rows it had at most."""
    recipe = Recipe(["cost_of_identity", "kinetic_energy"], 2.0)
    reader = PathReader([(5, 3)], recipe, halves=halves, max_rows=MAX_ROWS)
    levels, start, most = sample_levels(torch.arange(PATH.num_samples)), 0, 0
    for size in sizes:
        rows = torch.arange(start, min(start + size, PATH.num_samples))
        previous, current = PATH.previous()[:, rows], PATH.current()[:, rows]
        reader.update(previous, current, PATH.step_sizes, levels=[levels[rows]] * 3)
        kept = reader.stores[0].samples_in_bytes // (8 * 2 * 3 * 5)
        start, most = start + size, max(most, kept)
    return reader, most


@every_cut
def test_the_rows_that_are_kept_are_those_of_the_lowest_level_that_fits(sizes):
    reader, most = bounded(sizes)
    levels = sample_levels(torch.arange(PATH.num_samples))
    level = next(level for level in range(NUM_LEVELS) if int((levels >= level).sum()) <= MAX_ROWS)
    rows = (levels >= level).nonzero()[:, 0]
    readings = reader.compute()
    assert most <= 2 * MAX_ROWS
    assert reader.level == level
    assert readings.num_samples == (len(rows),) * 3
    whole = PathReader([(5, 3)], reader.recipe)
    whole.update(PATH.previous()[:, rows], PATH.current()[:, rows], PATH.step_sizes)
    for name, values in whole.compute().quantities.items():
        torch.testing.assert_close(readings[name], values, rtol=1e-12, atol=0)


@every_cut
def test_halves_are_those_of_the_rows_that_are_kept(sizes):
    reader, _ = bounded(sizes, halves=True)
    halves = reader.compute().halves
    levels, rows, odd = sample_levels(torch.arange(PATH.num_samples)), ([], []), 0
    for batch in torch.arange(PATH.num_samples).split([*sizes[:-1], PATH.num_samples - sum(sizes[:-1])]):
        cut = (len(batch) + 1 - odd) // 2
        for found, part in zip(rows, (batch[:cut], batch[cut:]), strict=True):
            found.append(part[levels[part] >= reader.level])
        odd = (odd + len(batch)) % 2
    for half, kept in zip(halves, map(torch.cat, rows), strict=True):
        whole = PathReader([(5, 3)], reader.recipe)
        whole.update(PATH.previous()[:, kept], PATH.current()[:, kept], PATH.step_sizes)
        for name, values in whole.compute().quantities.items():
            torch.testing.assert_close(half[name], values, rtol=1e-12, atol=0)


def test_a_batch_that_is_overwritten_afterwards_was_read_before():
    """Rows are copied when they come, also those of a batch that is kept whole."""
    readings = []
    for factor in (1.0, 7.0):
        reader = PathReader([(5, 3)], Recipe(["cost_of_identity"], 2.0), max_rows=1000)
        path = PATH.previous().clone(), PATH.current().clone()
        reader.update(*path, PATH.step_sizes, levels=[sample_levels(torch.arange(PATH.num_samples))] * 3)
        for side in path:
            side.mul_(factor).add_(factor - 1)
        readings.append(reader.compute()["cost_of_identity"])
    assert torch.equal(*readings)


def test_rows_are_kept_on_the_device_and_in_the_dtype_of_the_store():
    """That of a store is the CPU where batches come from MPS, which has no float64."""
    store = LayerStore(3, 5, Recipe(["cost_of_identity"], 2.0), "samples")
    store.device, store.dtype = torch.device("meta"), torch.float64
    levels = [sample_levels(torch.arange(PATH.num_samples))] * 3
    store.update([PATH.previous().float(), PATH.current().float()], levels=levels)
    assert store.samples_in_bytes == 8 * 2 * 3 * 5 * PATH.num_samples
    assert store.values()["cost_of_identity"].device.type == "meta"


def test_a_reset_begins_with_all_rows_again():
    reader, _ = bounded([500])
    reader.reset()
    assert reader.level == 0


@pytest.mark.parametrize("max_rows", [1, 5])
def test_fewer_rows_than_features_are_refused(max_rows):
    with pytest.raises(
        ValueError, match=rf"`max_rows` must be at least w \+ 1 = 6, got {max_rows}: fewer rows than fe"
    ):
        PathReader([(5, 3), (2, 1)], Recipe(["speed"]), max_rows=max_rows)
    PathReader([(5, 3), (2, 1)], Recipe(["speed"]), max_rows=6)


@pytest.mark.parametrize(("setting", "value"), [("max_rows", 1), ("precision", "x")])
def test_bad_settings_are_named_with_their_value(setting, value):
    with pytest.raises(ValueError, match=rf"`{setting}` must be .*got {value!r}"):
        ReadingSettings(**{setting: value})
