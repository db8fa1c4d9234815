"""What readings are said to mean."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_leaky import Readings
from lightning_leaky.explain.diagnosis import diagnose, paragraphs, ranges, rank_scalars


def readings(depth: float = 2.0, step_sizes=(0.25, 0.25, 0.25, 0.25), segments=(), **quantities) -> Readings:
    columns = {name: torch.tensor(values, dtype=torch.float64) for name, values in quantities.items()}
    return Readings(columns, torch.tensor(step_sizes, dtype=torch.float64), depth, segments=segments)


def said(**quantities) -> tuple[str, ...]:
    (found,) = diagnose(readings(**quantities))
    return found.sentences


@pytest.mark.parametrize(
    ("dimensions", "answer"),
    [
        ((10.0, 5.0, 5.1, 8.0), "Bottleneck: yes; the cost of identity goes from 10.0 to 5.0, before layer 2."),
        ((10.0, 5.1, 6.0, 8.0), "Bottleneck: no; the cost of identity goes from 10.0 to 5.1, before layer 2."),
        ((10.0, 3.0, 0.1, 8.0), "Bottleneck: the path has collapsed; before layer 3 no dimension is left."),
    ],
)
def test_says_whether_there_is_a_bottleneck(dimensions, answer):
    assert said(cost_of_identity=dimensions)[0] == answer


def test_the_rank_has_two_estimates():
    """The median of −2H/L̃ = −H is 2.5, and the momentum form comes first."""
    energies = {"hamiltonian": (-9.0, -2.0, -3.0, 0.0), "energy_hamiltonian": (0.0, 0.0, 0.0, 0.0)}
    answer = said(cost_of_identity=(9.0, 4.0, 4.0, 9.0), **energies)[1]
    assert answer == "Rank: 2.5 by −2H/L̃, 4.0 by the least cost of identity."


def test_medians_are_along_the_path():
    """Many short layers at the ends, where neither says much, do not outvote a long one in the bulk."""
    quantities = {"hamiltonian": (0.0, -3.0, -1.0, 0.0), "criticality_residual": (9.0, 0.2, 9.0, 9.0)}
    (found,) = diagnose(readings(step_sizes=(0.01, 0.97, 0.01, 0.01), cost_of_identity=(9.0,) * 4, **quantities))
    assert (found.rank_from_below, found.residual) == (3.0, 0.2)


def test_a_collapsed_path_has_no_work():
    assert said(cost_of_identity=(1.0, 0.1, 0.1, 0.1), kinetic_energy=(1.0,) * 4)[2].endswith(
        "nothing left to work on."
    )


def test_work_is_kinetic_energy_times_step_size():
    (found,) = diagnose(readings(step_sizes=(0.1, 0.2, 0.3, 0.4), kinetic_energy=(6.0, 1.0, 1.0, 0.25)))
    assert found.work.tolist() == pytest.approx([0.6 / 1.2, 0.2 / 1.2, 0.3 / 1.2, 0.1 / 1.2])
    assert found.working == (1, 2, 3)


def test_a_layer_moves_little_by_its_share_of_the_way():
    """Speeds are roots of kinetic energies: 1, 0.1 and 0.01 of the way a layer."""
    (found,) = diagnose(readings(kinetic_energy=(1.0, 1.0, 1e-2, 1e-4)))
    assert found.moves_little == (4,)
    assert said(kinetic_energy=(1.0, 1.0, 1e-2, 1e-4))[2].endswith("is done in layers 1–2; layer 4 moves little.")


@pytest.mark.parametrize(
    ("residuals", "trust"), [((0.05, 0.09, 0.09, 5.0), "yes"), ((0.4,) * 4, "partly"), ((0.6,) * 4, "no")]
)
def test_trust_is_by_the_median_residual(residuals, trust):
    (found,) = diagnose(readings(criticality_residual=residuals))
    assert found.trust == trust


def test_what_was_not_read_is_not_known():
    (found,) = diagnose(readings(speed=(1.0,) * 4))
    assert (found.has_bottleneck, found.trust, found.working, found.moves_little) == (None, "unknown", (), ())
    assert math.isnan(found.dimensions[1])
    assert [sentence.split(":")[0] for sentence in found.sentences] == ["Bottleneck", "Rank", "Layers", "Trust"]
    assert "not known" in found.sentences[0]


WITHOUT_LEAK = {"depth": 0.0, "cost_of_identity": (50.0, 20.0, 30.0, 40.0), "block_influence": (0.4, 0.2, 0.01, 0.1)}


def test_without_a_leak_all_four_questions_have_answers():
    """Of a healthy transformer, say: it narrows, some layers move more than others, samples are enough."""
    found = replace(readings(**WITHOUT_LEAK), num_samples=(300, 250, 300, 300))
    assert diagnose(found)[0].sentences == (
        "Bottleneck: yes; the cost of identity goes from 50.0 to 20.0, before layer 2.",
        "Dimension: 20.0 at the narrowest layer, layer 2.",
        "Layers: layer 1 turns the samples most, layer 3 least (block influence 0.4 and 0.01); layer 3 moves little. "
        "`ablate_path` measures which can go.",
        "Trust: 250 samples are enough for 50 dimensions.",
    )
    assert diagnose(found)[0].has_collapsed is False


def test_layers_are_counted_from_that_of_the_segment():
    found = diagnose(readings(segments=(1, 3), **WITHOUT_LEAK))[1]
    assert found.sentences[2].startswith("Layers: layer 2 turns the samples most, layer 3 least")


def test_a_first_block_that_moves_by_far_the_most_does_not_hide_the_others():
    (found,) = diagnose(readings(depth=0.0, block_influence=(1.9, 0.1, 0.1, 0.005)))
    assert found.moves_little == (4,)


@pytest.mark.parametrize(("number", "is_enough"), [(249, False), (250, True)])
def test_a_dimension_takes_five_samples(number, is_enough):
    (found,) = diagnose(replace(readings(**WITHOUT_LEAK), num_samples=(number,) * 4))
    assert found.has_enough_samples is is_enough
    word = "samples are enough for 50" if is_enough else "249 samples are too few for 50 dimensions"
    assert word in found.sentences[3]


def test_a_cost_above_the_width_is_no_count():
    """As with the paper's features of blocks that are no leaky steps: samples for the width are then enough."""
    found = replace(readings(depth=0.0, cost_of_identity=(710.0, 200.0, 190.0, 300.0)), widths=(96,) * 4)
    for number, is_enough in ((479, False), (480, True)):
        (told,) = diagnose(replace(found, num_samples=(number,) * 4))
        assert told.has_enough_samples is is_enough
    assert told.sentences[1].startswith(
        "Dimension: not counted; the cost of identity, 190.0 or more, is above the width"
    )
    (counted,) = diagnose(replace(found, widths=(190,) * 4))
    assert counted.sentences[1] == "Dimension: 190.0 at the narrowest layer, layer 3."


