"""What TensorBoard shows of a run, looked at in a browser: charts of a layout, figures, texts; and pictures of it."""

import urllib.error
import urllib.request

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib import image
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from lightning_leaky import EnergyMonitor, PathFigures, StepSizeAdapter
from tests.callbacks.test_path_figures import FIGURES as FIGURES_OF_OURS

pytest.importorskip("selenium")

from docs.screenshots import Board, browser, find_chromium, tensorboard

pytestmark = pytest.mark.slow

try:
    find_chromium()
except FileNotFoundError as error:
    MISSING = str(error)
else:
    MISSING = ""

needs_chromium = pytest.mark.skipif(bool(MISSING), reason=MISSING)

LAYOUT = {
    "Energies": {
        "cost of identity": ["Multiline", ["^cost_of_identity/layer_"]],
        "a tag that does not exist": ["Multiline", ["^no_such_tag/"]],
    },
    "Range over the layers": {"spread": ["Margin", ["cost/mean", "cost/min", "cost/max"]]},
}

SPREAD = "Range over the layers/spread"
DRAWN = {"Energies/cost of identity": 3, SPREAD: 1}
FIGURES = [f"figures_{category}/path" for category in "abcd"]  # in four categories: not all of them open by themselves


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    with SummaryWriter(str(folder / "run")) as writer:
        writer.add_custom_scalars(LAYOUT)
        for step in range(5):
            for layer in range(1, 4):
                writer.add_scalar(f"cost_of_identity/layer_{layer:02d}", 10.0 - layer * step, step)
            for name, value in (("mean", 2.0), ("min", 1.0), ("max", 4.0)):
                writer.add_scalar(f"cost/{name}", value * step, step)
        for tag in FIGURES:
            figure = Figure(figsize=(3.5, 2.0), dpi=100)
            figure.add_subplot().plot([1.0, 2.0, 0.5])
            writer.add_figure(tag, figure)
        writer.add_histogram("singular_values/layer_01", torch.linspace(0.0, 1.0, 50), 0)
        writer.add_text("report", "The readings:\n\n| layer | cost |\n| --- | --- |\n| 1 | 9.5 |")
    return folder


@pytest.fixture(scope="module")
def board(logdir):
    with tensorboard(logdir) as url, browser(1200, 600) as driver:
        yield Board(url, driver)


@needs_chromium
def test_each_chart_of_a_layout_draws_the_lines_of_its_tags(board):
    board.open("custom_scalars")
    assert board.until_drawn(DRAWN) == DRAWN | {"Energies/a tag that does not exist": 0}
    words = board.text("Energies/cost of identity")
    assert all(f"cost_of_identity/layer_{layer:02d}" in words for layer in range(1, 4))


@needs_chromium
def test_what_is_not_drawn_is_named_with_what_is(board):
    board.open("custom_scalars")
    board.until_drawn(DRAWN)
    impatient = Board(board.url, board.driver, seconds=0.5)
    impatient.dashboard = board.dashboard
    with pytest.raises(TimeoutError, match=r"custom_scalars within 0\.5 s: something in every card.*not exist': 0"):
        impatient.until_drawn()
    with pytest.raises(ValueError, match=r"No card 'cost'.*'Energies/cost of identity'"):
        board.save("nowhere.png", "cost")


@needs_chromium
@pytest.mark.parametrize(
    ("dashboard", "expected"),
    [
        ("images", dict.fromkeys(FIGURES, 350)),
        ("histograms", {"singular_values/layer_01": 1}),
        ("scalars", {"cost/mean": 1, "cost_of_identity/layer_03": 1}),
        ("timeseries", {"cost/max": 1}),
    ],
)
def test_what_is_logged_is_drawn_under_its_tag(board, dashboard, expected):
    board.open(dashboard)
    board.until_drawn(expected)


@needs_chromium
def test_tables_in_texts_are_rendered(board):
    board.open("text")
    board.until_drawn()
    assert "The readings: layer cost 1 9.5" in board.text("report/text_summary")


@needs_chromium
def test_pictures_of_the_window_and_of_a_card(board, tmp_path):
    board.open("custom_scalars")
    board.until_drawn(DRAWN)
    board.save(tmp_path / "new" / "window.png")
    board.save(tmp_path / "card.png", SPREAD)
    size = board.card(SPREAD).size
    board.enlarge(SPREAD)
    board.save(tmp_path / "large.png", SPREAD)
    window, card, large = (image.imread(tmp_path / name) for name in ("new/window.png", "card.png", "large.png"))
    assert window.shape[:2] == (600, 1200)
    assert card.shape[:2] == (size["height"], size["width"])
    assert large.shape[1] > 2 * size["width"]
    assert all(picture.std() > 0.05 for picture in (window, card, large))


def test_tensorboard_has_read_all_when_it_answers_and_is_gone_afterwards(logdir):
    with tensorboard(logdir) as url, urllib.request.urlopen(f"{url}data/runs") as answer:
        assert answer.read() == b'["run"]'
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}data/runs")


def test_without_chromium_its_packages_are_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="apt-get install chromium chromium-driver"), browser():
        pass


def test_without_logs_the_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"), tensorboard(tmp_path / "missing"):
        pass


@needs_chromium
def test_a_run_of_ours_is_drawn_in_full(make_module, make_data, make_trainer, tmp_path):
    """Every chart of our layout with all its lines, every figure, and both texts."""
    callbacks = [EnergyMonitor(), StepSizeAdapter(), PathFigures()]
    trainer = make_trainer(*callbacks, logger=TensorBoardLogger(tmp_path, "run", ""), max_epochs=6)
    trainer.fit(make_module(), datamodule=make_data())
    for key in ("rank/lower", "rank/upper"):  # six steps are none that there is an estimate after
        trainer.logger.experiment.add_scalar(key, 3.0, 5)
    trainer.logger.experiment.flush()
    with tensorboard(tmp_path / "run") as url, browser(1200, 700) as driver:
        board = Board(url, driver)
        board.open("custom_scalars")
        layers = ["cost of identity", "kinetic energy", "potential energy", "step-size"]
        board.until_drawn(
            {
                "Is there a bottleneck?/rank, two estimates": 1,
                "Is there a bottleneck?/least cost of identity": 1,
                "Can the reading be trusted?/−2H/L̃ over the layers (momentum form)": 1,
                "Can the reading be trusted?/spread of the Hamiltonian": 2,
                "Can the reading be trusted?/criticality residual, each layer": 4,
                **{f"Which layers do the work?/{name}, each layer": 4 for name in layers},
                "On validation and test data/kinetic energy, each layer": 4,
            }
        )
        board.until(board.drawn, lambda seen: all(seen.values()), "something in every card")  # the last come later
        board.open("images")
        figures = board.until_drawn(dict.fromkeys(FIGURES_OF_OURS, 660))
        assert set(figures) == FIGURES_OF_OURS
        board.open("text")
        board.until_drawn()
        assert "Bottleneck:" in board.text("layers/diagnosis/text_summary")
        assert "tag what it is what it says" in board.text("layers/guide/text_summary")
