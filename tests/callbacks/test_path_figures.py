"""PathFigures and what else is no number: what each logger gets, when, and that training does not feel it."""

import itertools
import pickle
import re
import warnings

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, TensorDataset

from lightning_leaky import EnergyMonitor, LayerRefiner, PathFigures, StepSizeAdapter
from tests.callbacks.helpers import NoisyModule, Recorder, rows_of

FIGURES = {
    "layers/energies",
    "layers/singular_values_of_A",
    "layers/singular_values_of_W",
    "layers/path",
    "layers/block_influence",
    "layers/cost_of_identity",
    "layers/kinetic_energy",
    "layers/step_size",
}
WITHOUT_STEPS = FIGURES - {"layers/step_size"}


def events_of(logger: TensorBoardLogger) -> EventAccumulator:
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0, "tensors": 0, "histograms": 0})
    return events.Reload()


def text_of(events: EventAccumulator, key: str) -> list[str]:
    return [event.tensor_proto.string_val[0].decode() for event in events.Tensors(f"{key}/text_summary")]


@pytest.fixture
def make_trainer(make_trainer, tmp_path):
    """A trainer with a logger that shows pictures, unless told otherwise."""
    return lambda *callbacks, **changes: make_trainer(*callbacks, **({"logger": TensorBoardLogger(tmp_path)} | changes))


@pytest.fixture
def fitted(make_module, make_data, make_trainer, tmp_path):
    """Events of a fit of 8 steps with everything attached."""

    def fit(*callbacks, **changes):
        logger = TensorBoardLogger(tmp_path)
        trainer = make_trainer(*callbacks, logger=logger, **({"max_epochs": 8} | changes))
        trainer.fit(make_module(), datamodule=make_data())
        return events_of(logger)

    return fit


def test_tensorboard_gets_every_figure_at_its_rhythm(fitted):
    """Eight steps, counted from 0 as the loss is: the first, every third from there, and the last."""
    events = fitted(EnergyMonitor(), StepSizeAdapter(), PathFigures(every_n_steps=3), limit_val_batches=0)
    assert set(events.Tags()["images"]) == FIGURES
    losses = [event.step for event in events.Scalars("train/loss")]
    for key in FIGURES:
        steps = [event.step for event in events.Images(key)]
        expected = [losses[0], losses[3], losses[6], losses[7]]
        assert steps == (expected[1:] if key == "layers/step_size" else expected)  # at first they have not changed
        assert all((event.width, event.height) == (660, 450) for event in events.Images(key))
    assert len(text_of(events, "layers/diagnosis")) == 4
    assert text_of(events, "layers/diagnosis")[-1].startswith("Read of a training batch.\n\nBottleneck:")


def test_validation_data_are_shown_once_they_were_read(make_module, make_data, make_trainer, tmp_path):
    """Dropout is in training readings only. What takes gradients is there for training only."""
    monitor, figures, logger = EnergyMonitor(), Kept(every_n_steps=3), TensorBoardLogger(tmp_path)
    trainer = make_trainer(monitor, figures, max_epochs=5, logger=logger)
    trainer.fit(make_module(), datamodule=make_data())
    (_, first, _), *_ = figures.drawn
    _, last, _ = [one for one in figures.drawn if one[0] == "energies"][-1]
    titles = [figure.axes[0].get_title() for figure in (first, last)]
    assert titles[0].endswith(",\na training batch")
    assert titles[1].endswith(",\nvalidation data, momenta of a training batch")
    drawn = {line.get_label(): line.get_ydata().tolist() for line in last.axes[0].lines}
    assert drawn["kinetic energy"] == monitor.readings["validate"]["kinetic_energy"].tolist()
    assert drawn["Hamiltonian, momentum form"] == monitor.readings["train"]["hamiltonian"].tolist()
    assert {figure.axes[0].get_title().split("\n")[1] for name, figure, _ in figures.drawn if name == "path"} == {
        "a training batch"
    }
    texts = [text.split("\n\n")[0] for text in text_of(events_of(logger), "layers/diagnosis")]
    assert texts == ["Read of a training batch.", *["Read of validation data, momenta of a training batch."] * 2]
    assert figures.state_dict()["history"]["kinetic_energy"]["steps"].tolist() == [0, 1, 2, 3, 4]


