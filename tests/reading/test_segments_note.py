"""What a log says of a path that is split, or of which a layer is left out."""

import torch

from lightning_leaky import Layout
from lightning_leaky.reading.checks import segments_note
from lightning_leaky.reading.passed_batch import Segmentation


def note(*widths: int) -> str | None:
    """Of layers a, b, … that map each width to the next."""
    states = [torch.zeros(9, width) for width in widths]
    found = Segmentation.seen(states[:-1], states[1:], Layout())
    return segments_note(found, [chr(ord("a") + index) for index in range(len(widths) - 1)])


def test_segments_are_counted_where_there_are_several():
    assert note(4, 4, 4) is None
    assert note(4, 4, 4, 8) == "The shape changes along the path. Layers read: 2; left out: c."
    assert note(4, 4, 8, 8, 8) == "The shape changes along the path. Layers read: 3, in 2 segments; left out: b."
