"""The study of which layers can go: its removals, scores and tables, on networks that take seconds."""

import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from examples.layers import pretrained, which
from examples.layers.combined import CANDIDATES, pair_correlations
from examples.layers.kinds import KINDS
from examples.layers.pretrained import _loss, _share_right, measured, of_bert, of_llama
from examples.layers.removal import REMOVALS, judged, without
from examples.layers.scores import SCORES, run_to_remove
from examples.layers.tables import all_tables
from examples.layers.tasks import Task
from examples.layers.training import adapted, train
from examples.layers.which import Setting, measure, settings
from lightning_leaky import ablate_path


@pytest.fixture(scope="module")
def task():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(240, 26, generator=generator)
    targets = inputs[:, :1].tanh() + inputs[:, 1:2]
    parts = [(inputs[start : start + 80], targets[start : start + 80]) for start in (0, 80, 160)]
    return Task(*parts, 1, F.mse_loss, lambda outputs, targets: -F.mse_loss(outputs, targets))


@pytest.fixture(scope="module")
def network(task):
    torch.manual_seed(0)
    network = KINDS["mlp"].network(task, 4)
    train(network, task, 30, 20, seed=0)
    return network


@pytest.fixture(scope="module")
def batches(task):
    return [task.score]


def test_blocks_that_are_taken_out_cost_what_leaving_them_out_does(network, task, batches):
    """One way by a smaller network, one by `ablate_path`."""
    found = ablate_path(network, batches, task.loss, "blocks.*", order=[3, 1])
    assert judged(without(network, [2, 0]), batches, task)["cost"] == pytest.approx(float(found.curve[2]), rel=1e-5)
    assert judged(without(network, [1]), batches, task)["cost"] == pytest.approx(float(found.costs[1]), rel=1e-5)


@pytest.mark.parametrize("name", SCORES)
def test_each_score_has_a_number_for_each_block(network, task, batches, name):
    values = SCORES[name](network, batches, task)
    assert values.shape == (4,)
    assert values.isfinite().all()


@pytest.mark.parametrize("name", REMOVALS)
def test_each_way_removes_one_block_more_at_a_time(network, task, batches, name):
    found = REMOVALS[name](network, batches, task, 3)
    assert [len(set(removed)) for removed in found] == [1, 2, 3]
    assert all(set(removed) <= {0, 1, 2, 3} for removed in found)


def test_a_run_is_of_neighbours(network, batches):
    run = run_to_remove(network, batches, 2)
    assert run == [run[0], run[0] + 1]


def test_halves_choose_and_judge_and_share_no_kind():
    assert sorted(kind.judges for kind in KINDS.values()) == [False] * 3 + [True] * 3
    assert len({(one.kind, one.seed, one.steps) for one in settings(reduced=False)}) == 45


def test_a_network_is_measured_from_end_to_end(monkeypatch, task):
    monkeypatch.setattr(which, "task_of", lambda name, seed: task)
    tables = {"runs": [], "blocks": [], "early": [], "removals": []}
    for seed in (0, 1):
        setting = Setting("mlp", seed, shrink=4)
        for name, rows in measure(setting).items():
            of_run = vars(setting) if name == "runs" else {}
            tables[name] += [{"run": f"{seed}", **of_run, **row} for row in rows]
    found = all_tables({name: pd.DataFrame(rows) for name, rows in tables.items()})
    correlations = found["correlations"].set_index("score")["mlp"]
    assert set(SCORES) < set(correlations.index)
    assert found["networks"]["networks"].tolist() == [2]
    assert (found["kept"]["blocks"] == 12).all()


def languages():
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    torch.manual_seed(0)
    causal = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, intermediate_size=32))
    masked = transformers.BertForMaskedLM(transformers.BertConfig(**sizes, intermediate_size=32))
    return [(causal.eval(), of_llama), (masked.eval(), of_bert)]


@pytest.mark.parametrize("place", [0, 1], ids=["llama", "bert"])
def test_a_pretrained_network_is_the_model_that_it_is_taken_from(place):
    model, network_of = languages()[place]
    tokens = torch.randint(20, (3, 9))
    with torch.no_grad():
        assert torch.allclose(network_of(model).eval()(tokens), model(tokens).logits, atol=1e-6)


@pytest.mark.slow
def test_a_pretrained_network_is_measured():
    model, network_of = languages()[0]
    tokens = torch.randint(20, (32, 9))
    part = tokens[:, :-1], tokens[:, 1:]
    found = measured(network_of(model), Task(part, part, part, 0, _loss, _share_right), 0.0)
    tables = {name: pd.DataFrame([{"run": "a", **row} for row in rows]) for name, rows in found.items()}
    tables["runs"]["name"] = "small"
    ranks = pretrained.all_tables(tables)["ranks"].set_index("score")["small"]
    assert set(ranks.index) == {"ablate_path", *SCORES}
    assert ranks["ablate_path"] == 1  # as the same samples judge


def test_a_pair_that_ranks_alike_is_each_of_the_two(task):
    rows = [{"run": "0", "layer": layer, "increase": float(layer)} for layer in range(1, 5)]
    scores = dict.fromkeys(SCORES, 0.0)
    right, wrong = CANDIDATES[1], CANDIDATES[2]
    blocks = [row | scores | {right: row["layer"], wrong: -row["layer"]} for row in rows]
    runs = [{"run": "0", "kind": "mlp", "seed": 0, "steps": "equal"}]
    found = pair_correlations({"runs": pd.DataFrame(runs), "blocks": pd.DataFrame(blocks)}).loc["mlp", 0]
    assert found[right] == 1
    assert found[wrong] == -1
    assert found[f"{right} + {wrong}"] != found[f"{right} + {wrong}"]  # all blocks tie


def test_step_sizes_adapt(task):
    torch.manual_seed(0)
    network = adapted(KINDS["mlp"].network(task, 4))
    train(network, task, 30, 20, seed=0)
    (step_sizes,) = (module.step_sizes for module in network.modules() if hasattr(module, "step_sizes"))
    assert step_sizes.sum() == pytest.approx(1)
    assert step_sizes.max() > 1.01 * step_sizes.min()
