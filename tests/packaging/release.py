"""Whether this commit can be released: `python -m tests.packaging.release`.

It looks at the version, the changelog, the working tree and the tag, and goes on with all of `tests.packaging.check`.
"""

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from datetime import date
from pathlib import Path

from tests.packaging import check

FILES_OF_VERSION: dict[str, Callable[[str], str]] = {
    "pyproject.toml": lambda text: tomllib.loads(text)["project"]["version"],
    "lightning_leaky/__init__.py": lambda text: matched(r'^__version__ = "(.*)"$', text),
    "CITATION.cff": lambda text: matched(r"^version: (.*)$", text),
}


def matched(pattern: str, text: str) -> str:
    """What the pattern finds in the text, or a word for nothing."""
    found = re.search(pattern, text, flags=re.MULTILINE)
    return found[1].strip("\"'") if found else "none"


def version_of(root: Path, file: str = "pyproject.toml") -> str:
    """The version that a file of the checkout states."""
    return FILES_OF_VERSION[file]((root / file).read_text(encoding="utf-8"))


def git(root: Path, *arguments: str) -> str:
    """What git says of the checkout."""
    run = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    assert not run.returncode, f"git cannot read {root}: {run.stderr.strip()}; release from a clone"
    return run.stdout.strip()


def versions_agree(root: Path) -> str:
    """Every file that states the version states the same."""
    found = {file: version_of(root, file) for file in FILES_OF_VERSION}
    shown = ", ".join(f"{file} says {version}" for file, version in found.items())
    assert len(set(found.values())) == 1, f"{shown}; make them the same"
    return version_of(root)


def changelog_is_dated(root: Path) -> str:
    """The version has a section with a date, and nothing waits under "Unreleased"."""
    version, text = version_of(root), (root / "CHANGELOG.md").read_text(encoding="utf-8")
    sections: dict[str, str] = dict(re.findall(r"^## (.*)\n((?:(?!## ).*\n?)*)", text, flags=re.MULTILINE))
    waiting = sections.get("[Unreleased]", "").strip()
    assert not waiting, (
        f"{len(waiting.splitlines())} lines stand under [Unreleased]; move them to ## [{version}] - {date.today()}"
    )
    dates = [title.removeprefix(f"[{version}] - ") for title in sections if title.startswith(f"[{version}]")]
    assert dates, f"CHANGELOG.md has no section of this version; write ## [{version}] - {date.today()}"
    try:
        date.fromisoformat(dates[0])
    except ValueError as error:
        raise AssertionError(f"{dates[0]!r} is not a date; write ## [{version}] - {date.today()}") from error
    return dates[0]


def tree_is_clean(root: Path) -> str:
    """What would be released is committed."""
    changed = git(root, "status", "--porcelain")
    assert not changed, f"{len(changed.splitlines())} files are not committed; commit or remove them: {changed}"
    return git(root, "rev-parse", "--short", "HEAD")


def tag_fits(root: Path) -> str:
    """No tag of a version is on this commit but that of its own."""
    right, tags = f"v{version_of(root)}", git(root, "tag", "--points-at", "HEAD", "--list", "v*").split()
    assert set(tags) <= {right}, f"this commit has the tags {tags}; its version wants {right}"
    elsewhere = git(root, "tag", "--list", right) and not tags
    assert not elsewhere, f"{right} is the tag of another commit; raise the version"
    return right if tags else "none yet"


CHECKS: dict[str, Callable[[Path], str]] = {
    "version": versions_agree,
    "changelog": changelog_is_dated,
    "working tree": tree_is_clean,
    "tag": tag_fits,
}

if __name__ == "__main__":
    sys.exit(check.main(before=CHECKS))
