"""A record of the user's own is read, logged, charted and explained as ours are."""

import csv
import pickle
import re

import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_leaky import EnergyMonitor, PathFigures, Quantity, Summary, cli, measure_path, print_layers
from lightning_leaky.metrics import QUANTITIES
from lightning_leaky.report import as_html, as_json, report_on


def effective_rank(sums):
    """exp of the entropy of the singular values, as shares of their sum."""
    shares = sums.singular_values / sums.singular_values.sum(-1, keepdim=True)
    return torch.special.entr(shares).sum(-1).exp()


def least(values, step_sizes, effective_depth):
    return values.amin()


EFFECTIVE_RANK = Quantity(
    "effective_rank",
    effective_rank,
    needs="spectrum",
    title="effective rank",
    formula="exp(entropy of σ(A))",
    says="How many directions share the representation.",
    summaries=(Summary("min", "Least over the layers.", least, chart=("Is it flat?", "least effective rank")),),
    heading="eff. rank",
    heat_map="linear",
)


def by_hand(representations):
    values = torch.linalg.svdvals(representations.double())
    shares = values / values.sum(-1, keepdim=True)
    return (-(shares * shares.clamp(min=1e-300).log()).sum(-1)).exp()


@pytest.fixture
def batches():
    return [torch.randn(rows, 3) for rows in (7, 2, 5)]


@pytest.mark.parametrize("form", ["auto", "moments", "samples"])
def test_it_is_exact_over_batches(make_network, batches, form):
    network = make_network()
    readings = measure_path(network, batches, ["cost_of_identity", EFFECTIVE_RANK], form=form)
    with torch.no_grad():
        expected = by_hand(network.representations(torch.cat(batches))[:-1])
    torch.testing.assert_close(readings["effective_rank"], expected, rtol=1e-6, atol=0)
    assert readings.summaries()["effective_rank/min"] == readings["effective_rank"].amin()


def test_its_keys_are_logged_and_its_charts_and_guide_written(make_module, make_data, make_trainer, tmp_path):
    loggers = [TensorBoardLogger(tmp_path, version="board"), CSVLogger(tmp_path, version="csv")]
    monitor = EnergyMonitor(quantities=["kinetic_energy", EFFECTIVE_RANK], every_n_steps=1)
    trainer = make_trainer(monitor, PathFigures(every_n_steps=1), logger=loggers)
    trainer.fit(make_module(), datamodule=make_data())
    events = EventAccumulator(loggers[0].log_dir, size_guidance={"tensors": 0, "images": 0})
    events.Reload()
    assert {"effective_rank/layer_01", "effective_rank/min", "val_effective_rank/layer_01"} <= set(
        events.Tags()["scalars"]
    )
    assert "layers/effective_rank" in events.Tags()["images"]
    (guide,) = [part.tensor_proto.string_val[0].decode() for part in events.Tensors("layers/guide/text_summary")]
    assert f"| `effective_rank/layer_*` | {EFFECTIVE_RANK.label()} | {EFFECTIVE_RANK.says} |" in guide
    assert "| `effective_rank/min` | summary of effective rank | Least over the layers. |" in guide
    (layout,) = [part.tensor_proto.string_val[0] for part in events.Tensors("custom_scalars__config__")]
    assert b"effective rank, each layer" in layout
    assert b"Is it flat?" in layout
    assert rb"^effective_rank/(segment_\d+/)?min$" in layout


def test_report_and_table_explain_it(make_network, batches, capsys):
    report = report_on(make_network(), batches, "net", quantities=["kinetic_energy", EFFECTIVE_RANK])
    page = as_html(report)
    assert EFFECTIVE_RANK.says in page
    assert "<th>effective rank</th>" in page
    assert '"effective_rank/min"' in as_json(report)
    print_layers(report.readings)
    assert "eff. rank" in capsys.readouterr().out


def test_a_configuration_names_it_by_its_import_path(tmp_path):
    monitor = {"quantities": ["cost_of_identity", "tests.test_own_quantity.EFFECTIVE_RANK"], "every_n_steps": 1}
    tree = {
        "model": {
            "class_path": "lightning_leaky.LeakyResNetModule",
            "init_args": {"in_features": 3, "out_features": 2, "width": 4, "num_layers": 3},
        },
        "data": {
            "class_path": "lightning_leaky.TeacherDataModule",
            "init_args": {"dims": [3, 1, 2], "num_train": 20, "num_val": 8},
        },
        "trainer": {
            "max_steps": 1,
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "default_root_dir": str(tmp_path),
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path)}},
            "callbacks": [{"class_path": "lightning_leaky.EnergyMonitor", "init_args": monitor}],
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    cli.main(["fit", "--config", str(tmp_path / "run.yaml")])
    (file,) = tmp_path.rglob("metrics.csv")
    with file.open(newline="") as lines:
        keys = csv.DictReader(lines).fieldnames
    assert {key for key in keys if re.match("effective_rank/layer_0[123]$", key)} == {
        f"effective_rank/layer_{index:02d}" for index in (1, 2, 3)
    }


def broken(sums):
    raise RuntimeError("no such thing")


def test_one_that_cannot_be_computed_stops_no_training(make_module, make_data, make_trainer, batches):
    record = Quantity("broken", broken)
    monitor, trainer = EnergyMonitor(quantities=["speed", record], every_n_steps=1), make_trainer()
    trainer.callbacks.append(monitor)
    with pytest.warns(UserWarning, match="Quantity 'broken' reads NaN: no such thing"):
        trainer.fit(make_module(), datamodule=make_data())
    assert trainer.global_step == 2
    readings = monitor.readings["train"]
    assert readings["broken"].isnan().all()
    assert readings["speed"].isfinite().all()
    with pytest.raises(ValueError, match="Quantity 'broken' reads NaN: no such thing"):
        measure_path(make_module(), batches, [record])


def test_monitors_with_records_can_be_pickled():
    """As ddp_spawn does; the records of the package by their keys."""
    monitor = pickle.loads(pickle.dumps(EnergyMonitor(quantities=[QUANTITIES["speed"], EFFECTIVE_RANK])))
    assert monitor.settings.quantities == ("speed", EFFECTIVE_RANK)


def test_a_record_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"`key` must be a name without a slash, got 'a/b'"):
        Quantity("a/b", effective_rank)
    with pytest.raises(ValueError, match=r"`sums` must be given where `needs` is \"own\""):
        Quantity("own", effective_rank, needs="own")
    with pytest.raises(ValueError, match="`quantities` must be chosen from"):
        EnergyMonitor(quantities=["tests.test_own_quantity.effective_rank"])
