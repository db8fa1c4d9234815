"""At which optimizer steps something is done, and which were none."""

from __future__ import annotations

from dataclasses import dataclass

from torch.optim import Optimizer


@dataclass(frozen=True)
class Rhythm:
    """Every so many optimizer steps, between a first and a last one, all counted from 1; ``None`` never stops."""

    every_n_steps: int
    start_step: int = 1
    stop_step: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("every_n_steps", self.every_n_steps), ("start_step", self.start_step)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value!r}.")
        if self.stop_step is not None and self.stop_step < self.start_step:
            raise ValueError(f"`stop_step` must be at least `start_step` = {self.start_step}, got {self.stop_step!r}.")

    def is_due(self, num_steps: int) -> bool:
        """Whether it is done after that step."""
        is_within = self.start_step <= num_steps <= (self.stop_step or num_steps)
        return is_within and (num_steps - self.start_step) % self.every_n_steps == 0


def step_was_skipped(optimizer: Optimizer) -> bool:
    """Whether an AMP scaler made this step a no-op: fused optimizers are called all the same, with `found_inf` set."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf > 0)
