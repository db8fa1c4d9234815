"""Settings that may say how many blocks there are."""

import argparse
import copy

import pytest

from lightning_leaky.dropping.rebuilding import adopt, mended
from lightning_leaky.dropping.stacks import Journal

CASES = {
    "number": ({"n_layer": 4, "n_head": 4}, {"n_layer": 2, "n_head": 4}),
    "alone": ({"depth": 4}, {"depth": 2}),
    "lists go along": ({"num_layers": 4, "layer_types": [*"abcd"]}, {"num_layers": 2, "layer_types": [*"ac"]}),
    "list": ({"widths": [1, 2, 3, 4]}, {"widths": [1, 3]}),
    "one of a list": ({"depths": (2, 4, 2)}, {"depths": (2, 2, 2)}),
    "inside": ({"net": {"num_blocks": 4}, "batch": 4}, {"net": {"num_blocks": 2}, "batch": 4}),
    "no flag": ({"use_layers": True, "num_layers": 4}, {"use_layers": True, "num_layers": 2}),
    "no tokens": ({"eos_token_id": [1, 2, 3, 4], "layers": 4}, {"eos_token_id": [1, 2, 3, 4], "layers": 2}),
}


@pytest.mark.parametrize(("settings", "want"), CASES.values(), ids=CASES)
def test_the_first_change_is_the_likeliest(settings, want):
    kept = copy.deepcopy(settings)
    first, *_ = mended(settings, 4, [0, 2])
    assert settings == kept
    assert first == want


def test_several_numbers_are_tried_one_by_one():
    found = list(mended({"encoder_layers": 3, "decoder_layers": 3}, 3, [1]))
    assert [(one["encoder_layers"], one["decoder_layers"]) for one in found] == [(1, 3), (3, 1)]


def test_lists_beside_that_are_not_called_after_layers_come_second():
    settings = {"num_layers": 3, "layer_types": [*"abc"], "widths": [1, 2, 3]}
    first, second, *_ = mended(settings, 3, [0, 2])
    assert first == {"num_layers": 2, "layer_types": [*"ac"], "widths": [1, 2, 3]}
    assert second == {"num_layers": 2, "layer_types": [*"ac"], "widths": [1, 3]}


def test_objects_are_settings_too():
    namespace = argparse.Namespace(num_layers=2, inner=argparse.Namespace(width=2))
    assert next(mended(namespace, 2, [0])) == argparse.Namespace(num_layers=1, inner=argparse.Namespace(width=2))


def test_changes_are_written_in_place_and_taken_back():
    inner = {"layers": [1, 2]}
    live = {"depth": 2, "inner": inner, "name": "a"}
    with Journal() as journal:
        adopt(live, {"depth": 1, "inner": {"layers": [2]}, "name": "a", "new": 3}, journal)
        assert live == {"depth": 1, "inner": {"layers": [2]}, "name": "a"}
        assert live["inner"] is inner
    assert live == {"depth": 2, "inner": {"layers": [1, 2]}, "name": "a"}


def test_a_dictionary_gets_its_order_back():
    place = {"a": 1, "b": 2, "c": 3}
    with Journal() as journal:
        journal.refill(place, {"b": 3})
        journal.refill(place, {"b": 4})
    assert list(place.items()) == [("a", 1), ("b", 2), ("c", 3)]
