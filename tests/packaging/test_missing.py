"""Without a package that a feature needs, the message says how to install it."""

import pytest

from lightning_leaky import plotting
from tests.packaging.missing import FEATURES
from tests.packaging.scripts import run_script


def test_messages_name_the_missing_extras(tmp_path):
    """In a process that finds none of the optional packages."""
    packages = {feature.package for feature in FEATURES.values()}
    assert run_script("missing.py", *packages, cwd=tmp_path).split() == []


def test_a_package_that_is_there_says_nothing_of_the_message(tmp_path):
    with pytest.raises(RuntimeError, match="mlxtend is installed; nothing can be said"):
        run_script("missing.py", "matplotlib", "jsonargparse", cwd=tmp_path)


def test_every_figure_is_among_the_features():
    assert {name for name in plotting.__all__ if name.startswith("plot_")} <= set(FEATURES)
