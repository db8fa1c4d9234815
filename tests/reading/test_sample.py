"""Samples for pictures: their labels, their rows, their segments."""

import pytest
import torch

from lightning_leaky import Layout
from lightning_leaky.reading.sample import label_rows, labels_of, samples_of


def test_labels_are_the_classes_of_a_batch():
    classes = torch.tensor([2, 0, 1])
    for batch in (
        (torch.zeros(3, 4), classes),
        [torch.zeros(3, 4), classes],
        {"x": torch.zeros(3, 4), "labels": classes},
    ):
        assert labels_of(batch).tolist() == [2, 0, 1]


def test_labels_of_vectors_are_along_the_direction_of_most_variance():
    along, direction = torch.tensor([-3.0, 1.0, 2.0]), torch.tensor([0.6, 0.8])
    found = labels_of((None, along[:, None] * direction + 5.0))
    torch.testing.assert_close(found.abs(), along.double().abs(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "batch", [torch.zeros(3, 4), (torch.zeros(3),), {"x": 1}, (None, "text"), (None, torch.zeros(2, 3, 4))]
)
def test_what_a_batch_does_not_say_is_not_known(batch):
    assert labels_of(batch) is None


def test_every_position_has_the_label_of_its_sample():
    labels, hidden = torch.tensor([7, 8]), torch.zeros(2, 3, 5)
    assert label_rows(labels, hidden, Layout()).tolist() == [7, 7, 7, 8, 8, 8]
    assert label_rows(labels, hidden.transpose(0, 1), Layout("tnc")).tolist() == [7, 7, 7, 8, 8, 8]


def test_padding_and_repeats_have_no_label():
    labels, hidden = torch.tensor([7, 8, 9]), torch.zeros(3, 2, 5)
    keep, fresh = torch.tensor([[1, 1], [1, 0], [1, 1]]), torch.tensor([True, True, False])
    assert label_rows(labels, hidden, Layout(), keep, fresh).tolist() == [7, 7, 8]


def test_labels_go_with_the_rows_that_a_layout_chooses():
    values = torch.arange(50.0)
    layout = Layout().limited(7)
    assert torch.equal(label_rows(values, values[:, None], layout), layout.rows(values[:, None])[:, 0])


def test_labels_of_another_number_of_samples_say_nothing():
    assert label_rows(torch.zeros(3), torch.zeros(4, 5), Layout()) is None
    assert label_rows(None, torch.zeros(4, 5), Layout()) is None


def rows(*values: float, num: int = 1) -> list[torch.Tensor]:
    return [torch.full((num, 2), float(value)) for value in values]


def test_segments_end_with_what_their_last_layer_returned():
    labels = {1: torch.tensor([4]), 2: torch.tensor([6])}
    first, second = samples_of(rows(0, 1, 2), rows(10, 11, 12), [1, 1, 2], labels)
    assert first.representations[:, 0, 0].tolist() == [0.0, 1.0, 11.0]
    assert second.representations[:, 0, 0].tolist() == [2.0, 12.0]
    assert [(sample.segment, int(sample.labels)) for sample in (first, second)] == [(0, 4), (1, 6)]


def test_a_segment_on_which_rows_come_and_go_has_no_sample():
    previous = [*rows(0), *rows(1, num=3), *rows(2)]
    (only,) = samples_of(previous, rows(10, 11, 12), [1, 1, 2], {})
    assert only.segment == 1


def test_samples_are_in_float32_at_least():
    for dtype, kept in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        (sample,) = samples_of([torch.ones(1, 2, dtype=dtype)], [torch.ones(1, 2, dtype=dtype)], [1], {})
        assert sample.representations.dtype == kept


def test_targets_that_cannot_be_projected_say_nothing():
    assert labels_of((None, torch.tensor([[1.0, torch.nan], [2.0, 3.0]]))) is None
    assert labels_of((None, torch.ones(3, 4, dtype=torch.long))) is None
    assert labels_of((torch.ones(3, 4), torch.ones(3, 4), torch.arange(3))) is None
