"""The table hides no failure, and nothing is left behind where there is one."""

import pytest

from tests.packaging import check


def fails(product):
    raise ValueError("here | and\nthere")


def passes(product):
    (product.folder / "dist").mkdir(exist_ok=True)


def detailed(product):
    return "0.1 s"


@pytest.fixture
def steps(monkeypatch):
    """Set steps and checks to others that take no time."""

    def choose(steps, checks):
        monkeypatch.setattr(check, "STEPS", steps)
        monkeypatch.setattr(check, "CHECKS", checks)

    return choose


def test_a_failed_check_is_told_and_stops_no_other(steps, capsys, tmp_path):
    steps({"build": passes}, {"one": fails, "two": detailed})
    assert check.main(["--dist", str(tmp_path / "dist")]) == 1
    printed = capsys.readouterr()
    assert "| one | FAILED: ValueError: here / and there |" in printed.out
    assert "| two | passed: 0.1 s |" in printed.out
    assert "2 passed, 1 failed" in printed.out
    assert "Traceback" in printed.err
    assert not (tmp_path / "dist").exists()


def test_nothing_is_checked_of_what_was_not_built(steps, capsys):
    steps({"build": fails}, {"one": passes})
    assert check.main([]) == 1
    assert "0 passed, 1 failed" in capsys.readouterr().out


def test_checks_that_pass_end_well_and_leave_the_archives(steps, tmp_path):
    steps({"build": passes}, {"one": passes})
    assert check.main(["--dist", str(tmp_path / "dist")]) == 0
    assert (tmp_path / "dist").is_dir()
