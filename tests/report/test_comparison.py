"""Runs side by side: what is read of logs, and what stands on the page."""

import json

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from lightning_leaky import EnergyMonitor, Quantity, StepSizeAdapter
from lightning_leaky.cli import main
from lightning_leaky.report import Run, as_html, as_json, compare, read_run, report_on
from lightning_leaky.report.page import figures_with_captions
from tests.callbacks.helpers import rows_of
from tests.report.test_report import BATCHES, Page, words_of

OWN = Quantity("my_own", lambda sums: sums.step_sizes * 7, title="what is mine", says="Nothing.")


@pytest.fixture
def network_in_two_parts():
    sizes = [(3, 3), (3, 3), (3, 5), (5, 5), (5, 5)]
    return nn.Sequential(*(nn.Sequential(nn.Linear(*size), nn.Tanh()) for size in sizes))


@pytest.fixture
def fitted(make_module, make_data, make_trainer, tmp_path):
    """A fit whose log is read, and the folder of that log."""

    def fit(kind):
        logger, monitor = kind(tmp_path), EnergyMonitor()
        trainer = make_trainer(monitor, StepSizeAdapter(every_n_steps=1), logger=logger, max_epochs=3)
        trainer.fit(make_module(), datamodule=make_data())
        return logger.log_dir, monitor.readings

    return fit


@pytest.mark.parametrize("kind", [TensorBoardLogger, CSVLogger])
def test_the_last_readings_are_read_from_a_log(fitted, kind):
    folder, readings = fitted(kind)
    run = read_run(folder)
    assert run.name == str(folder)
    for prefix, stage in (("", "train"), ("val_", "validate")):
        for name, values in readings[stage].quantities.items():
            assert run.layers[prefix + name] == pytest.approx(values.tolist(), rel=1e-6)
        for key, value in readings[stage].summaries(prefix).items():
            assert run.numbers[key] == pytest.approx(float(value), rel=1e-6)
    assert len(run.layers["step_size"]) == 4
    assert not [key for key in run.numbers if key.startswith("final_") or key in ("epoch", "step", "hp_metric")]


def test_readings_of_a_monitor_with_a_prefix_are_told_apart(make_module, make_data, make_trainer, tmp_path):
    logger, monitor = CSVLogger(tmp_path), EnergyMonitor(prefix="decoder/")
    make_trainer(monitor, logger=logger).fit(make_module(), datamodule=make_data())
    logger.log_metrics({"decoder/final_hamiltonian/spread": 1.0})
    logger.save()
    run = read_run(logger.log_dir)
    for prefix, stage in (("decoder/", "train"), ("decoder/val_", "validate")):
        for name, values in monitor.readings[stage].quantities.items():
            assert run.layers[prefix + name] == pytest.approx(values.tolist(), rel=1e-6)
    assert not [key for key in run.numbers if "/layer_" in key or "final_" in key]
    assert "decoder/kinetic energy, validation data, at the end" in compare([run])


def test_losses_are_read_too(fitted):
    folder, _ = fitted(CSVLogger)
    last = [row["train/loss"] for row in rows_of(folder) if row["train/loss"]][-1]
    assert read_run(folder).numbers["train/loss"] == float(last)


