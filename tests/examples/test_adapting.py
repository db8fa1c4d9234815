"""The study of adapting without a leak: its schemes are what they say, and its tables read what was measured."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from examples.adapting import runs
from examples.adapting.runs import Setting, ShorterSetting, block_rows, measure
from examples.adapting.schemes import (
    EQUIDISTANT,
    FALLING,
    FIXED,
    PAPER,
    SCHEMES,
    SMALL,
    STARTED_SMALL,
    AtEqualSteps,
    Scheme,
    UpsideDown,
    keep_function,
    last_maps,
    set_rates,
)
from examples.adapting.studies import TUNING_SEEDS, survivors
from examples.adapting.tables import chosen_rates, first_below, judging_tables, shorter_tables, steps_needed
from examples.layers.kinds import KINDS
from examples.layers.tasks import Task
from examples.layers.training import adapted
from lightning_leaky import adaptive_step_sizes
from lightning_leaky.functional import RelativeDistanceRule
from lightning_leaky.paths.leaky_path import find_leaky_path

UNEVEN = torch.tensor([0.05, 0.15, 0.5, 0.3], dtype=torch.float64)


@pytest.fixture(scope="module")
def task():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(240, 26, generator=generator)
    targets = inputs[:, :1].tanh() + inputs[:, 1:2]
    parts = [(inputs[start : start + 80], targets[start : start + 80]) for start in (0, 80, 160)]
    return Task(*parts, 1, F.mse_loss, lambda outputs, targets: -F.mse_loss(outputs, targets))


@pytest.fixture
def network(task):
    torch.manual_seed(0)
    return KINDS["mlp"].network(task, 4).double()


@pytest.fixture(scope="module")
def batch(task):
    return task.train[0].double(), task.train[1].double()


def gradient_step(network, optimizer, batch):
    optimizer.zero_grad()
    F.mse_loss(network(batch[0]), batch[1]).backward()
    optimizer.step()


def moved(before, after):
    """What a step has added to each parameter."""
    return [new.detach() - old.detach() for old, new in zip(before.parameters(), after.parameters(), strict=True)]


def test_a_mesh_that_keeps_the_function_keeps_it(network, batch):
    plain = network(batch[0])
    steps = find_leaky_path(adapted(network))
    before = steps.step_sizes.clone()
    steps.step_sizes.copy_(UNEVEN)
    assert (network(batch[0]) - plain).abs().max() > 1e-2
    keep_function(steps, before)
    assert torch.allclose(network(batch[0]), plain, rtol=0, atol=1e-13)


def test_with_the_function_kept_a_step_size_is_a_learning_rate(network, batch):
    """Without a leak a mesh means nothing else: Adam's steps are those of last maps with a rate of ρ_l L each."""
    equal = copy.deepcopy(network)
    last = [[one for layer in last_maps(block) for one in layer.parameters()] for block in equal.blocks]
    held = {id(one) for parameters in last for one in parameters}
    rest = [one for one in equal.parameters() if id(one) not in held]
    groups = [{"params": rest}, *({"params": parameters, "lr": 0.01} for parameters in last)]
    optimizers = [torch.optim.AdamW(groups, 0.01, eps=1e-30), torch.optim.AdamW(network.parameters(), 0.01, eps=1e-30)]
    steps = find_leaky_path(adapted(network))
    for turn in range(6):
        if turn == 3:  # with moments to carry over
            before = steps.step_sizes.clone()
            steps.step_sizes.copy_(UNEVEN)
            keep_function(steps, before, optimizers[1])
            for group, share in zip(optimizers[0].param_groups[1:], UNEVEN.tolist(), strict=True):
                group["lr"] *= 4 * share
                group["weight_decay"] /= 4 * share
        for one, optimizer in zip((equal, network), optimizers, strict=True):
            gradient_step(one, optimizer, batch)
        assert torch.allclose(equal(batch[0]), network(batch[0]), rtol=0, atol=1e-9)


def test_falling_steps_sum_to_one_and_fall_as_they_say():
    step_sizes = SCHEMES[FALLING].mesh(4)
    assert step_sizes.sum() == pytest.approx(1)
    assert (step_sizes[0] / step_sizes).tolist() == pytest.approx([1, 2**0.5, 3**0.5, 2])


def test_a_small_start_is_of_what_blocks_add(network, batch):
    plain = copy.deepcopy(network)
    SCHEMES[SMALL].begin(network)
    hidden = network.first(batch[0])
    for ours, theirs in zip(network.blocks, plain.blocks, strict=True):
        assert torch.allclose(ours(hidden) - hidden, (theirs(hidden) - hidden) / 8**0.5)


