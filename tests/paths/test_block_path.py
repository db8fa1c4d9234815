"""Which layers are found where nobody has named them."""

import itertools
import warnings

import pytest
import torch
from torch import nn

from lightning_leaky import measure_path
from lightning_leaky.paths.block_path import PathFinder, flat_stacks
from lightning_leaky.reading.observer import PathObserver
from lightning_leaky.reading.settings import ReadingSettings
from tests.blocks import Block


class Dropping(nn.Module):
    """Blocks of which some are passed by."""

    def __init__(self, skipped):
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.skipped = nn.ModuleList(Block(8) for _ in range(5)), skipped

    def forward(self, hidden):
        for index, block in enumerate(self.blocks):
            if index not in self.skipped:
                hidden = block(hidden)
        return hidden


class Identity(Block):
    def forward(self, hidden):
        return hidden if getattr(self, "is_skipped", False) else super().forward(hidden)


def observer_of(model, **settings):
    return PathObserver(model, None, ReadingSettings(["kinetic_energy"]), **settings).attach()


def names_found(model, batches, **settings):
    observer = observer_of(model, **settings)
    for batch in batches:
        observer.arm()
        model(batch)
        observer.drain()
    readings = observer.compute()
    return None if readings is None else list(readings.names)


FIVE = [f"blocks.{index}" for index in range(5)]
BATCHES = [torch.randn(6, 8) for _ in range(2)]


@pytest.mark.parametrize("skipped", [{0}, {2}, {4}, {1, 3}, {0, 1, 2}, {0, 1, 2, 3}, {0, 1, 2, 3, 4}])
def test_what_is_found_does_not_depend_on_which_blocks_a_batch_runs(skipped):
    model = Dropping(skipped)
    observer = observer_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the batch that is left out
        for batch in BATCHES:
            observer.arm()
            model(batch)
            observer.drain()
            model.skipped = set()
    readings = observer.compute()
    assert list(readings.names) == FIVE
    whole = measure_path(model, [BATCHES[1]], ["kinetic_energy"], layers="blocks.*", precision="default")
    torch.testing.assert_close(readings["kinetic_energy"], whole["kinetic_energy"])


@pytest.mark.parametrize("skipped", [0, 2, 4])
def test_a_block_that_returns_its_input_does_nothing_and_is_one_all_the_same(skipped):
    torch.manual_seed(0)
    model = nn.ModuleDict({"blocks": nn.Sequential(*(Identity(8) for _ in range(5)))})
    model.forward = lambda hidden: model["blocks"](hidden)
    model["blocks"][skipped].is_skipped = True
    energies = measure_path(model, BATCHES, ["kinetic_energy"])
    assert list(energies.names) == FIVE
    assert float(energies["kinetic_energy"][skipped]) == 0
    assert bool((energies["kinetic_energy"] > 0).sum() == 4)


def test_a_batch_without_a_layer_is_left_out_with_the_right_advice():
    model = Dropping({2})
    with pytest.raises(
        ValueError, match=r"layers \['blocks.2'\] did not run in it .*Batches in which all layers run are"
    ):
        measure_path(model, BATCHES, ["kinetic_energy"], layers="blocks.*")


class Distilled(nn.Module):
    """A teacher that is longer than the student; it is frozen, or held by no optimizer."""

    def __init__(self):
        super().__init__()
        self.teacher = nn.Sequential(*(Block(8) for _ in range(6)))
        self.student = nn.Sequential(*(Block(8) for _ in range(3)))

    def forward(self, hidden):
        return self.student(hidden) - self.teacher(hidden)


@pytest.mark.parametrize("how", ["frozen", "held by no optimizer"])
def test_a_longer_teacher_is_not_taken_for_the_path(how):
    model, held = Distilled(), None
    if how == "frozen":
        model.teacher.requires_grad_(False)
    else:
        held = {id(parameter) for parameter in model.student.parameters()}
    assert names_found(model, BATCHES, held=held) == [f"student.{index}" for index in range(3)]


class Stages(nn.Module):
    def __init__(self, widths):
        super().__init__()
        self.stages = nn.ModuleList(nn.Sequential(Block(width), Block(width)) for width in widths)
        self.between = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(widths))

    def forward(self, hidden):
        for index, stage in enumerate(self.stages):
            hidden = stage(hidden)
            hidden = self.between[index](hidden) if index < len(self.between) else hidden
        return hidden


def test_stages_of_one_class_are_segments_of_one_path():
    readings = measure_path(Stages([8, 6, 4]), BATCHES, ["kinetic_energy"])
    assert list(readings.names) == [f"stages.{stage}.{block}" for stage in range(3) for block in range(2)]
    assert readings.segments == (2, 2, 2)


def test_stages_that_cannot_be_joined_are_named():
    observer = observer_of(model := Stages([8, 8]))
    observer.arm()
    model(BATCHES[0])
    observer.drain()
    assert observer.notes[0].startswith("2 layers found: stages.0.0 to stages.0.1 (Block). 2 more of this class")
    assert "'stages.*.*'" in observer.notes[0]


@pytest.mark.parametrize("inplace", [True, False])
def test_a_flat_stack_reads_as_one_of_blocks(inplace):
    """Linear map, activation and dropout, with an input and an output of other widths around them."""
    torch.manual_seed(0)
    layers = [[nn.Linear(8, 8), nn.ReLU(inplace=inplace), nn.Dropout(0.1)] for _ in range(4)]
    flat = nn.Sequential(nn.Linear(3, 8), *(module for layer in layers for module in layer), nn.Linear(8, 2))
    nested = nn.Sequential(flat[0], *(nn.Sequential(*layer) for layer in layers), flat[-1])
    batch = torch.randn(20, 3)
    found = measure_path(flat, [batch], ["kinetic_energy", "cost_of_identity"])
    assert list(found.names) == ["1", "4", "7", "10"]
    right = measure_path(nested, [batch], ["kinetic_energy", "cost_of_identity"])
    assert len(right.names) == 4
    for quantity in ("kinetic_energy", "cost_of_identity"):
        torch.testing.assert_close(found[quantity], right[quantity])


def test_blocks_come_before_linear_maps_in_a_row():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)))

        def forward(self, hidden):
            return hidden + self.inner(hidden)

    model = nn.Sequential(Deep(), Deep())
    assert len(flat_stacks(model)) == 10
    assert list(measure_path(model, BATCHES, ["kinetic_energy"]).names) == ["0", "1"]


def test_a_network_without_blocks_is_told_what_was_seen():
    model = nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(8, 4)), "decoder": nn.Sequential(nn.Linear(4, 8))})
    model.forward = lambda hidden: model["decoder"](model["encoder"](hidden))
    with pytest.raises(
        ValueError, match=r"encoder: \(6, 8\) to \(6, 4\); decoder: \(6, 4\) to \(6, 8\).* wrap what belongs"
    ):
        measure_path(model, BATCHES, ["kinetic_energy"])


def test_a_search_ends_once_every_candidate_has_run():
    finder = PathFinder(nn.Sequential(Block(8), nn.Sequential(nn.Linear(8, 8))))
    assert not finder.is_done()