def test_what_is_validated_after_a_fit_is_not_drawn(make_module, make_data, make_trainer):
    figures, module = Kept(every_n_steps=1), make_module()
    trainer = make_trainer(EnergyMonitor(), figures, max_epochs=1, check_val_every_n_epoch=2)
    trainer.fit(module, datamodule=make_data())
    number = len(figures.drawn)
    trainer.validate(module, datamodule=make_data(), verbose=False)
    assert len(figures.drawn) == number > 0


def test_step_sizes_are_drawn_once_they_have_changed(make_module, make_data, make_trainer):
    figures = Kept(every_n_steps=1)
    trainer = make_trainer(EnergyMonitor(), StepSizeAdapter(every_n_steps=1), figures, limit_val_batches=0)
    trainer.fit(make_module(), datamodule=make_data())
    assert [name for name, *_ in figures.drawn].count("energies") == 2
    assert [name for name, *_ in figures.drawn].count("step_size") == 1


def test_layout_page_and_final_numbers_are_written_once(fitted):
    events = fitted(EnergyMonitor(), StepSizeAdapter())
    (layout,) = events.Tensors("custom_scalars__config__")
    config = layout.tensor_proto.string_val[0]
    patterns = (b"^cost_of_identity/layer_", b"^step_size/layer_", b"hamiltonian/bottleneck_rank_max", b"^(val|test)_")
    for pattern in patterns:
        assert pattern in config
    (page,) = text_of(events, "layers/guide")
    assert "`criticality_residual/layer_*`" in page
    assert "| `step_sizes` | of StepSizeAdapter |" in page
    for row in (
        "| layers | `4 layers, network.layers.0 … network.layers.3` |",
        "| effective depth L̃ | `2` |",
        "| weight decay λ | `0.1` |",
        "| stabiliser γ | `0.001 ‖K‖` |",
        "| optimizer steps between two training readings | `1` |",
        "| StepSizeAdapter, damping | `0.1` |",
    ):
        assert row in page
    final = [key for key in events.Tags()["scalars"] if key.startswith("final_")]
    assert len(final) == 10
    announced = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    for name in ("hamiltonian/bottleneck_rank", "cost_of_identity/min"):
        assert f"final_{name}".encode() in announced
        assert len(events.Scalars(f"final_{name}")) == 1
        assert events.Scalars(f"final_{name}")[-1].value == pytest.approx(events.Scalars(name)[-1].value)
    assert len(events.Histograms("step_sizes")) == len(events.Scalars("step_size/layer_01")) == 8


def test_a_fit_that_goes_on_in_the_same_log_explains_nothing_anew(make_module, make_data, make_trainer, tmp_path):
    logger = TensorBoardLogger(tmp_path)
    trainer, module = make_trainer(EnergyMonitor(), logger=logger, max_epochs=1), make_module()
    for epochs in (1, 2):
        trainer.fit_loop.max_epochs = epochs
        trainer.fit(module, datamodule=make_data())
    events = events_of(logger)
    assert len(events.Scalars("kinetic_energy/layer_01")) == 2
    assert len(events.Tensors("custom_scalars__config__")) == len(text_of(events, "layers/guide")) == 1


def test_a_list_of_metrics_that_somebody_else_will_write_is_left_to_them(
    make_module, make_data, make_trainer, tmp_path
):
    logger = TensorBoardLogger(tmp_path, default_hp_metric=False)
    make_trainer(EnergyMonitor(), logger=logger).fit(make_module(), datamodule=make_data())
    assert "_hparams_/experiment" not in events_of(logger).summary_metadata


