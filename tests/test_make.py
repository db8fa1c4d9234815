"""What `make test` says where it cannot run, and what `make audit` makes of pip-audit's answer."""

import shutil
import subprocess

import pytest

from tests.audit import verdict
from tests.pages import ROOT

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@needs_make
@pytest.mark.parametrize("script", ["exit 1", "echo ModuleNotFoundError: ensurepip >&2; exit 1", None])
def test_a_python_that_does_not_do_is_named_in_one_line(tmp_path, script):
    """Too old, without the module venv, or missing."""
    python = tmp_path / "python"
    if script is not None:
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
    command = ["make", "--silent", "test", f"PYTHON={python}", f"VENV={tmp_path / 'environment'}"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode != 0
    assert ended.stdout.splitlines() == [
        f"PYTHON must be Python 3.11 or later with its venv module, got {python}: try make PYTHON=python3.12."
    ]
    assert not (tmp_path / "environment").exists()


KNOWN = {"name": "one", "version": "1", "vulns": []}
HARMFUL = {"name": "two", "version": "1", "vulns": [{"id": "CVE-1"}]}
UNKNOWN = {"name": "three", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "said", "status"),
    [
        ([UNKNOWN], "NOT RUN: the database knows none of 1 packages; it is out of reach.", 0),
        ([KNOWN, UNKNOWN], "1 packages checked, 0 vulnerabilities found.\nNot in the database: three.", 0),
        ([KNOWN, HARMFUL], "two: CVE-1\n2 packages checked, 1 vulnerabilities found.", 1),
    ],
)
def test_an_audit_says_what_was_not_checked(packages, said, status):
    assert verdict({"dependencies": packages}) == (said, status)