def test_upside_down_the_fixed_point_is_the_reciprocal():
    speeds = torch.tensor([4.0, 1.0, 2.0], dtype=torch.float64)

    def fixed_point(rule):
        step_sizes = torch.full((3,), 1 / 3, dtype=torch.float64)
        for _ in range(200):
            # Blocks of these speeds: each moves ρ_l v_l where the representation has length 1.
            sums = torch.stack([(step_sizes * speeds).square(), torch.ones(3, dtype=torch.float64)], dim=-1)
            step_sizes = adaptive_step_sizes(step_sizes, rule.distances(sums, step_sizes, 0.0), damping=0.1)
        return step_sizes

    rule = RelativeDistanceRule()
    assert torch.allclose(fixed_point(rule) * speeds, torch.full((3,), 4 / 7, dtype=torch.float64))
    assert torch.allclose(fixed_point(UpsideDown(rule)), speeds / 7)


def test_rates_follow_the_blocks_as_they_run():
    """And not the shares that they have so far, which no block runs with."""
    sums = torch.tensor([[4.0, 1.0], [1.0, 1.0]])
    rule = AtEqualSteps(RelativeDistanceRule())
    assert rule.distances(sums, torch.tensor([0.9, 0.1]), 0.0).tolist() == pytest.approx([4, 2])


def test_a_rate_multiplies_what_a_step_adds_to_its_block(network, batch):
    start, other = copy.deepcopy(network), copy.deepcopy(network)
    path = Scheme(RelativeDistanceRule(), sets_rates=True).begin(network)
    optimizers = [torch.optim.SGD(one.parameters(), 0.1) for one in (network, other)]
    set_rates(path, optimizers[0])
    path.step_sizes.copy_(UNEVEN)
    for one, optimizer in zip((network, other), optimizers, strict=True):
        gradient_step(one, optimizer, batch)
    for index, share in enumerate(UNEVEN.tolist()):
        ours, theirs = (moved(start.blocks[index], one.blocks[index]) for one in (network, other))
        for mine, plain in zip(ours, theirs, strict=True):
            assert torch.allclose(mine, 4 * share * plain)
    for mine, plain in zip(moved(start.first, network.first), moved(start.first, other.first), strict=True):
        assert torch.equal(mine, plain)


