"""Figures: what is drawn, what it is called, and what is said where matplotlib is missing."""

import builtins

import pytest
import torch
from matplotlib.figure import Figure

from lightning_leaky.plotting import plot_along_path, plot_energies


def drawn(axes):
    """Vertical positions of each labelled line, by label."""
    return {line.get_label(): list(line.get_ydata()) for line in axes.lines if not line.get_label().startswith("_")}


def test_one_line_a_curve_against_layer_numbers():
    curves = {"kinetic": torch.tensor([3.0, 1.0, 2.0]), "potential": torch.tensor([-3.0, -1.0, -2.0])}
    figure, axes = plot_along_path(curves, ylabel="energy")
    assert axes.figure is figure
    assert drawn(axes) == {"kinetic": [3.0, 1.0, 2.0], "potential": [-3.0, -1.0, -2.0]}
    assert list(axes.lines[0].get_xdata()) == [1, 2, 3]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("layer", "energy")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(curves)


def test_against_positions_each_layer_has_a_tick():
    positions = torch.tensor([0.0, 0.25, 0.5])
    _, axes = plot_along_path({"speed": torch.ones(3)}, positions)
    assert axes.get_xlabel() == "position p"
    assert list(axes.lines[0].get_xdata()) == list(axes.lines[1].get_xdata()) == positions.tolist()
    assert axes.lines[1].get_marker() == "|"
    assert axes.get_legend() is None


def test_draws_on_axes_given():
    axes = Figure().add_subplot()
    figure, returned = plot_along_path({"speed": torch.ones(3, requires_grad=True)}, ax=axes)
    assert returned is axes
    assert figure is axes.figure
    assert len(axes.lines) == 1


def test_every_curve_of_many_is_drawn():
    curves = {f"curve {index}": torch.full((2,), float(index)) for index in range(20)}
    _, axes = plot_along_path(curves)
    assert list(drawn(axes)) == list(curves)


def test_energies_that_are_present_are_drawn_under_their_names():
    readings = {"kinetic_energy": torch.tensor([2.0, 1.0]), "hamiltonian": -torch.ones(2), "stable_rank": torch.ones(2)}
    axes = plot_energies(readings, torch.tensor([0.0, 0.5])).axes[0]
    assert drawn(axes) == {"kinetic energy": [2.0, 1.0], "Hamiltonian, momentum form": [-1.0, -1.0]}
    assert axes.get_ylabel() == "energy"
    assert axes.get_title()


def test_without_energies_there_is_nothing_to_draw():
    with pytest.raises(ValueError, match=r"`readings`.*stable_rank"):
        plot_energies({"stable_rank": torch.ones(2)}, torch.tensor([0.0, 0.5]))


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    real_import = builtins.__import__

    def without_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(ModuleNotFoundError, match=r"lightning-leaky\[plot\]"):
        plot_along_path({"speed": torch.ones(3)})
