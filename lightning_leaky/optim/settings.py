"""Settings of adapting step-sizes."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_leaky.functional._checks import check_positive
from lightning_leaky.functional.step_size_rules import StepSizeRule, resolve_rule
from lightning_leaky.paths.leaky_path import PathChoice
from lightning_leaky.reading.layout import GIVEN, Layout, PaddingMask, check_layout
from lightning_leaky.utilities.optimizer_steps import Rhythm


@dataclass(frozen=True)
class AdaptationSettings(Rhythm):
    """Arguments of `StepSizeHook` and `StepSizeAdapter`.

    Args:
        every_n_steps: Optimizer steps between two adaptations.
        damping: How far each adaptation goes, in (0, 1]; 1 is the paper's rule.
        start_step: First optimizer step (counted from 1) after which to adapt.
        stop_step: Last one; ``None`` never stops.
        max_leak: Upper bound of ρ_l L̃, 1 in the paper; ``None`` for no bound.
        rule: How fast a layer changes: ``"relative_distance"`` (the paper's), ``"switches"``, ``"relative_speed"``, or
            your own, see `lightning_leaky.functional.StepSizeRule`.
        move_weights: Whether each layer takes W(p), and the optimizer's state, of its new place p. [ours]
        scale_gradients: Whether to divide the gradient of layer l by L ρ_l, so that SGD steps are per unit of p. [ours]
        layout: How the axes of a representation become samples and neurons, as of `ReadingSettings`.
        padding_mask: What tells real positions, as of `ReadingSettings`; ``None`` reads padding too.
        path: Name or glob of one of several paths, see `lightning_leaky.find_leaky_path`; the trained one by default.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> settings = AdaptationSettings(every_n_steps=3, start_step=2)
        >>> [step for step in range(1, 10) if settings.is_due(step)]
        [2, 5, 8]
    """

    every_n_steps: int = 10
    damping: float = 0.1
    start_step: int = 1
    stop_step: int | None = None
    max_leak: float | None = 1.0
    rule: str | StepSizeRule = "relative_distance"
    move_weights: bool = False
    scale_gradients: bool = False
    layout: Layout | None = None
    padding_mask: PaddingMask = GIVEN
    path: PathChoice | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        resolve_rule(self.rule)
        if not 0 < self.damping <= 1:
            raise ValueError(f"`damping` must be in (0, 1], got {self.damping!r}.")
        if self.max_leak is not None:
            check_positive("max_leak", self.max_leak)
        check_layout(self.layout, self.padding_mask)
