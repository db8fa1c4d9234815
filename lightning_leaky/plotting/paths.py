"""The way of samples through the layers, in a plane."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_leaky.plotting.style import CLASS_COLOURS, COLOURS, SEQUENTIAL, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

_MARKED_LAYERS = 30


def plot_paths(points: Tensor, labels: Tensor | None = None, title: str = "") -> Figure:
    """Draw the path of each sample through the layers, as in Fig. 2c of arXiv 2405.17573.

    A dot is a layer, a black one the last: where dots lie close the network moves little.

    Args:
        points: Two coordinates of A_0, …, A_L, shape (L + 1, N, 2), see
            `lightning_leaky.functional.path_projection`.
        labels: What to colour samples by, shape (N,): classes as whole numbers, those from 0 to 9 each in a colour of
            its own, or targets; one colour where it is ``None``.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        ModuleNotFoundError: If matplotlib is missing.
        ValueError: If the shapes do not fit.

    Example:
        >>> figure = plot_paths(torch.rand(4, 7, 2), torch.arange(7) % 2)
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['0', '1']
    """
    if points.ndim != 3 or points.shape[2] != 2 or (labels is not None and labels.shape != points.shape[1:2]):
        raise ValueError(
            f"`points` must have shape (L + 1, N, 2) and `labels` (N,), got {tuple(points.shape)} and "
            f"{None if labels is None else tuple(labels.shape)}."
        )
    figure = new_figure()
    from matplotlib.collections import LineCollection

    axes = figure.add_subplot()
    places = points.detach().to("cpu", torch.float64)
    numbers, colours, limits = _colours(labels, places.shape[1])
    lines = LineCollection(list(places.transpose(0, 1).numpy()), linewidths=0.5)
    lines.set(array=numbers.numpy(), cmap=colours, clim=limits)
    axes.add_collection(lines)
    if len(places) <= _MARKED_LAYERS:
        x, y = places.flatten(0, 1).mT.numpy()
        dots = axes.scatter(x, y, s=3, c=numbers.repeat(len(places)).numpy(), cmap=colours)
        dots.set_clim(*limits)
    axes.plot(*places[-1].mT.numpy(), "k.", markersize=4)
    axes.autoscale_view()
    axes.set(xlabel="first direction of the path", ylabel="second direction", title=title)
    if labels is not None:
        _explain(figure, axes, lines, labels)
    return figure


def _colours(labels: Tensor | None, num_samples: int) -> tuple[Tensor, Colormap, tuple[float, float]]:
    """A number for each sample, and the colours and the range that they are drawn in."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    if labels is None:
        return torch.zeros(num_samples), ListedColormap(COLOURS[:1]), (-0.5, 0.5)
    numbers = labels.detach().to("cpu", torch.float64)
    if _are_few_classes(labels):
        # By the class itself, not by its place among those of the batch: it has one colour in every picture.
        return numbers, ListedColormap(CLASS_COLOURS), (-0.5, len(CLASS_COLOURS) - 0.5)
    largest = float(numbers.abs().max())
    return numbers, colormaps[SEQUENTIAL], (-largest if labels.is_floating_point() else 0.0, largest)


def _are_few_classes(labels: Tensor) -> bool:
    return not labels.is_floating_point() and set(labels.tolist()) <= set(range(len(CLASS_COLOURS)))


def _explain(figure: Figure, axes: Axes, lines: LineCollection, labels: Tensor) -> None:
    """A legend of classes, or a bar of targets."""
    if not _are_few_classes(labels):
        figure.colorbar(lines, ax=axes, label="target" if labels.is_floating_point() else "class")
        return
    classes = sorted(set(labels.tolist()))
    for name in classes:
        axes.plot([], [], color=CLASS_COLOURS[name], label=str(name), linewidth=3)
    axes.legend(title="class", fontsize="small", title_fontsize="small", ncols=1 + len(classes) // 6)
