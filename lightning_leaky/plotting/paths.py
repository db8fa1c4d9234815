"""The way of samples through the layers, in a plane."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_leaky.plotting.style import CLASS_COLOURS, COLOURS, SEQUENTIAL, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKED_LAYERS = 30


def plot_paths(points: Tensor, labels: Tensor | None = None, title: str = "") -> Figure:
    """Draw the path of each sample through the layers, as in Fig. 2c of arXiv 2405.17573.

    A dot is a layer, a black one the last: where dots lie close the network moves little.

    Args:
        points: Two coordinates of A_0, …, A_L, shape (L + 1, N, 2), see
            `lightning_leaky.functional.path_projection`.
        labels: What to colour samples by, shape (N,): up to ten classes as whole numbers, or any other numbers; one
            colour where it is ``None``.
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
    axes = figure.add_subplot()
    places = points.detach().to("cpu", torch.float64).numpy()
    for index, colour in enumerate(_colours(figure, axes, labels, places.shape[1])):
        axes.plot(*places[:, index].T, color=colour, linewidth=0.6, alpha=0.6)
        if len(places) <= _MARKED_LAYERS:
            axes.plot(*places[:, index].T, ".", color=colour, markersize=2.5)
    axes.plot(*places[-1].T, "k.", markersize=4)
    axes.set(xlabel="first direction of the path", ylabel="second direction", title=title)
    return figure


def _colours(figure: Figure, axes: Axes, labels: Tensor | None, num_samples: int) -> list[object]:
    """A colour for each sample, with a legend of classes or a bar of targets."""
    if labels is None:
        return [COLOURS[0]] * num_samples
    classes = sorted(set(labels.tolist())) if not labels.is_floating_point() else []
    if 0 < len(classes) <= len(CLASS_COLOURS):
        for name, colour in zip(classes, CLASS_COLOURS, strict=False):
            axes.plot([], [], color=colour, label=str(int(name)), linewidth=3)
        axes.legend(title="class", fontsize="small", title_fontsize="small", ncols=1 + len(classes) // 6)
        return [CLASS_COLOURS[classes.index(label)] for label in labels.tolist()]
    from matplotlib.cm import ScalarMappable

    colour_of = ScalarMappable(cmap=SEQUENTIAL)
    numbers = labels.detach().to("cpu", torch.float64)
    colour_of.set_array(numbers.numpy())
    colour_of.autoscale()
    figure.colorbar(colour_of, ax=axes, label="class" if not labels.is_floating_point() else "target")
    return list(colour_of.to_rgba(numbers.numpy()))
