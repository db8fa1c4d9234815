"""Figures: what is drawn, what it is called, and what is said where matplotlib is missing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import LogNorm, to_rgba

from lightning_leaky.plotting import (
    Limits,
    pixels,
    plot_along_path,
    plot_energies,
    plot_heat_map,
    plot_paths,
    plot_singular_values,
)
from lightning_leaky.plotting.style import new_figure


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


# Spectra, heat maps, paths.


def test_singular_values_are_lines_over_positions_and_noise_is_left_out():
    values = torch.tensor([[4.0, 2.0, 1e-9], [3.0, 1.0, 0.5]])
    axes = plot_singular_values(values, torch.tensor([0.0, 0.75]), "W").axes[0]
    lines = {tuple(line.get_ydata()) for line in axes.lines if len(line.get_ydata()) == 2 and line.get_marker() == "."}
    assert {(4.0, 3.0), (2.0, 1.0)} <= lines
    (noise,) = lines - {(4.0, 3.0), (2.0, 1.0)}
    assert (math.isnan(noise[0]), noise[1]) == (True, 0.5)
    assert (axes.get_yscale(), axes.get_ylabel()) == ("log", "singular values of W")


def test_only_the_largest_singular_values_are_drawn():
    values = torch.arange(30.0, 0.0, -1.0).repeat(2, 1)
    lines = plot_singular_values(values, torch.tensor([0.0, 0.5]), "A", most=4).axes[0].lines
    assert sorted(line.get_ydata()[0] for line in lines if line.get_marker() == ".") == [27.0, 28.0, 29.0, 30.0]


def test_what_is_not_above_zero_is_grey_on_a_logarithmic_scale_and_what_is_missing_is_empty():
    values = torch.tensor([[1.0, 100.0, 0.0, -3.0, torch.nan]])
    mesh = plot_heat_map(values, torch.tensor([10]), "cost", scale="log").axes[0].collections[0]
    assert isinstance(mesh.norm, LogNorm)
    assert mesh.get_clim() == (1.0, 100.0)
    colours = mesh.to_rgba(mesh.get_array()).reshape(5, 4)
    grey = to_rgba("0.85")
    assert [tuple(colour) == grey for colour in colours] == [False, False, True, True, False]
    assert colours[4, 3] == 0.0


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_a_heat_map_of_nothing_but_zeros_is_drawn(scale):
    assert pixels(plot_heat_map(torch.zeros(3, 2), torch.arange(3), "cost", scale=scale)).numel()


def test_a_linear_heat_map_shows_zeros_and_what_is_below():
    mesh = plot_heat_map(torch.tensor([[-1.0, 0.0, 3.0]]), torch.tensor([10]), "cost").axes[0].collections[0]
    assert mesh.get_array().flatten().tolist() == [-1.0, 0.0, 3.0]
    assert mesh.get_clim() == (-1.0, 3.0)


def test_a_heat_map_has_layers_upwards_and_steps_to_the_right():
    values = torch.tensor([[1.0, 2.0, torch.nan], [4.0, 5.0, 6.0]])
    figure = plot_heat_map(values, torch.tensor([10, 30]), "cost of identity")
    mesh = figure.axes[0].collections[0]
    assert mesh.get_array().filled(-1).tolist() == [[1.0, 4.0], [2.0, 5.0], [-1.0, 6.0]]
    corners = mesh.get_coordinates()
    assert corners[0, :, 0].tolist() == [10.0, 30.0, 50.0]
    assert corners[:, 0, 1].tolist() == [0.5, 1.5, 2.5, 3.5]
    assert figure.axes[1].get_ylabel() == "cost of identity"


def lines_of(axes) -> LineCollection:
    """The paths of the samples, as they are drawn."""
    axes.figure.draw_without_rendering()
    (lines,) = [drawn for drawn in axes.collections if isinstance(drawn, LineCollection)]
    return lines


def test_each_sample_has_a_path_in_the_colour_of_its_class():
    points, labels = torch.rand(3, 4, 2), torch.tensor([5, 9, 5, 9])
    axes = plot_paths(points, labels).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["5", "9"]
    lines = lines_of(axes)
    in_legend = [tuple(to_rgba(line.get_color())) for line in axes.get_legend().get_lines()]
    assert [tuple(colour) for colour in lines.get_colors()] == in_legend * 2
    for sample, path in enumerate(lines.get_segments()):
        assert path.tolist() == points[:, sample].double().tolist()


def test_dots_have_the_colour_of_their_sample():
    points, labels = torch.rand(3, 2, 2), torch.tensor([5, 9])
    axes = plot_paths(points, labels).axes[0]
    colours = [tuple(colour) for colour in lines_of(axes).get_colors()]
    (dots,) = [drawn for drawn in axes.collections if isinstance(drawn, PathCollection)]
    assert [tuple(colour) for colour in dots.get_facecolors()] == colours * 3
    assert dots.get_offsets().tolist() == points.flatten(0, 1).double().tolist()


@settings(max_examples=10)
@given(st.sets(st.integers(0, 9), min_size=1), st.sets(st.integers(0, 9), min_size=1))
def test_a_class_has_one_colour_whatever_the_others_are(first, second):
    colours = []
    for classes in (first, second):
        axes = plot_paths(torch.rand(2, len(classes), 2), torch.tensor(sorted(classes))).axes[0]
        colours.append(dict(zip(sorted(classes), map(tuple, lines_of(axes).get_colors()), strict=True)))
    assert all(colours[0][name] == colours[1][name] for name in first & second)
    assert len(set(colours[0].values())) == len(first)


def test_classes_keep_their_colours_after_a_batch_with_larger_numbers():
    """One picture may have a legend and the next one a bar: the legend tells the truth all the same."""
    limits, found = Limits(), []
    for classes in ([0, 1, 2], [0, 1, 42], [0, 1, 2]):
        axes = plot_paths(torch.rand(3, 3, 2), torch.tensor(classes)).axes[0]
        limits.widen("path", axes)
        found.append([tuple(colour) for colour in lines_of(axes).get_colors()])
    assert found[0] == found[2]
    assert len(set(found[2])) == 3


@pytest.mark.parametrize("labels", [[math.nan, 1.0], [math.nan, math.nan], [0.0, 0.0], [-1, 30]])
def test_labels_of_every_kind_are_drawn(labels):
    figure = plot_paths(torch.rand(3, 2, 2), torch.tensor(labels))
    assert all(map(math.isfinite, figure.axes[0].collections[0].get_clim()))
    assert pixels(figure).numel()


def test_targets_are_coloured_about_zero():
    lines = plot_paths(torch.rand(2, 3, 2), torch.tensor([0.5, -2.0, 1.0])).axes[0].collections[0]
    assert lines.get_clim() == (-2.0, 2.0)


@pytest.mark.parametrize("labels", [torch.tensor([0.5, 0.7]), torch.arange(2), None])
def test_targets_have_a_bar_classes_a_legend_and_one_colour_neither(labels):
    figure = plot_paths(torch.rand(3, 2, 2), labels)
    has_bar, has_legend = len(figure.axes) == 2, figure.axes[0].get_legend() is not None
    assert (has_bar, has_legend) == (
        labels is not None and labels.is_floating_point(),
        labels is not None and not labels.is_floating_point(),
    )


def test_more_classes_than_colours_have_a_bar():
    figure = plot_paths(torch.rand(3, 20, 2), torch.arange(20))
    assert figure.axes[1].get_ylabel() == "class"


def test_pixels_are_those_of_the_figure():
    figure = new_figure(1.0, 0.5)
    figure.set_facecolor("red")
    image = pixels(figure, dpi=40)
    assert image.shape == (20, 40, 3)
    assert (image == torch.tensor([255, 0, 0])).all()


@pytest.mark.parametrize(
    ("draw", "argument"),
    [
        (lambda: plot_heat_map(torch.ones(2, 3), torch.arange(3), "x"), "`values`"),
        (lambda: plot_heat_map(torch.ones(0, 3), torch.arange(0), "x"), "`values`"),
        (lambda: plot_singular_values(torch.ones(2, 3), torch.arange(3), "A"), "`values`"),
        (lambda: plot_paths(torch.ones(2, 3, 3)), "`points`"),
        (lambda: plot_paths(torch.ones(2, 3, 2), torch.ones(2)), "`labels`"),
    ],
)
def test_refuses_shapes_that_do_not_fit(draw, argument):
    with pytest.raises(ValueError, match=argument):
        draw()


def test_limits_of_colours_only_grow_and_reach_the_bar():
    limits, bars = Limits(), []
    for values in ([[1.0, 9.0]], [[2.0, 5.0]], [[0.5, 3.0]]):
        figure = plot_heat_map(torch.tensor(values), torch.tensor([10]), "cost", scale="log")
        limits.widen("cost", figure.axes[0])
        bars.append(pytest.approx(figure.axes[1].get_ylim()))
    assert bars == [(1.0, 9.0), (1.0, 9.0), (0.5, 9.0)]


def test_lines_and_dots_of_a_path_have_the_same_limits_of_colours():
    limits = Limits()
    for largest in (3.0, 1.0):
        axes = plot_paths(torch.rand(2, 3, 2), torch.tensor([0.0, -largest, 0.5])).axes[0]
        limits.widen("path", axes)
        assert {drawn.get_clim() for drawn in axes.collections} == {(-3.0, 3.0)}
