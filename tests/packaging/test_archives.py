"""An archive that holds too much is told."""

import io
import tarfile
import zipfile

import pytest

from tests.packaging import archives

FOLDER = f"{archives.PACKAGE}-{archives.VERSION}"


@pytest.fixture
def sdist(tmp_path):
    """A source archive with an empty file of each name that is listed, and of further names."""

    def make(*more):
        listed = archives.PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
        with tarfile.open(tmp_path / "archive.tar.gz", "w:gz") as archive:
            for name in (*listed, *archives.ADDED, *more):
                archive.addfile(tarfile.TarInfo(f"{FOLDER}/{name}"), io.BytesIO())
        return tmp_path / "archive.tar.gz"

    return make


def test_a_source_archive_of_what_is_listed_is_right(sdist):
    archives.sdist_is_right(sdist())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("docs/paper/energies/rank.png", "leave them out by `exclude`"),
        ("examples/paper/results/energies/runs.csv", "leave them out by `exclude`"),
        ("tests/__pycache__/a.py", "leave them out by `exclude`"),
        ("runs/log.txt", r"differs in \['runs'\]"),
    ],
)
def test_a_source_archive_that_holds_more_is_told(sdist, name, said):
    with pytest.raises(AssertionError, match=said):
        archives.sdist_is_right(sdist(name))


@pytest.mark.parametrize("lost", ["lightning_leaky/py.typed", "lightning_leaky/__init__.py"])
def test_a_wheel_that_lacks_a_file_is_told(lost, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "ROOT", tmp_path)
    names = ["lightning_leaky/__init__.py", "lightning_leaky/py.typed"]
    (tmp_path / "lightning_leaky").mkdir()
    with zipfile.ZipFile(tmp_path / "right.whl", "w") as right, zipfile.ZipFile(tmp_path / "wrong.whl", "w") as wrong:
        for name in names:
            (tmp_path / name).touch()
            right.writestr(name, "")
            if name != lost:
                wrong.writestr(name, "")
    archives.wheel_is_right(tmp_path / "right.whl")
    with pytest.raises(AssertionError, match=lost):
        archives.wheel_is_right(tmp_path / "wrong.whl")


def test_an_archive_that_is_too_large_is_told(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"1234")
    monkeypatch.setattr(archives, "MAX_BYTES", {"wheel": 4, "source archive": 4})
    archives.sizes_are_right(tmp_path / "a", tmp_path / "a")
    monkeypatch.setattr(archives, "MAX_BYTES", {"wheel": 4, "source archive": 3})
    with pytest.raises(AssertionError, match="source archive"):
        archives.sizes_are_right(tmp_path / "a", tmp_path / "a")
