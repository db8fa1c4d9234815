"""Evaluations that read a bounded part of a large set: the same samples whatever the batches, and it is said."""

import logging

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader

from lightning_leaky import EnergyMonitor, Layout
from lightning_leaky.metrics.path_reader import NUM_LEVELS
from lightning_leaky.reading.measure import measure_path
from lightning_leaky.reading.observer import PathObserver
from lightning_leaky.reading.sample_count import sample_levels
from tests.blocks import Block

WIDTH, MAX_ROWS, NUM_SAMPLES = 5, 40, 500
NAMES = ["cost_of_identity", "kinetic_energy", "block_influence"]
both_sizes = pytest.mark.parametrize("batch_size", [7, 50])
stages = pytest.mark.parametrize("stage", ["validate", "test"])


class Plain(LightningModule):
    """Three blocks."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(*(Block(WIDTH) for _ in range(3)))

    def forward(self, batch):
        return self.blocks(batch)

    def training_step(self, batch, batch_idx):
        return self(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self(batch)

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def samples(number=NUM_SAMPLES):
    """Unlike from one end to the other, so that it is seen which are read."""
    generator = torch.Generator().manual_seed(1)
    return torch.linspace(0.5, 2, number)[:, None] * torch.randn(number, WIDTH, generator=generator)


def evaluate(make_trainer, batch_size=50, number=NUM_SAMPLES, stage="validate", **settings):
    """The readings of an evaluation."""
    monitor, module = EnergyMonitor(Block, NAMES, **settings), Plain()
    getattr(make_trainer(monitor), stage)(module, DataLoader(samples(number), batch_size), verbose=False)
    return monitor.readings[stage]


def assert_same(readings, others, rtol):
    assert list(readings.quantities) == list(others.quantities) == NAMES
    for name in NAMES:
        torch.testing.assert_close(readings[name], others[name], rtol=rtol, atol=0)


def chosen(number=NUM_SAMPLES):
    """Places of the samples of the lowest level that fits."""
    levels = sample_levels(torch.arange(number))
    level = next(level for level in range(NUM_LEVELS) if int((levels >= level).sum()) <= MAX_ROWS)
    return (levels >= level).nonzero()[:, 0]


@both_sizes
@pytest.mark.parametrize("number", [MAX_ROWS, 33])
def test_a_set_that_fits_is_read_whole(make_trainer, batch_size, number):
    readings = evaluate(make_trainer, batch_size, number, max_rows=MAX_ROWS)
    assert not readings.is_part
    assert readings.rows_read() == f"{number} samples"
    assert_same(readings, evaluate(make_trainer, batch_size, number, exact=True), rtol=1e-5)


def test_by_default_sets_of_two_thousand_samples_are_read_whole(make_trainer):
    readings = evaluate(make_trainer, 500, 2000)
    assert not readings.is_part
    assert evaluate(make_trainer, 500, 4000).is_part
    assert_same(readings, evaluate(make_trainer, 500, 2000, exact=True), rtol=1e-5)


@stages
def test_of_a_larger_set_so_many_rows_are_read_at_most(make_trainer, stage):
    readings = evaluate(make_trainer, stage=stage, max_rows=MAX_ROWS)
    number = len(chosen())
    assert MAX_ROWS / 2 - 5 < number <= MAX_ROWS
    assert readings.is_part
    assert readings.samples_read == (number, NUM_SAMPLES)
    assert readings.num_samples == (number,) * 3
    assert readings.rows_read() == f"{number} rows of {number} of {NUM_SAMPLES} samples"


@stages
def test_the_same_samples_are_read_in_batches_of_any_size(make_trainer, stage):
    found = [evaluate(make_trainer, size, stage=stage, max_rows=MAX_ROWS) for size in (7, 50, 500)]
    for readings in found[1:]:
        assert readings.samples_read == found[0].samples_read
        assert_same(readings, found[0], rtol=1e-6)


@both_sizes
def test_the_samples_that_are_read_are_those_that_were_chosen(make_trainer, batch_size):
    """And no others: as a measurement of them alone says."""
    readings = evaluate(make_trainer, batch_size, max_rows=MAX_ROWS, precision="high")
    assert_same(readings, measure_path(Plain(), [samples()[chosen()]], NAMES, layers=Block), rtol=1e-6)


@both_sizes
def test_a_measurement_that_is_bounded_reads_the_same(make_trainer, batch_size):
    bounded = {"exact": False, "max_rows": MAX_ROWS}
    found = measure_path(Plain(), samples().split(batch_size), NAMES, layers=Block, **bounded)
    readings = evaluate(make_trainer, 50, max_rows=MAX_ROWS, precision="high")
    assert found.samples_read == readings.samples_read
    assert_same(found, readings, rtol=1e-6)


def test_all_are_read_where_that_is_asked_for(make_trainer):
    readings = evaluate(make_trainer, exact=True, max_rows=MAX_ROWS, precision="high")
    assert not readings.is_part
    assert readings.num_samples == (NUM_SAMPLES,) * 3
    assert_same(readings, measure_path(Plain(), [samples()], NAMES, layers=Block), rtol=1e-6)


def test_what_is_left_out_is_said_once_a_fit(make_trainer, caplog):
    monitor, data = EnergyMonitor(Block, NAMES, max_rows=MAX_ROWS), DataLoader(samples(), 50)
    told = []
    monitor.on_readings = lambda trainer, module, monitor, stage: told.append(stage)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        make_trainer(monitor).fit(Plain(), DataLoader(samples(6), 3), data)
    assert told.count("validate") == 2
    said = [record.getMessage() for record in caplog.records if "exact=True" in record.getMessage()]
    rows = monitor.readings["validate"].rows_read()
    assert said == [f"EnergyMonitor: Of a data set {rows} are read; exact=True reads all."]


def test_nothing_is_said_of_a_set_that_is_read_whole(make_trainer, caplog):
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        evaluate(make_trainer, number=MAX_ROWS, max_rows=MAX_ROWS)
    assert "exact=True" not in caplog.text


def test_batches_without_a_chosen_sample_are_not_kept(make_trainer, monkeypatch):
    drained, drain = [], PathObserver.drain
    monkeypatch.setattr(
        PathObserver, "drain", lambda self, *args, **kwargs: drained.append(drain(self, *args, **kwargs))
    )
    evaluate(make_trainer, 2, max_rows=MAX_ROWS)
    assert len(chosen()) <= len(drained) < NUM_SAMPLES / 3


def test_a_second_evaluation_starts_anew(make_trainer):
    monitor, module, data = EnergyMonitor(Block, NAMES, max_rows=MAX_ROWS), Plain(), DataLoader(samples(), 7)
    trainer, found = make_trainer(monitor), []
    for _ in range(2):
        trainer.validate(module, data, verbose=False)
        found.append(monitor.readings["validate"])
    assert found[0].samples_read == found[1].samples_read
    assert_same(*found, rtol=0)


# Samples with many positions, and batches that begin with something else.


def sequences(number, length=16):
    return samples(number * length).reshape(number, length, WIDTH)


def read_sequences(make_trainer, collate, number, batch_size, **settings):
    """The readings of an evaluation of batches that are put together in some way."""

    class Told(Plain):
        def validation_step(self, batch, batch_idx):
            self(batch["tokens"] if isinstance(batch, dict) else batch)

    monitor = EnergyMonitor(Block, NAMES, **settings)
    loader = DataLoader(sequences(number), batch_size, collate_fn=collate)
    make_trainer(monitor).validate(Told(), loader, verbose=False)
    return monitor.readings["validate"]


@both_sizes
@pytest.mark.parametrize("number", [129, 140, 200])
def test_rows_are_left_out_of_a_set_just_above_the_bound_little_by_little_and_it_is_said(
    make_trainer, number, batch_size
):
    """Of 128 sequences of 16 all rows fit. Just above, every sequence has some, and at most a sixth too many go."""
    readings = read_sequences(make_trainer, torch.stack, number, batch_size)
    rows = readings.num_samples[0]
    assert readings.is_part
    assert 0.8 * 2048 <= rows <= 2048
    assert readings.rows_read() == f"{rows} rows of {number} of {number} samples"


COLLATE = {
    "batch first": (torch.stack, {}),
    "tokens first": (lambda batch: torch.stack(batch, dim=1), {"layout": Layout("tnc")}),
    "weights of classes first": (lambda batch: {"weights": torch.ones(5), "tokens": torch.stack(batch)}, {}),
    "a number first": (lambda batch: {"scale": torch.ones(1), "tokens": torch.stack(batch)}, {}),
}


@pytest.mark.parametrize(("collate", "settings"), COLLATE.values(), ids=COLLATE)
def test_the_same_rows_are_read_however_a_batch_begins(make_trainer, collate, settings):
    expected = read_sequences(make_trainer, torch.stack, 300, 50, max_rows=64)
    for batch_size in (7, 60):
        readings = read_sequences(make_trainer, collate, 300, batch_size, max_rows=64, **settings)
        assert readings.samples_read == expected.samples_read
        assert_same(readings, expected, rtol=1e-4)


def test_only_samples_that_have_rows_count_as_read(make_trainer):
    """Here each sample is a row, and a layout has left out most of them."""
    readings = evaluate(make_trainer, 50, 5000, max_rows=MAX_ROWS, layout=Layout(max_samples=10))
    assert readings.samples_read == (readings.num_samples[0], 5000)


def test_a_bound_makes_a_measurement_one_of_a_part():
    torch.manual_seed(0)
    network = torch.nn.Sequential(*(torch.nn.Linear(6, 6) for _ in range(3)))
    batches = list(torch.randn(400, 6).split(50))
    found, expected, whole = (
        measure_path(network, batches, ["cost_of_identity"], layers="*", **settings)
        for settings in ({"max_rows": 40}, {"max_rows": 40, "exact": False}, {})
    )
    assert found.is_part
    assert torch.equal(found["cost_of_identity"], expected["cost_of_identity"])
    assert not whole.is_part
    assert not measure_path(network, batches, ["cost_of_identity"], layers="*", max_rows=40, exact=True).is_part