def test_halves_say_how_far_the_dimension_can_be_trusted():
    halves = [readings(cost_of_identity=(50.0, least, 30.0, 40.0)).quantities for least in (18.0, 22.0)]
    (found,) = diagnose(replace(readings(**WITHOUT_LEAK), halves=tuple(halves)))
    assert found.disagreement == pytest.approx(0.2)
    assert found.sentences[1] == "Dimension: 20.0 at the narrowest layer, layer 2 (halves differ by 20%)."


@pytest.mark.parametrize(
    ("residual", "word"), [(0.05, "at an optimum"), (0.3, "near an optimum"), (0.9, "far from an")]
)
def test_without_a_leak_the_residual_of_any_block_is_told(residual, word):
    sentences = said(depth=0.0, cost_of_identity=(9.0,) * 4, pontryagin_residual=(residual,) * 4)
    assert sentences[0].startswith("Bottleneck: no; ")
    assert f"training is {word}" in sentences[3]


def test_with_a_leak_samples_are_told_where_the_residual_was_not_read():
    found = replace(readings(cost_of_identity=(500.0, 3.0, 3.0, 9.0)), num_samples=(100,) * 4)
    assert (
        diagnose(found)[0].sentences[3].startswith("Trust: 100 samples are enough for 3 dimensions; whether training")
    )


def test_where_the_path_never_narrows_it_says_so():
    """Of a single layer too."""
    for costs in ((4.0,), (4.0, 5.0, 6.0, 7.0)):
        (found,) = diagnose(readings(step_sizes=(1 / len(costs),) * len(costs), cost_of_identity=costs))
        assert found.sentences[0] == "Bottleneck: no; the cost of identity is least, 4.0, at the start."


def test_of_a_hamiltonian_that_was_not_read_nothing_is_said():
    assert said(kinetic_energy=(1.0,) * 4)[3].endswith("whether training is at an optimum was not read.")
    assert said(energy_hamiltonian=(-1.0,) * 4)[3].endswith("was not read, so H says little.")


def test_segments_are_told_apart():
    parts = diagnose(readings(segments=(1, 3), cost_of_identity=(8.0, 6.0, 2.0, 5.0)))
    assert [(part.first, part.narrowest, part.dimensions) for part in parts] == [(1, 1, (8.0, 8.0)), (2, 3, (6.0, 2.0))]


def test_layers_are_counted_through_all_segments():
    found = paragraphs(readings(segments=(1, 3), kinetic_energy=(1.0, 1.0, 1e-9, 1.0)))
    assert [line for line in found if line.startswith("Segment")] == ["Segment 1, layer 1:", "Segment 2, layers 2–4:"]
    assert "Layers: 80% of the work is done in layers 2, 4; layer 3 moves little." in found