def test_no_chart_waits_for_what_there_is_not(fitted):
    """Validation, and step-sizes that adapt."""
    (layout,) = fitted(EnergyMonitor(), limit_val_batches=0).Tensors("custom_scalars__config__")
    assert b"val" not in layout.tensor_proto.string_val[0]
    assert b"step_size" not in layout.tensor_proto.string_val[0]


class OwnAdapter(StepSizeAdapter):
    """Somebody's own, which tells of nothing else."""

    def __init__(self, damping: float = 0.3) -> None:
        super().__init__(damping=damping)


@pytest.mark.slow
def test_an_adapter_of_ones_own_has_chart_and_settings_too(fitted):
    events = fitted(EnergyMonitor(), OwnAdapter(), PathFigures(num_samples=7))
    (layout,) = events.Tensors("custom_scalars__config__")
    assert b"^step_size/layer_" in layout.tensor_proto.string_val[0]
    (page,) = text_of(events, "layers/guide")
    for row in ("| OwnAdapter, damping | `0.3` |", "| PathFigures, num_samples | `7` |"):
        assert row in page


@pytest.mark.slow
def test_weights_and_biases_gets_the_figures(make_module, make_data, make_trainer, tmp_path):
    logger = WandbLogger(offline=True, save_dir=tmp_path)
    trainer = make_trainer(EnergyMonitor(), PathFigures(), logger=logger, max_epochs=1)
    trainer.fit(make_module(), datamodule=make_data())
    logger.experiment.finish()
    # Named by tag, step of W&B's own count, and a hash.
    pictures = {
        re.sub(r"_\d+_[0-9a-f]+\.png$", "", str(file.relative_to(file.parents[1]))) for file in tmp_path.rglob("*.png")
    }
    assert pictures == WITHOUT_STEPS


