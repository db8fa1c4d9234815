"""Paths of samples in a plane."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_leaky.plotting.style import CLASS_COLOURS, COLOURS, SEQUENTIAL, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import Collection, LineCollection
    from matplotlib.figure import Figure

_MARKED_LAYERS = 30


def plot_paths(points: Tensor, labels: Tensor | None = None, title: str = "") -> Figure:
    """Draw the path of each sample through the layers, as in Fig. 2c of arXiv 2405.17573.

    A dot is a layer, a black one the last. If dots lie close, the network moves little.

    Args:
        points: Two coordinates of A_0, …, A_L, shape (L + 1, N, 2); see `lightning_leaky.functional.path_projection`.
        labels: Colours of samples, shape (N,): classes as integers, from 0 to 9 in fixed colours, or targets; ``None``
            for one colour.
        title: Title of the figure.

    Raises:
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
    lines = LineCollection(list(places.transpose(0, 1).numpy()), linewidths=0.5)
    axes.add_collection(lines)
    _colour(lines, labels)
    if len(places) <= _MARKED_LAYERS:
        x, y = places.flatten(0, 1).mT.numpy()
        _colour(axes.scatter(x, y, s=3), labels, times=len(places))
    axes.plot(*places[-1].mT.numpy(), "k.", markersize=4)
    axes.autoscale_view()
    axes.set(xlabel="first direction of the path", ylabel="second direction", title=title)
    if labels is not None:
        _explain(figure, axes, lines, labels)
    return figure


def _colour(drawn: Collection, labels: Tensor | None, times: int = 1) -> None:
    """Colour samples by class, the same in every picture, or on a scale."""
    if labels is None:
        drawn.set_color(COLOURS[0])
    elif _are_few_classes(labels):
        drawn.set_color([CLASS_COLOURS[name] for name in labels.tolist()] * times)
    else:
        numbers = labels.detach().to("cpu", torch.float64)
        finite = numbers[torch.isfinite(numbers)]
        most = float(finite.abs().max()) if finite.numel() else 1.0
        drawn.set_array(numbers.repeat(times).numpy())
        drawn.set_cmap(SEQUENTIAL)
        drawn.set_clim(-most if labels.is_floating_point() else min(0.0, float(finite.min())), most)


def _are_few_classes(labels: Tensor) -> bool:
    return not labels.is_floating_point() and set(labels.tolist()) <= set(range(len(CLASS_COLOURS)))


def _explain(figure: Figure, axes: Axes, lines: LineCollection, labels: Tensor) -> None:
    if not _are_few_classes(labels):
        figure.colorbar(lines, ax=axes, label="target" if labels.is_floating_point() else "class")
        return
    classes = sorted(set(labels.tolist()))
    for name in classes:
        axes.plot([], [], color=CLASS_COLOURS[name], label=str(name), linewidth=3)
    axes.legend(title="class", fontsize="small", title_fontsize="small", ncols=1 + len(classes) // 6)
