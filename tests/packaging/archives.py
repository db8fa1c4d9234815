"""What the wheel and the source archive hold, and what their metadata says."""

import re
import tarfile
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

from packaging.metadata import Metadata

ROOT = Path(__file__).parent.parent.parent
PACKAGE = "lightning_leaky"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
VERSION = PROJECT["project"]["version"]
# What the build adds to what is listed.
ADDED = {"PKG-INFO", "pyproject.toml", ".gitignore"}
UNWANTED = re.compile(r"(^|/)(__pycache__|_build|lightning_logs|\..*)(/|$)|\.(pyc|ckpt)$")
# Megabytes that the repository keeps: tables and pictures of the studies, and pictures of the pages.
IN_REPOSITORY_ONLY = re.compile(r"\.(csv|png|svg|ipynb)$")
MAX_BYTES = {"wheel": 300_000, "source archive": 1_000_000}


def wheel_is_right(wheel: Path) -> None:
    """The wheel holds the files of the package, all of them, its metadata and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    metadata = {name for name in names if name.startswith(f"{PACKAGE}-{VERSION}.dist-info/")}
    files = [file.relative_to(ROOT).as_posix() for file in (ROOT / PACKAGE).rglob("*") if file.is_file()]
    expected = {file for file in files if not UNWANTED.search(file)}
    assert f"{PACKAGE}/py.typed" in expected
    assert names - metadata == expected, f"differs in {sorted((names - metadata) ^ expected)}"


def sdist_is_right(sdist: Path) -> None:
    """The source archive holds what pyproject.toml lists, no pictures, no CSV, and nothing that a run has made."""
    with tarfile.open(sdist) as archive:
        paths = [PurePosixPath(name).relative_to(f"{PACKAGE}-{VERSION}") for name in archive.getnames()]
    listed = set(PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"])
    top = {path.parts[0] for path in paths}
    assert top == listed | ADDED, f"differs in {sorted(top ^ (listed | ADDED))}"
    names = [str(path) for path in paths if str(path) not in ADDED]
    unwanted = [name for name in names if UNWANTED.search(name) or IN_REPOSITORY_ONLY.search(name)]
    assert not unwanted, f"holds {unwanted}; leave them out by `exclude` of the sdist in pyproject.toml"


def sizes_are_right(wheel: Path, sdist: Path) -> str:
    """Each archive is at most as large as `MAX_BYTES` says."""
    bytes_of = {"wheel": wheel.stat().st_size, "source archive": sdist.stat().st_size}
    shown = ", ".join(f"{name} {size / 1000:.0f} kB of {MAX_BYTES[name] / 1000:.0f}" for name, size in bytes_of.items())
    assert all(size <= MAX_BYTES[name] for name, size in bytes_of.items()), shown
    return shown


def metadata_is_right(wheel: Path) -> None:
    """The metadata keeps to the standard, and says the version, how to read the README, and all extras."""
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"{PACKAGE}-{VERSION}.dist-info/METADATA")
    metadata = Metadata.from_email(text, validate=True)
    said = {
        "name and version": (metadata.name, str(metadata.version)),
        "type of the README": metadata.description_content_type,
        "README": metadata.description,
        "extras": set(metadata.provides_extra or []),
    }
    expected = {
        "name and version": (PROJECT["project"]["name"], VERSION),
        "type of the README": "text/markdown",
        "README": (ROOT / "README.md").read_text(encoding="utf-8"),
        "extras": set(PROJECT["project"]["optional-dependencies"]),
    }
    wrong = [name for name, value in said.items() if value != expected[name]]
    assert not wrong, f"differs from the checkout in {', '.join(wrong)}"
