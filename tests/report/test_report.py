"""The report on one network: what stands on the page and in the JSON, and that the page needs nothing else."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import nn

from lightning_leaky import EnergyMonitor, LeakyResNet, LeakyResNetModule, diagnose, measure_path
from lightning_leaky.cli import main
from lightning_leaky.report import as_html, as_json, report_on
from lightning_leaky.report.page import name_of

BATCHES = [(torch.randn(9, 3), torch.arange(9) % 2) for _ in range(2)]


@pytest.fixture
def network(make_network) -> LeakyResNet:
    return make_network(out_features=2)


def cost(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets)


class Page(HTMLParser):
    """Text and addresses of a page; complains where tags do not close."""

    VOID = ("meta", "br", "img", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.words, self.addresses = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def words_of(page: str) -> list[str]:
    """Text of a page outside of its figures."""
    return [word.strip() for word in Page(re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)).words]


def test_the_json_holds_the_readings(network):
    report = report_on(network, BATCHES, "net", {"data": "points"}, cost=cost, weight_decay=0.1)
    content = json.loads(as_json(report))
    readings = measure_path(network, BATCHES, cost=cost, weight_decay=0.1)
    for name, values in readings.quantities.items():
        assert content["layers"][name] == values.tolist()
    assert content["summaries"] == {key: float(value) for key, value in readings.summaries().items()}
    assert content["facts"] == {
        "layers": 4,
        "effective depth L̃": 2.0,
        "step-size ρ of each layer": "0.25",
        "mode of the network": "evaluation, without dropout",
        "data": "points",
    }
    assert content["diagnosis"] == list(diagnose(report.readings)[0].sentences)


def test_the_page_shows_every_layer_and_needs_no_network(network):
    text = as_html(report_on(network, BATCHES, "net <1>", cost=cost, weight_decay=0.1))
    page = Page(text)
    assert "net <1>" in page.words
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert "<script" not in text
    assert not re.search(r"@import|url\((?!#)", text)
    assert text.count("<svg") == text.count("<figure>") == 5
    assert re.findall(r"<tr><td>(\d+)</td>", text) == ["1", "2", "3", "4"]
    for sentence in ("Bottleneck:", "Rank:", "Layers:", "Trust:"):
        assert any(word.startswith(sentence) for word in page.words)


def test_samples_are_of_the_first_batch_with_their_classes(network):
    """The last one may be a remainder of a single sample."""
    report = report_on(network, BATCHES, "net")
    assert report.samples[0].labels.tolist() == BATCHES[0][1].tolist()
    path = network.representations(BATCHES[0][0]).detach()
    torch.testing.assert_close(report.samples[0].representations, path)


def test_a_diverged_network_has_a_report(network):
    with torch.no_grad():
        network.layers[2].weight.fill_(torch.inf)
    report = report_on(network, BATCHES, "net")
    assert None in json.loads(as_json(report))["layers"]["cost_of_identity"]
    text = as_html(report)
    Page(text)
    assert "Diverged: readings are not finite from layer" in text
    assert "nanrem" not in text


def test_blocks_of_any_network_by_pattern():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(3, 3), nn.ReLU()) for _ in range(3)))
    report = report_on(model, BATCHES, "blocks", layers="*")
    content = json.loads(as_json(report))
    assert content["layers"]["name"] == ["0", "1", "2"]
    assert "hamiltonian" not in content["layers"]
    Page(as_html(report))


@pytest.mark.parametrize("leak", [0.0, 2.0])
def test_what_is_said_holds_for_the_network(leak):
    """Of its leak: no rank, no energy that is 0 or another again, no formula with L̃."""
    blocks = nn.Sequential(*(nn.Sequential(nn.Linear(3, 3), nn.ReLU()) for _ in range(3)))
    report = report_on(blocks, BATCHES, "blocks", layers="*", effective_depth=leak)
    words = " ".join(words_of(as_html(report)))
    theory = ("(2L̃)", "−2H/L̃", "nears the rank", "potential energy", "Hamiltonian", "Lagrangian")
    assert [part in words for part in theory] == [leak > 0] * len(theory)
    content = json.loads(as_json(report))
    columns = [content["layers"][name] for name in content["quantities"]]
    assert len({tuple(column) for column in columns}) == len(columns)
    assert [0.0] * 3 not in columns
    assert set(content["summaries"]) == set(content["meanings"])
    assert set(content["meanings"].values()) <= set(words_of(as_html(report)))


def test_step_sizes_have_columns_where_they_differ(network):
    for sizes, there in (([0.25] * 4, False), ([0.1, 0.2, 0.3, 0.4], True)):
        network.step_sizes.copy_(torch.tensor(sizes))
        words = words_of(as_html(report_on(network, BATCHES, "net")))
        assert ("ρ" in words, "0.4000" in words) == (there, there)


def test_names(network, make_module):
    assert name_of(network) == "LeakyResNet"
    assert name_of(make_module()) == "LeakyResNetModule with LeakyResNet"


# The command.


@pytest.fixture
def checkpoint(make_module, make_data, make_trainer, tmp_path):
    trainer = make_trainer(EnergyMonitor(), max_epochs=1)
    trainer.fit(make_module(), datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    return tmp_path / "net.ckpt"


DATA = [
    "--data=lightning_leaky.TeacherDataModule",
    "--data.dims=[3,1,2]",
    "--data.num_train=24",
    "--data.num_val=10",
    "--data.num_test=7",
    "--data.hidden=5",
]


@pytest.mark.parametrize(("split", "num"), [("train", 24), ("val", 10), ("test", 7)])
def test_report_of_a_checkpoint(checkpoint, tmp_path, capsys, make_module, make_data, split, num):
    main(["report", str(checkpoint), *DATA, f"--split={split}", f"--output={tmp_path / 'out'}"])
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    module, data = type(make_module()).load_from_checkpoint(checkpoint), make_data()
    data.setup("fit")
    data.setup("test")
    loader = getattr(data, f"{split}_dataloader")()
    assert sum(len(inputs) for inputs, _ in loader) == num
    expected = measure_path(module, loader, cost=module.cost, weight_decay=module.weight_decay)
    assert content["layers"]["hamiltonian"] == pytest.approx(expected["hamiltonian"].tolist(), rel=1e-9)
    assert content["title"] == "LeakyResNetModule with LeakyResNet, net.ckpt"
    Page((tmp_path / "out" / "index.html").read_text())
    output = capsys.readouterr().out
    assert output.startswith("Bottleneck:")
    assert str(tmp_path / "out" / "index.html") in output


class Own(LightningModule):
    """None of ours, with a weight decay that is no λ, and no hyper-parameters."""

    def __init__(self, width):
        super().__init__()
        self.weight_decay = 0.01
        self.blocks = nn.Sequential(*(nn.Linear(width, width) for _ in range(3)))
        self.head = nn.Linear(width, 2)

    def forward(self, inputs):
        return self.head(self.blocks(inputs))

    def cost(self, outputs, targets):
        return (outputs - targets).square().mean()

    def training_step(self, batch):
        return self.cost(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Remembering(Own):
    def __init__(self, width=3):
        super().__init__(width)
        self.save_hyperparameters()


@pytest.fixture
def report_of_ones_own(tmp_path, make_data, make_trainer):
    """Layers of the report on a module of one's own."""
    trainer = make_trainer(max_epochs=1)
    trainer.fit(Remembering(), datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "own.ckpt")

    def report(*arguments: str) -> dict:
        which = ["--model=tests.report.test_report.Remembering", "--layers=blocks.*", f"--output={tmp_path / 'out'}"]
        main(["report", str(tmp_path / "own.ckpt"), *DATA, *which, *arguments])
        return json.loads((tmp_path / "out" / "report.json").read_text())["layers"]

    return report


