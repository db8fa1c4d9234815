"""The check of a release passes a commit that is ready, and names what another lacks."""

import os
import subprocess

import pytest

from tests.packaging.release import CHECKS
from tests.packaging.table import run_all

READY = {
    "pyproject.toml": '[project]\nversion = "1.2.0"\n',
    "lightning_leaky/__init__.py": '"""Text."""\n\n__version__ = "1.2.0"\n',
    "CITATION.cff": "cff-version: 1.2.0\nversion: 1.2.0\n",
    "CHANGELOG.md": "# Changelog\n\n## [Unreleased]\n\n## [1.2.0] - 2026-02-03\n\n### Added\n\n- All.\n",
}


def changed(file: str, old: str, new: str) -> dict[str, str]:
    assert old in READY[file]
    return {file: READY[file].replace(old, new)}


@pytest.fixture
def commit(tmp_path, monkeypatch):
    """A commit of what is ready and of changes to it, with a tag."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:  # as a hook of git sets them
        monkeypatch.delenv(name)

    def git(*arguments):
        identity = ("-c", "user.name=n", "-c", "user.email=e", "-c", "tag.gpgSign=false", "-c", "commit.gpgSign=false")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    def make(changes, tag="v1.2.0", then=()):
        git("init")
        for name, text in (READY | changes).items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text, encoding="utf-8")
        git("add", "--all")
        git("commit", "--message", "all")
        if tag:
            git("tag", tag)
        for command in then:
            git(*command)
        return tmp_path

    return make


def test_a_commit_that_is_ready_passes(commit):
    results = [row.result for row in run_all(CHECKS, commit({}))]
    assert results[:2] == ["passed: 1.2.0", "passed: 2026-02-03"]
    assert results[3] == "passed: v1.2.0"
    assert len(results) == len(CHECKS) == 4


def test_the_tag_may_come_later(commit):
    assert run_all(CHECKS, commit({}, tag=None))[-1].result == "passed: none yet"


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        (
            "version",
            changed("CITATION.cff", "\nversion: 1.2.0", "\nversion: 1.1.0"),
            "CITATION.cff says 1.1.0",
        ),
        ("version", changed("lightning_leaky/__init__.py", "1.2.0", "1.3.0"), "__init__.py says 1.3.0"),
        ("changelog", changed("CHANGELOG.md", "[Unreleased]\n", "[Unreleased]\n\n- Two.\n"), "1 lines stand under"),
        ("changelog", changed("CHANGELOG.md", "[1.2.0] - 2026-02-03", "[1.1.0] - 2026-02-03"), "no section of this"),
        ("changelog", changed("CHANGELOG.md", "2026-02-03", "soon"), "'soon' is not a date"),
    ],
)
def test_what_is_missing_is_told(commit, name, changes, said):
    failed = {row.name: row.result for row in run_all(CHECKS, commit(changes)) if row.has_failed}
    assert list(failed) == [name]
    assert said in failed[name]


def test_files_that_are_not_committed_are_told(commit):
    root = commit({})
    (root / "new.py").write_text("")
    failed = [row.name for row in run_all(CHECKS, root) if row.has_failed]
    assert failed == ["working tree"]


@pytest.mark.parametrize(
    ("tag", "then", "said"),
    [
        ("v1.1.0", (), "its version wants v1.2.0"),
        ("v1.2.0", [("commit", "--allow-empty", "--message", "more")], "raise the version"),
    ],
)
def test_a_tag_of_another_version_or_commit_is_told(commit, tag, then, said):
    failed = {row.name: row.result for row in run_all(CHECKS, commit({}, tag, then)) if row.has_failed}
    assert list(failed) == ["tag"]
    assert said in failed["tag"]
