"""The cards, the layout of charts and the page: of every key that is logged, and of no other."""

import re

import pytest
import torch

from lightning_leaky import Readings
from lightning_leaky.explain.diagnosis import rank_scalars
from lightning_leaky.explain.guide import TAGS_OF, custom_charts, guide_page, key_table, merged_charts, summary_keys
from lightning_leaky.metrics.records import QUANTITIES, STEP_SIZE

ALL = tuple(QUANTITIES.values())


def records(*names: str):
    return [QUANTITIES[name] for name in names]


def test_without_a_leak_there_is_no_rank():
    layout = custom_charts(records("hamiltonian", "cost_of_identity"), has_rank=False)
    assert not [tag for tag in tags_of(layout) if "rank" in tag]
    assert list(layout["Is there a bottleneck?"]) == ["least cost of identity"]
    resnet = Readings({name: torch.ones(2) for name in QUANTITIES}, torch.ones(2) / 2, 0.0)
    assert set(summary_keys(ALL, leaks=False)) == set(resnet.summaries())
    leaky = Readings({name: torch.ones(2) for name in QUANTITIES}, torch.ones(2) / 2, 2.0)
    assert set(summary_keys(ALL)) == set(leaky.summaries())


def test_a_setting_with_a_bar_does_not_break_the_table():
    assert r"| layers | `re:(a\|b)` |" in guide_page(records("speed"), {"layers": "re:(a|b)"})


def keys(prefix: str = "") -> set[str]:
    """Every key of two readings, in one piece and in two segments."""
    # An optimum: the Hamiltonian is −1 everywhere, at L̃ = 2 that of a rank of 1, and the residual is small.
    quantities = {name: torch.ones(4) for name in QUANTITIES} | {"criticality_residual": torch.full((4,), 0.01)}
    quantities |= {name: -torch.ones(4) for name in ("hamiltonian", "energy_hamiltonian")}
    found = [Readings(quantities, torch.full((4,), 0.25), 2.0, segments=segments) for segments in ((), (2, 2))]
    return {key for readings in found for key in readings.scalars(prefix) | rank_scalars(readings, prefix)}


def tags_of(layout) -> list[str]:
    return [tag for charts in layout.values() for _, tags in charts.values() for tag in tags]


def test_every_key_that_is_logged_is_in_the_table_and_no_other():
    table = set(re.findall(r"``([a-z_]+/[a-z_]+)(?:\*)?``", key_table(ALL, {})))
    logged = {
        re.sub(r"(layer_)\d+", r"\1", key) for key in keys() if "segment" not in key and not key.startswith("rank/")
    }
    assert table == logged
    assert {key for key in keys() if key.startswith("rank/") and "segment" not in key} == set(TAGS_OF["EnergyMonitor"])


def test_every_quantity_says_what_it_is():
    for record in (*ALL, STEP_SIZE):
        assert (record.formula and record.says and record.title != record.key) or record.key == "speed"
        assert record.unit in ("energy", "cost", "–")


def test_every_quantity_has_one_chart_with_all_its_layers():
    layout = custom_charts((*ALL, STEP_SIZE))
    for name in (*QUANTITIES, "step_size"):
        charts = [tags for part in layout.values() for _, tags in part.values() if rf"^{name}/layer_" in tags]
        assert charts == [[rf"^{name}/layer_"]]


def test_a_chart_without_lines_is_left_out():
    assert set(custom_charts(records("kinetic_energy"))) == {"Which layers do the work?"}
    assert "On validation and test data" in custom_charts(records("kinetic_energy"), records("kinetic_energy"))
    assert custom_charts([]) == {}


def test_margin_charts_have_value_lower_and_upper_end():
    layout = custom_charts(records("hamiltonian", "cost_of_identity"))
    margins = [tags for charts in layout.values() for kind, tags in charts.values() if kind == "Margin"]
    assert margins == [
        ["rank/lower", "rank/lower", "rank/upper"],
        [f"hamiltonian/bottleneck_rank{end}" for end in ("", "_min", "_max")],
    ]
    assert {tag for tags in margins for tag in tags} <= keys()


@pytest.mark.parametrize("prefix", ["", "a.b/"])
def test_every_tag_of_the_layout_is_logged_and_a_prefix_is_of_the_monitor_alone(prefix):
    """Its dots are dots, and `StepSizeAdapter` has none."""
    charts = [
        chart for part in custom_charts((*ALL, STEP_SIZE), ALL, prefix=prefix).values() for chart in part.values()
    ]
    ours = keys(prefix) | keys(f"{prefix}val_") | {"step_size/layer_01"}
    others = keys("a-b/") | (keys() if prefix else set())
    for kind, tags in charts:
        if kind == "Margin":
            assert set(tags) <= ours
        else:
            assert all(any(re.search(tag, key) for key in ours) for tag in tags)
            assert not any(re.search(tag, key) for tag in tags for key in others)


def test_charts_of_two_monitors_share_one_layout():
    """TensorBoard shows the last that a run writes, and nothing of the others."""
    layouts = {prefix: custom_charts(ALL, prefix=prefix) for prefix in ("", "decoder/")}
    tags = tags_of(merged_charts(layouts))
    assert sorted(tags) == sorted(tag for layout in layouts.values() for tag in tags_of(layout))


def test_the_page_explains_the_tags_of_the_callbacks_that_there_are():
    page = guide_page(records("speed"), {}, ["StepSizeAdapter", "SomebodyElses"])
    assert "num_layers" not in page
    assert "| `step_sizes` | of StepSizeAdapter |" in page


def rows_of(page: str) -> dict[str, str]:
    """What each tag is and says, by tag."""
    return dict(re.findall(r"^\| `([^`]+)` \| (.+) \|$", page, flags=re.MULTILINE))


@pytest.mark.parametrize("segments", [(), (2, 2)])
@pytest.mark.parametrize("leak", [0.0, 2.0])
def test_the_page_says_what_holds_for_the_path_that_is_read(leak, segments):
    """Every summary that it names is logged; without a leak no formula has L̃ and nothing is 0 or another again."""
    quantities = {name: torch.ones(4) for name in QUANTITIES} | {"criticality_residual": torch.full((4,), 0.01)}
    quantities |= {name: -torch.ones(4) for name in ("hamiltonian", "energy_hamiltonian")}
    readings = Readings(quantities, torch.full((4,), 0.25), leak, segments=segments)
    rows = rows_of(guide_page(ALL, {}, ["EnergyMonitor"], readings))
    logged = {re.sub(r"segment_\d", "segment_*", key) for key in readings.summaries() | rank_scalars(readings)}
    named = {tag for tag in rows if not tag.endswith("layer_*")}
    assert named <= logged
    if leak:
        assert named == logged
        return
    assert not [says for says in rows.values() if re.search("L̃|rank of|from (above|below)|Median", says)]
    assert not {"potential_energy", "lagrangian", "energy_hamiltonian", "rank"} & {tag.split("/")[0] for tag in rows}
    assert rows["hamiltonian/layer_*"].startswith("Hamiltonian, momentum form: ½ ‖Bᵀσ(A)‖² (energy)")


def test_the_page_explains_what_is_read_and_nothing_else():
    text = guide_page(records("speed", "hamiltonian"), {"gamma_rel": 0.001, "layers": None})
    assert re.findall(r"^\| `([a-z_]+)/", text, flags=re.MULTILINE) == [
        "speed",
        *["hamiltonian"] * 1,
        "speed",
        *["hamiltonian"] * 4,
    ]
    assert "| gamma_rel | `0.001` |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {3, 4}