@pytest.mark.slow
def test_mlflow_gets_figures_and_texts(make_module, make_data, make_trainer, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # its database needs the whole of mlflow
    logger = MLFlowLogger(tracking_uri=f"file:{tmp_path}/runs", artifact_location=str(tmp_path / "artifacts"))
    trainer = make_trainer(EnergyMonitor(), PathFigures(), logger=logger, max_epochs=1)
    trainer.fit(make_module(), datamodule=make_data())
    found = {str(file.parent.relative_to(file.parents[2])) for file in tmp_path.rglob("*.png")}
    assert found == WITHOUT_STEPS
    texts = {file.parent.name for file in tmp_path.rglob("*.md")}
    assert texts == {"guide", "diagnosis"}


def test_csv_gets_its_numbers_and_no_logger_is_no_error(make_module, make_data, make_trainer, tmp_path):
    logger = CSVLogger(tmp_path)
    make_trainer(EnergyMonitor(), PathFigures(), logger=logger).fit(make_module(), datamodule=make_data())
    assert rows_of(logger.log_dir)[0]["cost_of_identity/layer_01"]
    make_trainer(EnergyMonitor(), PathFigures(), logger=False).fit(make_module(), datamodule=make_data())


@pytest.mark.slow
def test_training_does_not_feel_the_figures(make_module, make_data, make_trainer, tmp_path):
    runs = []
    for callbacks in ([], [EnergyMonitor(), PathFigures(every_n_steps=1)]):
        module, recorder = make_module(NoisyModule), Recorder()
        make_trainer(*callbacks, recorder, logger=TensorBoardLogger(tmp_path)).fit(module, datamodule=make_data())
        runs.append((recorder.losses, torch.get_rng_state()))
    assert all(map(torch.equal, runs[0][0], runs[1][0]))
    assert torch.equal(runs[0][1], runs[1][1])


class Kept(PathFigures):
    """Keeps what it draws."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.drawn = []

    def _figures(self, trainer, monitor, readings):
        for name, figure in super()._figures(trainer, monitor, readings):
            yield name, figure
            self.drawn.append((name, figure, readings))


def test_figures_show_what_was_read(make_module, make_data, make_trainer):
    """The path of the batch's samples in float64 and the readings of the step, on the right axes."""
    figures, recorder = Kept(every_n_steps=100, num_samples=5), Recorder()
    trainer = make_trainer(EnergyMonitor(), recorder, figures, max_epochs=1, precision="64-true", limit_val_batches=0)
    trainer.fit(make_module(), datamodule=make_data())
    drawn = {name: figure.axes[0] for name, figure, _ in figures.drawn}
    readings = figures.drawn[0][2]
    lines = {line.get_label(): line.get_ydata().tolist() for line in drawn["energies"].lines}
    assert lines["kinetic energy"] == readings["kinetic_energy"].tolist()
    module = make_module().double()
    module.load_state_dict(recorder.states[0])
    inputs = recorder.batch(0)[0][::5]  # the stride that leaves at most 5 of 24
    path = module.network.representations(inputs).detach()
    firsts = [line.get_ydata()[0] for line in drawn["singular_values_of_A"].lines]
    values = torch.linalg.svdvals(path[0])
    shown = sorted((float(first) for first in firsts if first > 0), reverse=True)
    assert shown == pytest.approx(values[: len(shown)].tolist())
    assert len(shown) == 3  # of six neurons: A_0 has as many dimensions as there are inputs
    ends = drawn["path"].lines[-1].get_xdata()
    assert len(ends) == len(inputs)
    assert torch.as_tensor(ends).abs().max() <= path[-1].norm(dim=1).max() + 1e-9


@pytest.mark.slow
def test_the_scale_of_a_figure_only_grows(make_module, make_data, make_trainer):
    figures = Kept(every_n_steps=1)
    make_trainer(EnergyMonitor(), figures, max_epochs=6).fit(make_module(), datamodule=make_data())
    for name in ("energies", "path", "singular_values_of_A", "singular_values_of_W"):
        limits = [figure.axes[0].get_ylim() for drawn, figure, _ in figures.drawn if drawn == name]
        assert len(limits) >= 6
        assert all(a[0] >= b[0] and a[1] <= b[1] for a, b in itertools.pairwise(limits))


@pytest.mark.slow
def test_the_heat_map_goes_on_after_a_resume(make_module, make_data, make_trainer, tmp_path):
    whole = PathFigures()
    make_trainer(EnergyMonitor(), whole, max_epochs=4).fit(make_module(), datamodule=make_data())
    trainer = make_trainer(EnergyMonitor(), PathFigures(), max_epochs=2)
    trainer.fit(make_module(), datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = PathFigures()
    trainer = make_trainer(EnergyMonitor(), resumed, max_epochs=4)
    trainer.fit(make_module(), datamodule=make_data(), ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    state, expected = resumed.state_dict()["history"], whole.state_dict()["history"]
    for name in ("cost_of_identity", "step_size"):
        assert torch.equal(state[name]["steps"], expected[name]["steps"])
        assert len(state[name]["steps"]) == 4


@pytest.mark.slow
def test_layers_that_come_and_go_are_drawn(fitted):
    refiner = LayerRefiner(tolerance=1e-3, every_n_steps=2, start_step=2, max_layers=8)
    events = fitted(EnergyMonitor(), refiner, PathFigures(every_n_steps=1))
    assert set(events.Tags()["images"]) == FIGURES


class Convolutional(NoisyModule):
    """Four blocks of three channels and two of six, with one between that changes the shape."""

    def __init__(self):
        super().__init__(3, 2, 6, 4, 2.0)
        channels = [(3, 3)] * 4 + [(3, 6)] + [(6, 6)] * 2
        self.stack = torch.nn.Sequential(
            *(torch.nn.Sequential(torch.nn.Conv2d(*sizes, 3, padding=1), torch.nn.ReLU()) for sizes in channels)
        )
        self.head = torch.nn.Linear(6, 2)
        del self.network

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.head(self.stack(batch[0]).mean((2, 3))), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def pictures() -> DataLoader:
    return DataLoader(TensorDataset(torch.randn(6, 3, 4, 4), torch.arange(6) % 2), batch_size=6)


def test_convolutional_networks_and_classes(make_trainer):
    """Two segments: spectra and path are of the longest, coloured by class."""
    figures = Kept()
    monitor = EnergyMonitor("stack.*", on_validation=False)
    make_trainer(monitor, figures, max_epochs=1).fit(Convolutional(), pictures())
    drawn = {name: figure.axes[0] for name, figure, _ in figures.drawn}
    assert "singular_values_of_W" not in drawn
    assert [text.get_text() for text in drawn["path"].get_legend().get_texts()] == ["0", "1"]
    assert len(drawn["singular_values_of_A"].lines[0].get_xdata()) == 5


def test_a_path_that_diverged_is_not_drawn(make_module, make_data, make_trainer):
    figures, module = Kept(), make_module()
    with torch.no_grad():
        module.network.layers[1].weight.fill_(torch.inf)
    with pytest.warns(UserWarning, match="not finite"):  # of the monitor
        make_trainer(EnergyMonitor(), figures, max_epochs=1).fit(module, datamodule=make_data())
    assert not {"path", "singular_values_of_A", "singular_values_of_W"} & {name for name, _, _ in figures.drawn}


def test_a_figure_that_cannot_be_drawn_stops_no_training(make_module, make_data, make_trainer, monkeypatch):
    monkeypatch.setattr("lightning_leaky.callbacks.path_figures.paragraphs", lambda *_: 1 / 0)
    figures = PathFigures(every_n_steps=1)
    for _ in range(2):  # said once a fit
        trainer = make_trainer(EnergyMonitor(), figures, max_epochs=2)
        with pytest.warns(UserWarning, match="PathFigures: drawing has failed") as warned:
            trainer.fit(make_module(), datamodule=make_data())
        assert len([one for one in warned if "PathFigures" in str(one.message)]) == 1
        assert trainer.global_step == 2


def test_wants_a_monitor(make_module, make_data, make_trainer):
    with pytest.raises(ValueError, match=r"`callbacks` must hold an EnergyMonitor .* add EnergyMonitor\(\)"):
        make_trainer(PathFigures()).fit(make_module(), datamodule=make_data())


@pytest.mark.parametrize("argument", ["every_n_steps", "num_samples"])
def test_refuses_numbers_below_one(argument):
    with pytest.raises(ValueError, match=f"`{argument}` must be at least 1, got 0"):
        PathFigures(**{argument: 0})


def test_can_be_pickled_after_a_fit(make_module, make_data, make_trainer):
    figures = PathFigures()
    make_trainer(EnergyMonitor(), figures).fit(make_module(), datamodule=make_data())
    copy = pickle.loads(pickle.dumps(figures))
    assert torch.equal(*(each.state_dict()["history"]["step_size"]["rows"] for each in (copy, figures)))


def test_targets_that_are_not_finite_spoil_no_reading(make_module, make_trainer):
    """A module may mask them; the picture then has no colours."""

    class Masked(NoisyModule):
        def cost(self, outputs, targets):
            return (outputs - targets).nan_to_num().square().sum()

    inputs, targets = torch.randn(6, 3), torch.randn(6, 2)
    targets[0, 0] = torch.nan
    monitor, figures = EnergyMonitor(on_validation=False), Kept()
    trainer = make_trainer(monitor, figures, max_epochs=1, limit_val_batches=0)
    trainer.fit(make_module(Masked), DataLoader(TensorDataset(inputs, targets), batch_size=6))
    assert "cost_of_identity" in monitor.readings["train"].quantities
    (path,) = [figure for name, figure, _ in figures.drawn if name == "path"]
    assert len(path.axes) == 1


@pytest.mark.slow
def test_of_several_monitors_the_first_is_drawn(make_module, make_data, make_trainer):
    first, second, figures = EnergyMonitor("network.layers.*"), EnergyMonitor("re:network.layers.[01]"), PathFigures()
    make_trainer(first, second, figures, max_epochs=3).fit(make_module(), datamodule=make_data())
    history = figures.state_dict()["history"]["kinetic_energy"]
    assert history["steps"].tolist() == [0, 1, 2]
    assert history["rows"].shape == (3, 4)


def test_a_second_fit_does_not_end_with_the_numbers_of_the_first(make_module, make_data, make_trainer, tmp_path):
    monitor = EnergyMonitor()
    make_trainer(monitor, max_epochs=1, logger=False).fit(make_module(), datamodule=make_data())
    logger = TensorBoardLogger(tmp_path)
    trainer = make_trainer(monitor, logger=logger, max_epochs=2, log_every_n_steps=50)
    trainer.fit(make_module(), datamodule=make_data())
    assert not [key for key in events_of(logger).Tags()["scalars"] if key.startswith("final_")]


def test_two_monitors_keep_apart_with_a_prefix(make_module, make_data, make_trainer, tmp_path):
    logger = TensorBoardLogger(tmp_path)
    monitors = [EnergyMonitor("re:network.layers.[01]"), EnergyMonitor("re:network.layers.[23]", prefix="end/")]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Several EnergyMonitors")
        make_trainer(*monitors, logger=logger, max_epochs=2).fit(make_module(), datamodule=make_data())
    events = events_of(logger)
    for prefix, monitor in zip(("", "end/"), monitors, strict=True):
        for stage, name in (("train", ""), ("validate", "val_")):
            logged = [events.Scalars(f"{prefix}{name}kinetic_energy/layer_0{layer}")[-1].value for layer in (1, 2)]
            assert logged == pytest.approx(monitor.readings[stage]["kinetic_energy"].tolist())
        assert len(events.Scalars(f"{prefix}final_cost_of_identity/min")) == 1
        assert len(text_of(events, f"{prefix}layers/guide")) == 1


def test_two_monitors_without_a_prefix_are_warned_of(make_module, make_data, make_trainer):
    trainer = make_trainer(EnergyMonitor(), EnergyMonitor(), max_epochs=1)
    with pytest.warns(UserWarning, match="Several EnergyMonitors have the `prefix` ''"):
        trainer.fit(make_module(), datamodule=make_data())


def test_final_numbers_of_several_segments_are_those_that_were_announced(make_trainer, tmp_path):
    """The table of runs has a column for each announced name: of the longest segment."""
    logger, monitor = TensorBoardLogger(tmp_path), EnergyMonitor("stack.*", on_validation=False)
    make_trainer(monitor, logger=logger, max_epochs=1).fit(Convolutional(), pictures())
    events = events_of(logger)
    announced = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    assert b"final_cost_of_identity/min" in announced
    assert monitor.readings["train"].segments == (4, 2)
    costs = monitor.readings["train"]["cost_of_identity"]
    for key, segment in (("", costs[:4]), ("segment_1/", costs[:4]), ("segment_2/", costs[4:])):
        final = events.Scalars(f"final_cost_of_identity/{key}min")[-1].value
        assert final == pytest.approx(float(segment.min()))


def test_a_test_run_has_a_layout_of_its_own(make_module, make_data, make_trainer, tmp_path):
    logger = TensorBoardLogger(tmp_path)
    make_trainer(EnergyMonitor(), logger=logger).test(make_module(), datamodule=make_data(), verbose=False)
    (layout,) = events_of(logger).Tensors("custom_scalars__config__")
    assert b"^(val|test)_cost_of_identity/layer_" in layout.tensor_proto.string_val[0]


def test_hyper_parameters_kept_from_loggers_stay_away(make_data, make_trainer, tmp_path):
    class Secret(NoisyModule):
        def __init__(self, token: str) -> None:
            super().__init__(3, 2, 6, 4, 2.0)
            self.save_hyperparameters("token", logger=False)

    logger = TensorBoardLogger(tmp_path)
    make_trainer(EnergyMonitor(), logger=logger, max_epochs=1).fit(Secret("SECRET"), datamodule=make_data())
    (file,) = (tmp_path / "lightning_logs" / "version_0").glob("events.*")
    assert b"final_" in file.read_bytes()
    assert b"SECRET" not in file.read_bytes()