def test_report_of_a_model_of_ones_own(report_of_ones_own):
    assert report_of_ones_own("--max_batches=1")["name"] == ["blocks.0", "blocks.1", "blocks.2"]


def test_a_weight_decay_of_somebody_elses_is_no_lambda(report_of_ones_own):
    """Of blocks that are no W_l the monitor reads no momenta by default either."""
    assert "pontryagin_hamiltonian" not in report_of_ones_own()
    assert "pontryagin_hamiltonian" in report_of_ones_own("--weight_decay=0.1")


def test_the_stabiliser_and_the_layout_are_those_that_were_asked_for(report_of_ones_own):
    plain, other = report_of_ones_own(), report_of_ones_own("--gamma_rel=0.1")
    assert plain["cost_of_identity"][0] > other["cost_of_identity"][0]
    few = report_of_ones_own("--layout.max_samples=5")
    assert few["cost_of_identity"] != plain["cost_of_identity"]


def test_weights_alone_are_no_checkpoint(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(SystemExit, match=r"`ckpt` must be a checkpoint of a .*: KeyError: 'pytorch-lightning_ver"):
        main(["report", str(tmp_path / "weights.pt"), *DATA])


def test_a_module_that_keeps_no_hyper_parameters_is_told_to(tmp_path, make_trainer, make_data):
    trainer = make_trainer(max_epochs=1, limit_val_batches=0)
    trainer.fit(Own(3), datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    with pytest.raises(SystemExit, match=r"`model` Own, got .*'width'.* calls `save_hyperparameters"):
        main(["report", str(tmp_path / "net.ckpt"), "--model=tests.report.test_report.Own", *DATA])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two checkpoints, of a module of ours and of one's own, a file that is none, and a folder."""
    place = tmp_path_factory.mktemp("checkpoints")
    for name, module in (("net", LeakyResNetModule(3, 2, width=4, num_layers=2)), ("own", Remembering())):
        trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        trainer.strategy.connect(module)
        trainer.save_checkpoint(place / f"{name}.ckpt")
    (place / "no.ckpt").write_text("weights")
    (place / "empty").mkdir()
    return place


OF_OURS = ["--model=tests.report.test_report.Remembering", *DATA]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.ckpt", *DATA], "`ckpt` must be a checkpoint of a .*, got 'missing.ckpt': FileNotFound"),
        (["no.ckpt", *DATA], "`ckpt` must be a checkpoint of a .*, got 'no.ckpt': UnpicklingError"),
        (["empty", *DATA], "`ckpt` must be a checkpoint of a .*, got 'empty': IsADirectoryError"),
        (["own.ckpt", *DATA], "`model` LeakyResNetModule, got 'own.ckpt': .*Name the class .* --model"),
        (["net.ckpt", *OF_OURS], "`model` Remembering, got 'net.ckpt': .*loading state_dict"),
        (["own.ckpt", "--model=nowhere.Net", *DATA], "No module named 'nowhere'"),
        (["own.ckpt", "--model=tests.report.test_report.None_", *DATA], "has no attribute 'None_'"),
        (["own.ckpt", "--model=torch.nn.Linear", *DATA], '"model": Expected an import path'),
        (["own.ckpt", *OF_OURS[:1]], r"required: data|\bdata\W+is required"),
        (["own.ckpt", *OF_OURS[:1], "--data=nowhere.Data"], "No module named 'nowhere'"),
        (
            ["own.ckpt", *OF_OURS[:1], "--data=tests.report.test_report.Halves", "--split=val"],
            "`val_dataloader` must be",
        ),
        (["own.ckpt", *OF_OURS, "--layers=nowhere.*"], "`layers` must match modules of the model, but 'nowhere"),
        (["own.ckpt", *OF_OURS, "--layers=re:(("], "`layers` must be a regular expression"),
        (["own.ckpt", *OF_OURS, "--layers=blocks.*", "--gamma=-1"], "`gamma` must be"),
        (["own.ckpt", *OF_OURS, "--layers=blocks.*", "--max_batches=0"], "`batches` must hold at least one"),
        (["own.ckpt", *OF_OURS, "--layers=blocks.*", "--output=no.ckpt"], "`output` must be a folder .*File exists"),
        (["own.ckpt", *OF_OURS, "--split=all"], '"split": Expected'),
    ],
)
def test_what_is_wrong_with_the_arguments_is_one_line(monkeypatch, folder, arguments, said):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit, match=said) as ended:
        main(["report", *arguments])
    assert ended.value.code.startswith("lightning-leaky report: ")
    assert "\n" not in ended.value.code


class Halves(LightningDataModule):
    """No validation set, and a training set that cannot be read."""

    def train_dataloader(self):
        raise ValueError("a half of a set")


class Failing(Remembering):
    def forward(self, inputs):
        raise ValueError("a failure of ones own")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model=tests.report.test_report.Failing", *DATA], "a failure of ones own"),
        ([*OF_OURS[:1], "--data=tests.report.test_report.Halves"], "a half of a set"),
    ],
)
def test_an_error_of_ones_own_code_is_shown_whole(folder, arguments, said):
    with pytest.raises(ValueError, match=said):
        main(["report", str(folder / "own.ckpt"), *arguments, "--layers=blocks.*", f"--output={folder / 'out'}"])


@pytest.mark.parametrize("error", [KeyError("width"), TypeError("cannot add a string to a number")])
def test_an_error_of_the_module_itself_is_shown_as_it_is(checkpoint, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(LeakyResNetModule, "load_from_checkpoint", fail)
    with pytest.raises(type(error), match=str(error.args[0])):
        main(["report", str(checkpoint), *DATA])
