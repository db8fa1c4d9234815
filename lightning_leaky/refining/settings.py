"""When and how layers are split and merged."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_leaky.paths.leaky_path import PathChoice
from lightning_leaky.refining.mesh import check_refinement
from lightning_leaky.utilities.optimizer_steps import Rhythm


@dataclass(frozen=True)
class RefinementSettings(Rhythm):
    """When and how layers change: arguments of `RefinementHook` and `LayerRefiner`.

    Args:
        tolerance: Bound on the estimated relative error, > 0, no unit.
        every_n_steps: Optimizer steps between two refinements.
        start_step: First optimizer step (counted from 1) after which to refine.
        stop_step: Last one; ``None`` never stops. Weights need some training on a fixed mesh.
        max_layers: Splitting stops at this number of layers.
        min_layers: Merging stops at this number of layers; at least 2.
        path: Name of the path, as ``"student"``, or a glob; see `find_leaky_path`. ``None`` takes the trained one.

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
