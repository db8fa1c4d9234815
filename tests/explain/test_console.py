"""The table for a terminal: one line a layer, and when it is printed."""

import dataclasses
import io

import torch
from rich.console import Console

from lightning_leaky import EnergyMonitor, Readings
from lightning_leaky.explain.console import print_layers
from lightning_leaky.metrics import QUANTITIES


def printed(readings: Readings, width: int = 80) -> list[str]:
    file = io.StringIO()
    print_layers(readings, Console(file=file, width=width))
    return [line.rstrip() for line in file.getvalue().splitlines()]


READINGS = Readings(
    {
        "cost_of_identity": torch.tensor([400.0, 2.5, 3.0]),
        "kinetic_energy": torch.tensor([6.0, 3.0, 1e-6]),
        "hamiltonian": torch.tensor([-3.0, -2.0, -1.0]),
        "criticality_residual": torch.tensor([0.01, 0.02, 0.03]),
    },
    torch.tensor([0.25, 0.25, 0.5]),
    2.0,
)


def test_one_line_a_layer_within_eighty_columns():
    lines = printed(READINGS)
    assert lines[0].split() == ["layer", "ρ", "work", "identity", "kinetic", "H", "residual"]
    assert lines[1].split() == ["1", "0.25", "████████", "67%", "400", "6", "-3", "0.01"]
    assert lines[3].split() == ["3", "0.5", "0%", "3", "1e-06", "-1", "0.03"]
    assert max(map(len, lines[:4])) <= 80
    assert [line.split(":")[0] for line in lines[4:]] == ["Bottleneck", "Rank", "Layers", "Trust"]


def test_layers_have_their_names_where_they_are_known():
    names = ("encoder.layers.0", "encoder.layers.1", "encoder.layers.2")
    lines = printed(dataclasses.replace(READINGS, names=names))
    assert [line.split()[-1] for line in lines[:4]] == ["name", *names]
    assert max(map(len, lines[:4])) <= 80
    segmented = printed(dataclasses.replace(READINGS, names=names, segments=(1, 2)))
    assert [line.split()[-1] for line in segmented[1:4]] == list(names)


def test_segments_are_counted_through():
    quantities = {name: values.repeat(2) for name, values in READINGS.quantities.items()}
    lines = printed(Readings(quantities, torch.full((6,), 1 / 6), 2.0, segments=(3, 3)))
    assert [line.split()[0] for line in lines[1:7]] == list("123456")
    assert (lines[7], lines[12]) == ("Segment 1, layers 1–3:", "Segment 2, layers 4–6:")
    assert len(lines) == 7 + 10


def test_step_sizes_are_shown_where_they_differ_and_the_source_where_it_is_told():
    equal = dataclasses.replace(READINGS, step_sizes=torch.full((3,), 1 / 3))
    assert printed(equal)[0].split() == ["layer", "work", "identity", "kinetic", "H", "residual"]
    file = io.StringIO()
    print_layers(equal, Console(file=file), source="validation data")
    assert "Read of validation data.\nBottleneck:" in file.getvalue()


def test_a_column_that_says_nothing_without_a_leak_is_left_out():
    heading = dataclasses.replace(QUANTITIES["kinetic_energy"], key="mine", heading="mine")
    quantities = READINGS.quantities | {"potential_energy": torch.zeros(3), "mine": torch.ones(3)}
    lines = printed(Readings(quantities, READINGS.step_sizes, 0.0, own=(heading,)))
    assert lines[0].split() == ["layer", "ρ", "work", "identity", "kinetic", "H", "residual", "mine"]
    assert lines[5].startswith("Dimension: ")


def test_a_monitor_prints_it_on_request_only(make_module, make_data, make_trainer, capsys):
    make_trainer(EnergyMonitor(), max_epochs=1).fit(make_module(), datamodule=make_data())
    assert "residual" not in capsys.readouterr().out
    make_trainer(EnergyMonitor(print_layers=True), max_epochs=1).fit(make_module(), datamodule=make_data())
    output = capsys.readouterr().out
    assert "residual" in output
    assert "Bottleneck:" in output