def test_the_pull_is_the_derivative_by_the_gain(network, task, batch):
    """By differences of the loss, with one gain a little larger."""
    steps = find_leaky_path(adapted(network))

    @torch.no_grad()
    def loss():
        return float(F.mse_loss(network(batch[0]), batch[1]))

    pulls = [row["pull"] for row in block_rows(network, steps, [batch], task)]
    for index, pull in enumerate(pulls):
        losses = []
        for change in (-1e-4, 1e-4):
            steps.step_sizes.fill_(0.25)
            steps.step_sizes[index] *= np.exp(change)
            losses.append(loss())
        steps.step_sizes.fill_(0.25)
        assert pull == pytest.approx((losses[1] - losses[0]) / 2e-4, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", SCHEMES)
def test_each_scheme_trains_and_is_measured(monkeypatch, task, name):
    monkeypatch.setattr(runs, "task_of", lambda name, seed: task)
    monkeypatch.setitem(runs.NUM_STEPS, "mlp", 40 * 16)
    found = measure(Setting("mlp", name, 0, 1.0, judges=True, shrink=4))
    gains = pd.DataFrame(found["blocks"]).pivot(index="step", columns="layer", values="gain")
    assert gains.sum(axis=1).to_numpy() == pytest.approx(3)
    adapts = SCHEMES[name].rule is not None
    assert bool((gains.iloc[-1] != 3 * SCHEMES[name].mesh(3).numpy()).any()) == adapts
    assert (gains.loc[28] == gains.loc[40]).all()  # it has stopped
    assert [row["removed"] for row in found["removals"]] == [0, 1]
    assert found["curves"][-1]["share"] == 1


def test_a_late_scheme_begins_late(monkeypatch, task):
    monkeypatch.setattr(runs, "task_of", lambda name, seed: task)
    monkeypatch.setitem(runs.NUM_STEPS, "mlp", 40 * 16)
    gains = pd.DataFrame(measure(Setting("mlp", "late", 0, 1.0, shrink=4))["blocks"]).set_index("step")["gain"]
    assert (gains.loc[[4, 16]] == 1).all()
    assert (gains.loc[28] != 1).all()


def test_an_early_scheme_ends_early(monkeypatch, task):
    monkeypatch.setattr(runs, "task_of", lambda name, seed: task)
    monkeypatch.setitem(runs.NUM_STEPS, "mlp", 40 * 16)
    gains = pd.DataFrame(measure(Setting("mlp", "early", 0, 1.0, shrink=4))["blocks"]).set_index("step")["gain"]
    assert (gains.loc[4] != 1).all()
    assert (gains.loc[4].to_numpy() == gains.loc[40].to_numpy()).all()


def test_a_shorter_training_has_fewer_steps_and_ends_with_its_schedule(monkeypatch, task):
    monkeypatch.setattr(runs, "task_of", lambda name, seed: task)
    monkeypatch.setitem(runs.NUM_STEPS, "mlp", 40 * 16)
    found = measure(ShorterSetting("mlp", EQUIDISTANT, 0, 1.0, shrink=4))
    assert found["runs"][0]["num_steps"] == found["curves"][-1]["step"] == 36


def test_a_goal_is_reached_between_points():
    places, losses = np.array([0.5, 0.75, 1.0]), np.array([3.0, 1.0, 2.0])
    assert first_below(places, losses, 2.0) == 0.625
    assert first_below(places, losses, 3.5) == 0.5
    assert np.isnan(first_below(places, losses, 0.9))


def test_schemes_go_on_by_their_losses_once_all_are_screened():
    losses = {name: float(place) for place, name in enumerate(SCHEMES)}
    rows = [{"scheme": name, "loss": loss, "seed": seed} for seed in TUNING_SEEDS for name, loss in losses.items()]
    others = [name for name in SCHEMES if name not in (EQUIDISTANT, PAPER, *FIXED, *STARTED_SMALL)]
    first, last = [EQUIDISTANT, PAPER, FALLING], list(STARTED_SMALL)
    assert survivors(pd.DataFrame(rows), "gpt 8") == [*first, *others[:3], *last]
    assert survivors(pd.DataFrame(rows), "vit") == [*first, *others[:1], *last]
    assert survivors(pd.DataFrame(rows[:-1]), "gpt 8") == []


def test_the_rate_with_the_least_mean_loss_is_chosen():
    rows = [("a", 1.0, 3.0), ("a", 1.0, 1.0), ("a", 2.0, 1.5), ("a", 2.0, 1.6), ("b", 1.0, 1.0), ("b", 2.0, 2.0)]
    trials = pd.DataFrame([{"kind": "mlp", "scheme": name, "rate": rate, "loss": loss} for name, rate, loss in rows])
    assert chosen_rates(trials) == {("mlp", "a"): 2.0, ("mlp", "b"): 1.0}


def test_tables_compare_seed_by_seed():
    """A scheme that is one lower at every point and every seed, and so is there a quarter sooner."""
    tables = {"runs": [], "curves": [], "removals": [], "blocks": []}
    for seed in (0, 1, 2):
        for scheme, less in ((EQUIDISTANT, 0.0), (PAPER, 1.0)):
            run = f"{seed} {scheme}"
            losses = [10.0 * seed + height - less for height in (4, 3, 2, 1)]
            of_run = {"run": run, "kind": "gpt 8", "scheme": scheme, "seed": seed, "rate": 1.0}
            tables["runs"].append(of_run | {"loss": losses[-1], "metric": 0.5})
            points = enumerate(losses, start=1)
            tables["curves"] += [{"run": run, "step": n, "share": n / 4, "loss": loss} for n, loss in points]
            tables["removals"] += [{"run": run, "removed": n, "loss": losses[-1] + n * (2 - less)} for n in (0, 1)]
            block = {"gain": 1.0, "relative distance": 0.1, "moved": 0.1, "pull": 0.0}
            tables["blocks"] += [{"run": run, "step": 4, "layer": layer} | block for layer in (1, 2)]
    tables = {name: pd.DataFrame(rows) for name, rows in tables.items()}
    needed = steps_needed(tables).groupby("scheme")["share"].unique()
    assert needed[EQUIDISTANT].tolist() == [1]
    assert needed[PAPER].tolist() == [0.75]
    shorter = shorter_tables({"runs": tables["runs"].assign(share=0.9)}, tables["runs"])["losses"]
    assert shorter.set_index("scheme").loc[PAPER, "minus equidistant, all steps"] == "-1.000 ± 0.000*"
    found = judging_tables(tables)
    assert found["losses"].set_index("scheme").loc[PAPER, "minus equidistant"] == "-1.000 ± 0.000*"
    assert found["removals"].set_index("scheme").loc[PAPER, "increase, minus equidistant"] == "-1.000 ± 0.000*"
    assert found["removals"].set_index("scheme").loc[PAPER, "loss, minus equidistant"] == "-2.000 ± 0.000*"


def test_last_maps_are_all_that_a_branch_ends_with(task):
    """Set to zero, a block adds nothing."""
    for name in ("gpt 8", "vit", "mlp", "mixer", "resnet"):
        kind = KINDS[name]
        torch.manual_seed(0)
        block = kind.block(kind.width).eval()
        for one in (parameter for last in last_maps(block) for parameter in last.parameters()):
            one.data.zero_()
        hidden = torch.rand(2, kind.width, 4, 4) if name == "resnet" else torch.rand(2, 49, kind.width)
        assert torch.allclose(block(hidden), hidden)
