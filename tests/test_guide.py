"""The cards, the layout of charts and the page: of every key that is logged, and of no other."""

import re

import torch

from lightning_leaky import Readings
from lightning_leaky.guide import CARDS, SUMMARIES, chart_layout, page, summary_keys
from lightning_leaky.metrics.path_reader import QUANTITIES


def test_without_a_leak_there_is_no_rank():
    layout = chart_layout(["hamiltonian", "cost_of_identity"], has_rank=False)
    assert not [tag for tag in tags_of(layout) if "rank" in tag]
    resnet = Readings({name: torch.ones(2) for name in QUANTITIES}, torch.ones(2) / 2, 0.0)
    assert set(summary_keys(QUANTITIES, leaks=False)) == set(resnet.summaries())
    leaky = Readings({name: torch.ones(2) for name in QUANTITIES}, torch.ones(2) / 2, 2.0)
    assert set(summary_keys(QUANTITIES)) == set(leaky.summaries())


def test_a_setting_with_a_bar_does_not_break_the_table():
    assert r"| `layers` | `re:(a\|b)` |" in page(["speed"], {"layers": "re:(a|b)"})


def keys(prefix: str = "") -> set[str]:
    """Every key of two readings, in one piece and in two segments."""
    quantities = {name: torch.ones(4) for name in QUANTITIES}
    return {
        key
        for segments in ((), (2, 2))
        for key in Readings(quantities, torch.full((4,), 0.25), 2.0, segments=segments).scalars(prefix)
    }


def tags_of(layout) -> list[str]:
    return [tag for charts in layout.values() for _, tags in charts.values() for tag in tags]


def test_there_is_a_card_for_every_quantity_and_every_summary():
    assert set(CARDS) == {*QUANTITIES, "step_size"}
    ends = {(key.split("/")[0], key.split("/")[-1]) for key in keys() if "/layer_" not in key}
    assert ends == {(name, end) for name, says in SUMMARIES.items() for end in says}


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
    assert "On validation data" in chart_layout(["kinetic_energy"], ["kinetic_energy"])


def test_the_margin_chart_has_value_lower_and_upper_bound():
    margins = [
        tags for kind, tags in chart_layout(["hamiltonian"])["Is there a bottleneck?"].values() if kind == "Margin"
    ]
    assert margins == [[f"hamiltonian/bottleneck_rank{end}" for end in ("", "_min", "_max")]]
    assert set(margins[0]) <= keys()


def test_the_page_explains_what_is_read_and_nothing_else():
    text = page(["hamiltonian", "speed"], {"gamma_rel": 0.001, "layers": None})
    assert re.findall(r"^\| `([a-z_]+)/", text, flags=re.MULTILINE) == [
        "speed",
        *["hamiltonian"] * 1,
        "speed",
        *["hamiltonian"] * 4,
    ]
    assert "| `gamma_rel` | `0.001` |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {3, 4}
