"""What a report says of leaving blocks out: measured, beside the scores and their rank correlation."""

import json

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from lightning_leaky import ablate_path
from lightning_leaky.report import as_html, as_json, report_on
from tests.blocks import Block
from tests.report.test_report import words_of

NUM_BLOCKS = 5


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 6), nn.Sequential(*(Block() for _ in range(NUM_BLOCKS))), nn.Linear(6, 2)
    ).double()


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 3, generator=generator).double(), torch.randn(8, 2, generator=generator).double())
        for _ in range(3)
    ]


def test_the_measured_costs_stand_beside_the_scores(model, batches):
    report = report_on(model, batches, "net", cost=F.mse_loss, removal_batches=2)
    content = json.loads(as_json(report))["removal"]
    measured = ablate_path(model, batches[:2], F.mse_loss)
    assert content["baseline"] == pytest.approx(measured.baseline)
    assert content["increase"] == pytest.approx(measured.increases.tolist())
    assert list(content["scores"]) == ["block influence", "relative distance", "relative speed", "first-order score"]
    for title, values in content["scores"].items():
        expected = stats.spearmanr(values, content["increase"]).statistic
        assert content["correlations"][title] == pytest.approx(expected, abs=1e-4)
    words = words_of(as_html(report))
    assert "Which layers can go" in words
    assert "rank correlation" in words


def test_curves_follow_the_order_of_each_score(model, batches):
    report = report_on(model, batches, "net", cost=F.mse_loss, removal_batches=3)
    removal = report.removal
    assert set(removal.curves) == {*removal.correlations, "measured", "at random"}
    for title, values in json.loads(as_json(report))["removal"]["scores"].items():
        order = [index + 1 for index in torch.tensor(values).argsort()[: NUM_BLOCKS // 2].tolist()]
        expected = ablate_path(model, batches, F.mse_loss, order=order).curve
        assert removal.curves[title] == pytest.approx(expected.tolist())
    assert removal.curves["measured"][1] == pytest.approx(removal.baseline + float(removal.increases.min()))
    assert all(len(curve) == 1 + NUM_BLOCKS // 2 for curve in removal.curves.values())


def test_the_diagnosis_names_the_block_that_costs_least(model, batches):
    report = report_on(model, batches, "net", cost=F.mse_loss, removal_batches=3)
    sentence = json.loads(as_json(report))["diagnosis"][-1]
    least = report.removal.names[int(report.removal.increases.argmin())]
    assert sentence.startswith(f"Removal: leaving out {least} adds ")


@pytest.mark.parametrize("settings", [{"removal_batches": 2}, {"cost": F.mse_loss}], ids=["no cost", "not asked"])
def test_without_a_cost_nothing_is_left_out(model, batches, settings):
    content = json.loads(as_json(report_on(model, batches, "net", **settings)))
    assert content["removal"] is None
    assert not content["diagnosis"][-1].startswith("Removal")


def test_what_cannot_be_left_out_is_said_and_the_report_stands(model, batches):
    def broken(outputs, targets):
        if torch.is_grad_enabled():
            return F.mse_loss(outputs, targets)
        raise ValueError("no gradients here")

    content = json.loads(as_json(report_on(model, batches, "net", cost=broken, removal_batches=1)))
    assert content["removal"] is None
    assert content["facts"]["removal of blocks"] == "not measured: no gradients here"
