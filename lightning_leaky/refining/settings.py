"""When and how layers are split and merged: the settings of the hook and of the callback, in one place."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_leaky.paths.leaky_path import PathChoice
from lightning_leaky.refining.mesh import check_refinement
from lightning_leaky.utilities.optimizer_steps import Rhythm


@dataclass(frozen=True)
class RefinementSettings(Rhythm):
    """When and how layers change: arguments of `RefinementHook` and of `LayerRefiner`, by the same names.

    Args:
        tolerance: Bound on the estimated error, > 0, no unit: relative to the size of the representations.
        every_n_steps: Optimizer steps between two refinements.
        start_step: First optimizer step (counted from 1) after which to refine.
        stop_step: Last one; ``None`` never stops. The weights want some training on a mesh that stays.
        max_layers: No layer is split where there are so many.
        min_layers: No layers are merged where there are so few; at least 2.
        path: Which path of several, by its name, as ``"student"``, or a glob, see `lightning_leaky.find_leaky_path`.
            ``None`` takes the one that is trained.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> RefinementSettings(0.3, every_n_steps=10, start_step=5).is_due(15)
        True
    """

    tolerance: float
    every_n_steps: int = 100
    start_step: int = 100
    stop_step: int | None = None
    max_layers: int = 64
    min_layers: int = 2
    path: PathChoice | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_refinement(self.tolerance, self.max_layers, self.min_layers)
