"""Tested strategies say nothing, untested ones are said once, refused ones raise, and others declare themselves."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from docs.strategies import PAGE, with_table
from lightning_leaky import EnergyMonitor, StepSizeAdapter, StrategySupport
from lightning_leaky.callbacks.strategies import ALLOW_UNTESTED, STRATEGIES, data_parallel_rank, support_of

CALLBACKS = pytest.mark.parametrize("make", [EnergyMonitor, StepSizeAdapter])


def strategy_named(name, **attributes):
    return type(name, (SingleDeviceStrategy,), attributes)(torch.device("cpu"))


@pytest.fixture
def said_of(make_module, make_data, make_trainer):
    """Fits, and returns what was said of the strategy."""

    def fit(callback, strategy):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make_trainer(callback, strategy=strategy, max_epochs=3).fit(make_module(), datamodule=make_data())
        return [str(one.message) for one in caught if "untested" in str(one.message)]

    return fit


@CALLBACKS
@pytest.mark.parametrize("name", ["XLAStrategy", "XLAFSDPStrategy", "SingleDeviceXLAStrategy"])
def test_what_cannot_be_right_is_refused(said_of, make, name):
    with pytest.raises(ValueError, match=f"`strategy` must be one that {make.__name__} can follow, got {name}: .*use"):
        said_of(make(), strategy_named(name))


@CALLBACKS
def test_an_untested_strategy_is_said_once_and_followed(said_of, make):
    callback = make()
    (message,) = said_of(callback, strategy_named("ClusterStrategy", leaky_support=StrategySupport("untested", "why")))
    assert message.startswith(f"{make.__name__} works under ClusterStrategy by design, but is untested there: why.")
    assert "allow_untested=True" in message
    assert ALLOW_UNTESTED in message
    if make is EnergyMonitor:
        assert callback.readings["train"]["cost_of_identity"].isfinite().all()


@CALLBACKS
def test_untested_can_be_allowed(said_of, make, monkeypatch):
    untested = {"leaky_support": StrategySupport("untested", "why")}
    assert said_of(make(allow_untested=True), strategy_named("ClusterStrategy", **untested)) == []
    monkeypatch.setenv(ALLOW_UNTESTED, "1")
    assert said_of(make(), strategy_named("ClusterStrategy", **untested)) == []


@CALLBACKS
def test_a_strategy_of_others_declares_itself(said_of, make):
    assert said_of(make(), strategy_named("XLAStrategy", leaky_support=StrategySupport("tested", "a cluster"))) == []
    plain = SimpleNamespace(state="refused", how="it runs layers in other processes", limits="")
    with pytest.raises(ValueError, match="got ClusterStrategy: it runs layers in other processes"):
        said_of(make(), strategy_named("ClusterStrategy", leaky_support=plain))


def test_a_strategy_is_known_by_its_nearest_class():
    class Own(DDPStrategy):
        pass

    DeepSpeedStrategy = type("DeepSpeedStrategy", (DDPStrategy,), {})
    ddp = support_of(DDPStrategy())
    assert support_of(Own()) == ddp
    assert ddp.state == "tested"
    assert support_of(DeepSpeedStrategy()).state == "untested"
    unknown = support_of(type("Own", (), {})())
    assert (unknown.state, unknown.names) == ("untested", ())


def test_a_state_is_one_of_three():
    with pytest.raises(ValueError, match=r"`state` must be .* got .perhaps"):
        StrategySupport("perhaps", "")


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (None, None),
        ({"num_replicas": 4, "rank": 3}, None),
        ({"num_replicas": 2, "rank": 1}, (1, 2)),
        ({"num_replicas": 0, "rank": 3}, None),  # a strategy that does not know its devices
        ({"shuffle": False}, None),
    ],
)
def test_samplers_are_told_which_processes_have_the_same_samples(told, expected, monkeypatch):
    monkeypatch.setattr("lightning_leaky.utilities.data_parallel.num_processes", lambda: 4)
    strategy = SimpleNamespace() if told is None else SimpleNamespace(distributed_sampler_kwargs=told)
    found = data_parallel_rank(SimpleNamespace(strategy=strategy, world_size=4))
    assert (found and (found.rank, found.size)) == expected


def test_the_page_has_the_table():
    page = PAGE.read_text()
    assert page == with_table(page), "strategies have changed: run `python -m docs.strategies`"
    assert all(f"`{name}`" in page for support in STRATEGIES for name in support.names)
