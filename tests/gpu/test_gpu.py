"""That the scripts hide no failure, anywhere; the checks themselves are run by `make gpu`."""

import json

import pytest
import torch

from tests.gpu import NO_CUDA, check
from tests.gpu import __main__ as script

CUT = """
import pathlib, sys, time
output = pathlib.Path(sys.argv[-1])
output.with_suffix(".md").write_text("a table")
output.write_text('{"checks": ["a row"]}')
time.sleep(100)
"""


def fails(device):
    raise ValueError(f"on {device} | and\nhere")


def passes(device):
    pass


def test_a_failed_check_is_told_and_stops_no_other(monkeypatch, capsys):
    monkeypatch.setattr(check, "PARTS", {"checks": {"one": fails, "two": passes, "no synchronisation": fails}})
    assert check.main(["--device", "cpu"]) == 1
    printed = capsys.readouterr()
    assert "| one | FAILED: ValueError: on cpu / and here |" in printed.out
    assert "| two | passed |" in printed.out
    assert "| no synchronisation | needs CUDA |" in printed.out
    assert "1 passed, 1 FAILED, 1 needs CUDA" in printed.out
    assert "Traceback" in printed.err


def test_checks_are_written_while_they_run(monkeypatch, tmp_path):
    output, seen = tmp_path / "checks.json", []

    def looks(device):
        seen.extend(row["result"] for row in json.loads(output.read_text())["checks"])

    monkeypatch.setattr(check, "PARTS", {"checks": {"one": passes, "two": looks, "three": passes}})
    assert check.main(["--device", "cpu", "--output", str(output)]) == 0
    assert seen == ["passed", "running", "not reached"]
    assert "3 passed" in output.with_suffix(".md").read_text()


def test_every_part_is_told_of_whatever_becomes_of_another(monkeypatch, tmp_path, capsys):
    for name, code in (("cut", CUT), ("fails", "raise SystemExit('no chip')"), ("passes", "")):
        (tmp_path / f"part_that_{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(script, "PATIENCE", 1)
    times = {"cut": 1.0, "fails": 20.0, "passes": 20.0}
    parts = [script.Part(name, seconds, f"part_that_{name}") for name, seconds in times.items()]
    monkeypatch.setattr(script, "PARTS", parts)
    folder = tmp_path / "results"
    assert script.main(["--device", "cpu", "--reduced", "--output", str(folder)]) == 1
    found, text = json.loads((folder / "gpu.json").read_text()), (folder / "gpu.md").read_text()
    assert [part["status"] for part in found["parts"].values()] == ["CUT", "FAILED with status 1", "passed"]
    assert found["parts"]["cut"]["checks"] == ["a row"]
    assert "a table" in text
    assert "no chip" in text
    assert found["rehearsal"]
    assert script.REHEARSAL in text
    assert script.REHEARSAL in capsys.readouterr().out


def test_all_passed_is_status_0(monkeypatch, tmp_path):
    (tmp_path / "part_that_passes.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(script, "PARTS", [script.Part("passes", 20, "part_that_passes")])
    assert script.main(["--device", "cpu", "--reduced", "--output", str(tmp_path)]) == 0


def test_the_run_takes_less_than_eight_minutes():
    assert sum(part.seconds for part in script.PARTS) < 8 * 60


@pytest.mark.parametrize("main", [check.main, script.main])
def test_without_cuda_nothing_runs_and_it_says_so(main, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    assert NO_CUDA in capsys.readouterr().err


def test_a_cpu_takes_reduced_sizes_only(monkeypatch, capsys):
    monkeypatch.setattr(script, "PARTS", [])
    with pytest.raises(SystemExit, match="2"):
        script.main(["--device", "cpu"])
    assert "--reduced" in capsys.readouterr().err
