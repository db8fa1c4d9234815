"""Where a change of shape splits a path."""

import pytest
import torch

from lightning_leaky import Layout
from lightning_leaky.reading.passed_batch import Segmentation


def seen(*widths, tokens=3, dtype=torch.float32):
    """Of layers that map each width to the next."""
    states = [torch.zeros(2, tokens, width, dtype=dtype) for width in widths]
    return Segmentation.seen(states[:-1], states[1:], Layout())


@pytest.mark.parametrize(
    ("widths", "segments"),
    [
        ((4, 4, 4), [1, 1]),
        ((4, 4, 8, 8, 8), [1, 0, 2, 2]),
        ((4, 8, 8), [0, 1]),
        ((4, 4, 8), [1, 0]),
        ((4, 8, 4), [0, 0]),
        ((4, 4, 8, 4, 4), [1, 0, 0, 2]),
        ((4, 4, 4, 8, 8, 4, 4), [1, 1, 0, 2, 0, 3]),
    ],
)
def test_layers_that_change_the_width_are_in_no_segment(widths, segments):
    found = seen(*widths)
    assert list(found.segments) == segments
    assert found.layers == [index for index, segment in enumerate(segments) if segment]
    expected = {segment: (widths[index], segments.count(segment)) for index, segment in enumerate(segments) if segment}
    assert found.widths == list(expected.values())
    assert found.is_known is bool(found.layers)


def test_processes_agree_on_a_table():
    found = seen(4, 4, 8, 8)
    assert Segmentation.of(found.table) == found


def test_the_number_of_positions_is_left_out():
    """It may be another in every batch, and on every process."""
    many, few = torch.zeros(2, 6, 4), torch.zeros(2, 3, 4)
    assert Segmentation.seen([many, few], [many, few], Layout()).segments == (1, 1)


@pytest.mark.parametrize(("dtype", "wide"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_samples_are_in_float32_at_least(dtype, wide):
    assert seen(4, 4, dtype=dtype).dtype == wide


def test_nothing_is_known_of_a_path_that_no_batch_has_passed():
    assert not Segmentation.unknown(3).is_known
    assert Segmentation.unknown(3).layers == []
