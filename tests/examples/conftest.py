"""Tests of the studies and the notebook are slow; without what they need beyond `test`, they are not collected."""

from importlib.util import find_spec
from pathlib import Path

import pytest

collect_ignore_glob = [] if all(map(find_spec, ("torchdiffeq", "nbclient", "plotnine"))) else ["test_*.py"]


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
