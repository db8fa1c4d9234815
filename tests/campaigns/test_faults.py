"""One run of each fault, and one that hits one of two processes: all survive. The campaign has hundreds."""

import pytest

from tests.campaigns.disturbances import FAULTS
from tests.campaigns.faults import Campaign
from tests.campaigns.several import FAULTS_OF_SEVERAL

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    return Campaign(tmp_path_factory.mktemp("faults"), delay=3.0)


@pytest.mark.parametrize(
    ("fault", "seed", "processes"),
    [*((fault, 0, 1) for fault in FAULTS), ("kill", 1, 2), *((fault, 0, 2) for fault in FAULTS_OF_SEVERAL)],
)
def test_a_run_survives(campaign, fault, seed, processes):
    result = campaign.play(fault, seed)
    if result["outcome"] == "not run":  # only root can mount a small disk
        pytest.skip(f"NOT RUN: {result['reason']}")
    assert result["outcome"] == "survived", result
    assert result["processes"] == processes