def test_far_from_an_optimum_there_is_no_verdict():
    sentences = said(cost_of_identity=(9.0, 1.0, 1.0, 1.0), hamiltonian=(-1.0,) * 4, criticality_residual=(0.9,) * 4)
    assert sentences[0].startswith("Bottleneck: no verdict yet")
    assert sentences[1].startswith("Rank: no estimate yet, training is far from an optimum; ")


@pytest.mark.parametrize(
    ("energy", "reason"), [(1.0, "L̃ is too small for one"), (-3.6, "the two have crossed by too much")]
)
def test_why_there_is_no_estimate_of_the_rank(energy, reason):
    answer = said(cost_of_identity=(9.0, 3.0, 3.0, 3.0), hamiltonian=(energy,) * 4)[1]
    assert answer.startswith(f"Rank: no estimate, {reason}; ")


def test_estimates_that_have_met_may_cross_by_a_little():
    crossed = {"cost_of_identity": (9.0, 3.0, 3.0, 3.0), "hamiltonian": (-3.4,) * 4}
    assert said(**crossed)[1] == "Rank: 3.4 by −2H/L̃, 3.0 by the least cost of identity."
    found = {key: float(value) for key, value in rank_scalars(readings(**crossed)).items()}
    assert found == pytest.approx({"rank/lower": 3.0, "rank/upper": 3.4})


def test_a_diverged_path_says_so_and_nothing_else():
    assert said(cost_of_identity=(9.0, 3.0, math.nan, math.inf), kinetic_energy=(1.0,) * 4) == (
        "Diverged: readings are not finite from layer 3 on, and nothing can be said.",
    )


def test_where_nothing_moves_all_layers_move_little():
    (found,) = diagnose(readings(kinetic_energy=(0.0,) * 4))
    assert (found.working, found.moves_little) == ((), (1, 2, 3, 4))
    assert found.sentences[2] == "Layers: nothing moves."


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30))
def test_the_working_layers_do_four_fifths_and_none_can_be_spared(kinetic):
    (found,) = diagnose(readings(step_sizes=(1 / len(kinetic),) * len(kinetic), kinetic_energy=kinetic))
    chosen = found.work[[layer - 1 for layer in found.working]]
    assert chosen.sum() >= 0.8 - 1e-12
    assert chosen.sum() - chosen.min() < 0.8 + 1e-12
    assert not set(found.working) & set(found.moves_little)


@given(st.sets(st.integers(1, 40), min_size=1))
def test_ranges_can_be_read_back(numbers):
    text = ranges(tuple(sorted(numbers))).removeprefix("layers ").removeprefix("layer ")
    ends = [[int(end) for end in part.split("–")] for part in text.split(", ")]
    assert {number for part in ends for number in range(part[0], part[-1] + 1)} == numbers


@pytest.mark.parametrize(
    ("residual", "energies", "found"),
    [
        (0.1, (-9.0, -2.0, -3.0, 0.0), {"rank/lower": 2.5, "rank/upper": 4.0}),
        (0.6, (-9.0, -2.0, -3.0, 0.0), {}),
        (0.1, (-9.0, -9.0, -9.0, -9.0), {}),
        (0.1, (1.0, 1.0, 1.0, 1.0), {}),
    ],
)
def test_estimates_of_the_rank_are_logged_where_there_are_any(residual, energies, found):
    read = readings(cost_of_identity=(9.0, 4.0, 4.0, 9.0), hamiltonian=energies, criticality_residual=(residual,) * 4)
    assert {key: float(value) for key, value in rank_scalars(read).items()} == found


def test_each_segment_has_estimates_of_its_own():
    read = readings(segments=(2, 2), cost_of_identity=(9.0, 4.0, 1.0, 0.9), energy_hamiltonian=(-3.0, -3.0, -5.0, -5.0))
    found = {key: float(value) for key, value in rank_scalars(read, "encoder/").items()}
    assert found == {"encoder/rank/segment_1/lower": 3.0, "encoder/rank/segment_1/upper": 4.0}


def test_a_way_from_a_state_of_zeros_has_not_diverged():
    ones = {"cost_of_identity": torch.ones(2), "block_influence": torch.tensor([0.5, 0.1])}
    readings = Readings(ones | {"relative_speed": torch.tensor([math.inf, 1.0])}, torch.tensor([0.5, 0.5]), 0.0)
    assert diagnose(readings)[0].diverged is None


def test_without_a_leak_nothing_moves():
    quantities = {"cost_of_identity": torch.ones(3), "block_influence": torch.zeros(3)}
    assert "Layers: nothing moves." in diagnose(Readings(quantities, torch.full((3,), 1 / 3), 0.0))[0].sentences
