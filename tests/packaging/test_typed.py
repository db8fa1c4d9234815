"""The types of the package reach its users: mypy finds no error in right calls, and each of the wrong ones."""

from tests.packaging import typed
from tests.packaging.archives import ROOT


def test_mypy_reads_the_types_of_the_package(tmp_path):
    # A cache of its own beside that of `make types`, whose settings differ: half a minute without, a second with it.
    assert typed.differences(tmp_path, f"--cache-dir={ROOT / '.mypy_cache' / 'packaging'}") == []