def test_layers_that_were_merged_away_are_not_at_the_end(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({f"kinetic_energy/layer_{number:02d}": float(number) for number in range(1, 7)}, step=0)
    logger.log_metrics({f"kinetic_energy/layer_{number:02d}": 10.0 * number for number in range(1, 5)}, step=50)
    logger.log_metrics({"users/layer_03": 7.0}, step=50)
    logger.save()
    run = read_run(logger.log_dir)
    assert run.layers == {"kinetic_energy": [10.0, 20.0, 30.0, 40.0], "users": [7.0]}
    assert run.numbers == {}


def test_names_of_runs_are_no_formulas():
    text = compare([Run(name, {}, {"kinetic_energy": [1.0, 2.0]}) for name in (r"_$\foo$", r"_$\foo$")])
    assert text.count("foo") >= 4


def test_the_json_of_a_report_is_a_run(make_network, tmp_path):
    report = report_on(make_network(), BATCHES, "net")
    (tmp_path / "report.json").write_text(as_json(report))
    run = read_run(tmp_path / "report.json")
    assert run.numbers == {key: float(value) for key, value in report.readings.summaries().items()}
    assert run.layers["kinetic_energy"] == report.readings["kinetic_energy"].tolist()
    assert "position" not in run.layers


def test_the_page_has_a_column_a_run_and_a_line_a_run():
    runs = [
        Run(
            "first",
            {"loss": 0.25, "spread": None},
            {"kinetic_energy": [1.0, 2.0], "val_kinetic_energy": [1.0, 2.0], "other": [1.0]},
        ),
        Run("second", {"loss": 0.5, "accuracy": 1.0}, {"kinetic_energy": [3.0, None, 4.0]}),
    ]
    text = compare(runs)
    page = Page(text)
    words = [word.strip() for word in page.words if word.strip()]
    place = words.index("accuracy")
    assert words[place : place + 9] == ["accuracy", "–", "1", "loss", "0.25", "0.5", "spread", "–", "–"]
    assert text.count("<svg") == 3
    assert [word for word in words if word.endswith(", at the end")] == [
        "kinetic energy, at the end",
        "kinetic energy, validation data, at the end",
        "other, at the end",
    ]


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_the_page(fitted, tmp_path, capsys):
    folder, _ = fitted(CSVLogger)
    main(["compare", str(folder), str(folder), f"--output={tmp_path / 'both'}"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [str(folder)] * 2
    assert any(line.startswith("hamiltonian/bottleneck_rank ") for line in lines)
    Page((tmp_path / "both" / "index.html").read_text())


def test_all_that_a_report_states_is_on_the_page(network_in_two_parts, tmp_path):
    """In words, and each number of each layer; the figure of a quantity of one's own has its title."""
    report = report_on(
        network_in_two_parts, [torch.randn(9, 3)], "parts", {"data": "points"}, layers="*", quantities=["speed", OWN]
    )
    (tmp_path / "report.json").write_text(as_json(report))
    run = read_run(tmp_path / "report.json")
    assert run.layers["my_own"] == report.readings["my_own"].tolist()
    words = words_of(compare([run]))
    captions = {caption for caption, _ in figures_with_captions(report)}
    assert set(words_of(as_html(report))) - set(words) == {"Figures", "parts", *captions}
    assert f"{tmp_path / 'report.json'}: parts" in words
    assert "what is mine, at the end" in words
    assert {"Segment 2, layers 3–4:", "3", "points", "share of the work of its segment"} <= set(words)


def test_layers_of_a_quantity_of_ones_own_are_read_from_a_log(tmp_path):
    """Of each loader."""
    logger = CSVLogger(tmp_path)
    for loader in ("", "/dataloader_idx_0", "/dataloader_idx_1"):
        logger.log_metrics({f"val_my_own/layer_0{number}{loader}": float(number) for number in (1, 2)}, step=0)
        logger.log_metrics({f"speed/layer_0{number}{loader}": float(number) for number in (1, 2)}, step=0)
    logger.save()
    run = read_run(logger.log_dir)
    assert run.numbers == {}
    assert len(run.layers) == 6
    assert run.layers["val_my_own"] == run.layers["val_my_own/dataloader_idx_1"] == [1.0, 2.0]
    captions = [word for word in Page(compare([run])).words if word.endswith("at the end")]
    assert {"val_my_own, at the end", "speed/dataloader_idx_1, at the end"} <= set(captions)


def test_step_sizes_are_drawn_where_they_differ():
    runs = [Run(name, {}, {"step_size": sizes}) for name, sizes in (("a", [0.5, 0.5]), ("b", [0.25, 0.75]))]
    assert compare(runs[:1]).count("<svg") == 0
    assert compare(runs).count("<svg") == 1


@pytest.mark.parametrize("content", [None, {"other": 1}, {"title": "old", "summaries": {}, "layers": {}}, [1]])
def test_refuses_what_is_no_run(tmp_path, content):
    if content is not None:
        (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="`run` must be a"):
        read_run(tmp_path / "other.json")
    for output in ([], [f"--output={tmp_path / 'page.html'}"]):
        with pytest.raises(SystemExit, match=r"^lightning-leaky compare: `run` must be a"):
            main(["compare", str(tmp_path / "other.json"), *output])
    assert list(tmp_path.glob("page*")) == []


def test_output_is_a_folder(tmp_path, monkeypatch):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"loss": 1.0})
    logger.save()
    monkeypatch.chdir(tmp_path)
    main(["compare", logger.log_dir])
    Page((tmp_path / "comparison" / "index.html").read_text())
    (tmp_path / "file").touch()
    for output, reason in (("file", "File exists"), ("file/folder", "Not a directory")):
        with pytest.raises(SystemExit, match=f"`output` must be a folder to write to, got '{output}': .*{reason}"):
            main(["compare", logger.log_dir, f"--output={output}"])


def test_refuses_nothing():
    with pytest.raises(ValueError, match="at least one"):
        compare([])
