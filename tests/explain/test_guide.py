"""The cards, the layout of charts and the page: of every key that is logged, and of no other."""

import re

import torch

from lightning_leaky import Readings
from lightning_leaky.explain.diagnosis import rank_scalars
from lightning_leaky.explain.guide import CARDS, SUMMARIES, TAGS_OF, chart_layout, page, summary_keys
from lightning_leaky.metrics.path_reader import QUANTITIES


def test_without_a_leak_there_is_no_rank():
    layout = chart_layout(["hamiltonian", "cost_of_identity"], has_rank=False)
    assert not [tag for tag in tags_of(layout) if "rank" in tag]
    assert list(layout["Is there a bottleneck?"]) == ["least cost of identity"]
    resnet = Readings({name: torch.ones(2) for name in QUANTITIES}, torch.ones(2) / 2, 0.0)
    assert set(summary_keys(QUANTITIES, leaks=False)) == set(resnet.summaries())
    leaky = Readings({name: torch.ones(2) for name in QUANTITIES}, torch.ones(2) / 2, 2.0)
    assert set(summary_keys(QUANTITIES)) == set(leaky.summaries())


def test_a_setting_with_a_bar_does_not_break_the_table():
    assert r"| layers | `re:(a\|b)` |" in page(["speed"], {"layers": "re:(a|b)"})


def keys(prefix: str = "") -> set[str]:
    """Every key of two readings, in one piece and in two segments."""
    # An optimum: the Hamiltonian is −1 everywhere, at L̃ = 2 that of a rank of 1, and the residual is small.
    quantities = {name: torch.ones(4) for name in QUANTITIES} | {"criticality_residual": torch.full((4,), 0.01)}
    quantities |= {name: -torch.ones(4) for name in ("hamiltonian", "energy_hamiltonian")}
    found = [Readings(quantities, torch.full((4,), 0.25), 2.0, segments=segments) for segments in ((), (2, 2))]
    return {key for readings in found for key in readings.scalars(prefix) | rank_scalars(readings, prefix)}


def tags_of(layout) -> list[str]:
    return [tag for charts in layout.values() for _, tags in charts.values() for tag in tags]


def test_there_is_a_card_for_every_quantity_and_every_summary():
    assert set(CARDS) == {*QUANTITIES, "step_size"}
    ends = {(key.split("/")[0], key.split("/")[-1]) for key in keys() if "/layer_" not in key}
    ranks = {tuple(tag.split("/")) for tag in TAGS_OF["EnergyMonitor"] if tag.startswith("rank/")}
    assert ends == {(name, end) for name, says in SUMMARIES.items() for end in says} | ranks


def test_every_tag_of_the_layout_is_logged():
    logged = keys() | keys("val_") | {"step_size/layer_01"}
    layout = chart_layout((*QUANTITIES, "step_size"), QUANTITIES)
    for tag in tags_of(layout):
        assert any(re.search(tag, key) for key in logged), tag


def test_every_quantity_has_one_chart_with_all_its_layers():
    layout = chart_layout((*QUANTITIES, "step_size"))
    for name in (*QUANTITIES, "step_size"):
        charts = [tags for part in layout.values() for _, tags in part.values() if rf"^{name}/layer_" in tags]
        assert charts == [[rf"^{name}/layer_"]]


def test_one_quantity_is_not_taken_for_another():
    """As `hamiltonian` is part of `energy_hamiltonian`, and `momentum_norm` of `features_momentum_norm`."""
    for name in QUANTITIES:
        tag = chart_layout([name]).get("Which layers do the work?", {})
        for _, (pattern,) in tag.values():
            assert {key.split("/")[0] for key in keys() | keys("val_") if re.search(pattern, key)} == {name}


def test_a_chart_without_lines_is_left_out():
    assert set(chart_layout(["kinetic_energy"])) == {"Which layers do the work?"}
    assert "On validation and test data" in chart_layout(["kinetic_energy"], ["kinetic_energy"])
    assert chart_layout([]) == {}


def test_margin_charts_have_value_lower_and_upper_end():
    layout = chart_layout(["hamiltonian", "cost_of_identity"])
    margins = [tags for charts in layout.values() for kind, tags in charts.values() if kind == "Margin"]
    assert margins == [
        ["rank/lower", "rank/lower", "rank/upper"],
        [f"hamiltonian/bottleneck_rank{end}" for end in ("", "_min", "_max")],
    ]
    assert {tag for tags in margins for tag in tags} <= keys()


def test_a_prefix_is_of_every_tag_and_its_dots_are_dots():
    charts = [chart for part in chart_layout(QUANTITIES, QUANTITIES, prefix="a.b/").values() for chart in part.values()]
    ours, others = keys("a.b/") | keys("a.b/val_"), keys() | keys("a-b/")
    for kind, tags in charts:
        if kind == "Margin":
            assert set(tags) <= ours
        else:
            assert all(any(re.search(tag, key) for key in ours) for tag in tags)
            assert not any(re.search(tag, key) for tag in tags for key in others)


def test_the_page_explains_the_tags_of_the_callbacks_that_there_are():
    assert "num_layers" not in page(["speed"], {}, ["StepSizeAdapter", "SomebodyElses"])
    assert "| `step_sizes` | of StepSizeAdapter |" in page(["speed"], {}, ["StepSizeAdapter", "SomebodyElses"])


def test_the_page_explains_what_is_read_and_nothing_else():
    text = page(["hamiltonian", "speed"], {"gamma_rel": 0.001, "layers": None})
    assert re.findall(r"^\| `([a-z_]+)/", text, flags=re.MULTILINE) == [
        "speed",
        *["hamiltonian"] * 1,
        "speed",
        *["hamiltonian"] * 4,
    ]
    assert "| gamma_rel | `0.001` |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {3, 4}
