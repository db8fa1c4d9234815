"""The check of messages looks at every figure, and says what is wrong with one."""

import pytest

from lightning_leaky import plotting
from tests.packaging.missing import FEATURES, Feature, complaint


def unhelpful():
    raise ModuleNotFoundError("No module named 'matplotlib'")


@pytest.mark.parametrize(
    ("feature", "said"),
    [
        (Feature("torch", "plot", unhelpful), "torch is installed; nothing can be said"),
        (Feature("nowhere_to_be_found", "plot", unhelpful), "the extra [plot] does not install nowhere_to_be_found"),
    ],
)
def test_a_check_that_says_nothing_is_told(feature, said):
    assert complaint(feature) == said


@pytest.mark.parametrize(("use", "said"), [(unhelpful, "the message does not say"), (list, "no error without")])
def test_a_message_without_the_extra_is_told(use, said, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert complaint(Feature("matplotlib", "plot", use)).startswith(said)


def test_every_figure_is_among_the_features():
    assert {name for name in plotting.__all__ if name.startswith("plot_")} <= set(FEATURES)
