"""The matrix of versions tries what pyproject.toml declares, and a cell that failed is seen to have failed."""

import pytest
from packaging.requirements import Requirement

from tests.matrix import PROJECT, Cell, Outcome, cells, counts_of, lower_bounds

CELL = Cell("3.11", "python3.11", "pinned")


def test_each_python_is_tried_and_both_ends_of_the_versions():
    found = {"3.11": "a", "3.12": "b", "3.13": "c"}
    assert [cell.name for cell in cells(found)] == [
        "3.11-pinned",
        "3.12-pinned",
        "3.13-pinned",
        "3.11-oldest",
        "3.13-oldest",
        "3.13-newest",
    ]
    assert [cell.name for cell in cells({"3.11": "a"})] == ["3.11-pinned", "3.11-oldest", "3.11-newest"]


def test_the_oldest_versions_are_those_that_are_declared():
    bounds = dict(bound.split("==") for bound in lower_bounds("3.11"))
    for text in PROJECT["dependencies"]:
        requirement = Requirement(text)
        assert bounds[requirement.name] in requirement.specifier
    assert {"matplotlib", "jsonargparse", "jinja2", "rich", "mlxtend", "pytest"} <= bounds.keys()


@pytest.mark.parametrize("name", ["pytorch-lightning", "lightning"])
@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_releases_that_carried_malware_are_excluded(name, version):
    (requirement,) = [one for one in map(Requirement, PROJECT["dependencies"]) if one.name == name]
    assert version not in requirement.specifier
    assert "2.6.4" in requirement.specifier


@pytest.mark.parametrize(
    ("counts", "program", "has_passed"),
    [
        ({"passed": 3, "failed": 0, "skipped": 1}, "passed", True),
        ({"passed": 3, "failed": 1, "skipped": 0}, "passed", False),
        ({"passed": 0, "failed": 0, "skipped": 3}, "passed", False),
        ({"passed": 3, "failed": 0, "skipped": 0}, "failed", False),
        ({}, "not installed", False),
    ],
)
def test_only_what_ran_has_passed(counts, program, has_passed):
    assert Outcome(CELL, {}, counts, program, 1.0).has_passed is has_passed


def test_counts_are_those_of_the_report(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text('<testsuites><testsuite tests="9" failures="1" errors="2" skipped="3"/></testsuites>')
    assert counts_of(report) == {"passed": 3, "failed": 3, "skipped": 3}
