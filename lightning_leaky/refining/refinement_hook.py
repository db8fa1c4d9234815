"""The optimizer hook that splits and merges layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_leaky.functional._checks import check_positive, working_dtype
from lightning_leaky.paths.leaky_path import PathChoice, step_sizes_of
from lightning_leaky.refining.curvature import CurvatureRecorder
from lightning_leaky.refining.mesh import check_refinement, discretisation_errors_of, refined_step_sizes
from lightning_leaky.refining.network import find_refinable_path, optimizer_of
from lightning_leaky.refining.sharded import Shard, are_sharded, check_shard, remesh_sharded
from lightning_leaky.utilities.arguments import takes_first
from lightning_leaky.utilities.harmless import harmless, warn_once
from lightning_leaky.utilities.optimizer_steps import OptimizerSteps, Rhythm, heard_optimizer, step_was_skipped
from lightning_leaky.utilities.processes import summed

_TASK = "Refining the layers"


@dataclass(frozen=True)
class RefinementSettings(Rhythm):
    """When and how layers change: arguments of `RefinementHook` and `LayerRefiner`.

    Args:
        tolerance: Bound on the estimated relative error, > 0, no unit.
        every_n_steps: Optimizer steps between two refinements.
        start_step: First optimizer step (counted from 1) after which to refine.
        stop_step: Last one; ``None`` never stops.
        max_layers: Splitting stops at this number of layers.
        min_layers: Merging stops at this number of layers; at least 2.
        path: Name or glob of one of several paths, see `find_leaky_path`; the trained one by default.

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


@dataclass(frozen=True, kw_only=True)
class _Arguments(RefinementSettings):
    max_leak: float = 1.0


class RefinementHook:
    """Splits and merges the layers of a network after optimizer steps: give a tolerance, not a depth [ours].

    Every `every_n_steps` optimizer steps it estimates the error of each Euler step from all forward passes in training
    mode since the last step, over all micro-batches and processes. Then it changes the mesh by `refined_step_sizes`.
    Weights are functions of p; the optimizer's state moves with them. If an error is not finite, no layer changes, with
    one warning. Load the network's state before you build the optimizer.

    Args:
        model: A `LeakyResNet`, a module with its interface, or a module that contains one.
        **settings: Arguments of `RefinementSettings`.
        max_leak: Largest ρ_l L̃ of a merged layer, as of a `StepSizeHook` on the same path.

    Raises:
        ValueError: If a number is out of range, or the model has no `LeakyResNet`, only one layer, or is compiled.

    Example:
        >>> from lightning_leaky import LeakyResNet
        >>> network = LeakyResNet(2, 2, width=4, num_layers=3, effective_depth=1.0)
        >>> optimizer = torch.optim.Adam(network.parameters())
        >>> hook = RefinementHook(network, tolerance=1e-3, every_n_steps=1, start_step=1).attach(optimizer)
        >>> network(torch.ones(5, 2)).sum().backward()
        >>> _ = optimizer.step()
        >>> len(network.layers)
        6
    """

    @takes_first(nn.Module, _Arguments)
    def __init__(self, model: nn.Module, *values: Any, max_leak: float = 1.0, **settings: Any) -> None:
        self.settings = RefinementSettings(*values, **settings)
        self.path = find_refinable_path(model, self.settings.path)
        self.max_leak = check_positive("max_leak", max_leak)
        self.num_steps = 0
        self.said: set[str] = set()
        self._recorder = CurvatureRecorder(self.path)
        self._steps: OptimizerSteps | None = None
        self._on_change: Callable[[], None] | None = None
        self._shard: Shard | None = None
        self._is_automatic, self._has_stepped = True, False

    def attach(
        self,
        *optimizers: Optimizer,
        automatic: bool = True,
        on_change: Callable[[], None] | None = None,
        shard: Shard | None = None,
    ) -> RefinementHook:
        """Follow the steps of the optimizer that trains the layers.

        Args:
            optimizers: One of them trains all layers; of a wrapper (SAM, Lookahead, ``accelerate.prepare``) the inner
                one's steps count.
            automatic: Whether to refine in the optimizer's step. If not, call `arm` before a step's forward passes and
                `end_step` after it; optimizer steps in between count as one.
            on_change: Called after layers have changed, to wrap the network in DDP or, if not `automatic`, make a
                `StepSizeHook` again.
            shard: If `fully_shard` has wrapped each layer: what wraps a new one, with the same settings, in place.

        Returns:
            This hook.

        Raises:
            ValueError: If it is attached already, not exactly one optimizer trains the layers, its state cannot move,
                its `step` calls no hooks, or `shard` does not fit the layers.
        """
        if self.is_attached:
            raise ValueError("`optimizers` must be the only ones, but this hook is attached already; detach it first.")
        optimizer = optimizer_of(self.path, [*map(heard_optimizer, optimizers)])
        check_shard([*self.path.layers], shard)
        self._on_change, self._is_automatic, self._shard = on_change, automatic, shard
        self.said.clear()
        self._steps = OptimizerSteps(optimizer, self._after_step, self.said)
        self.follow()
        self._recorder.attach().on_pass = self._steps.count_pass
        if automatic:
            self.arm()
        return self

    def detach(self) -> None:
        """Remove every hook; the layers stay."""
        self._recorder.detach()
        if self._steps is not None:
            self._steps.remove()
        self._steps, self._on_change, self._shard = None, None, None

    @property
    def is_attached(self) -> bool:
        """Whether the hook follows an optimizer."""
        return self._steps is not None

    def state_dict(self) -> dict[str, Any]:
        """Return the counter; layers and step-sizes are in the network's."""
        return {"num_steps": self.num_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counter."""
        self.num_steps = int(state["num_steps"])
        if self.is_attached and self._is_automatic:
            self.arm()

    def arm(self, anyway: bool = False) -> None:
        """Record the next forward passes if a refinement is due after their optimizer step.

        Args:
            anyway: Whether to record in any case.
        """
        self._has_stepped = False
        self._recorder.armed = anyway or self.settings.is_due(self.num_steps + 1)

    def disarm(self) -> None:
        """Stop recording if this step has had a pass."""
        if self._steps is not None and self._steps.num_passes:
            self._recorder.armed = False

    def end_step(self, read: Callable[[Tensor], None] | None = None) -> None:
        """Count the step if one was taken, refine if due, and forget the passes.

        Args:
            read: Called with the estimated errors, shape (L,), before layers change.
        """
        self.num_steps += self._has_stepped
        refines = self._has_stepped and self.settings.is_due(self.num_steps)
        if refines or read is not None:
            errors = self._errors()
            if read is not None:
                read(errors)
            if refines and self._refine(errors) and self._on_change is not None:
                self._on_change()
        self._recorder.armed = False
        self.forget()

    def forget(self) -> None:
        """Forget the passes since the last step."""
        with harmless(_TASK, self.said):
            self._recorder.clear()

    def follow(self) -> None:
        """Watch the current layers, after a `remesh` by hand."""
        if self._recorder.layers != list(self.path.layers):
            armed, on_pass = self._recorder.armed, self._recorder.on_pass
            self._recorder.detach()
            self._recorder = CurvatureRecorder(self.path)
            if self.is_attached:
                self._recorder.attach().armed, self._recorder.on_pass = armed, on_pass

    def _after_step(self, optimizer: Optimizer) -> None:
        self._has_stepped = self._has_stepped or not step_was_skipped(optimizer)
        if self._is_automatic:
            self.end_step()
            self.arm()

    def _errors(self) -> Tensor:
        """Errors over all processes, bit-identical on each; NaN on failure."""
        device = self.path.step_sizes.device  # which the backend needs
        squares = torch.full((2, len(self.path.layers)), torch.nan, dtype=working_dtype(device), device=device)
        errors = torch.full_like(squares[0], torch.nan, dtype=torch.float64, device="cpu")
        with harmless(_TASK, self.said, is_own=True):  # a failure must not skip the collective
            squares.copy_(self._recorder.squares)
            squares[:, list(self._recorder.complaints())] = torch.nan
        with harmless(_TASK, self.said):
            errors.copy_(discretisation_errors_of(summed(squares).to(errors), step_sizes_of(self.path)))
        return errors

    def _refine(self, errors: Tensor) -> bool:
        told, has_changed = self.settings, False
        with harmless(_TASK, self.said):
            if not errors.isfinite().all():
                usual = "A layer has diverged, its representation is zero, or none has run in training mode."
                found = self._recorder.complaints().items()
                reason = next((f"Layer {index + 1} {why}." for index, why in found), usual)
                message = f"The layers are left as they are: their estimated errors are {errors.tolist()}. {reason}"
                warn_once(message, reason, self.said)
                return False
            rho, longest = step_sizes_of(self.path), self.max_leak / max(self.max_leak, self.path.effective_depth)
            new = refined_step_sizes(rho, errors, told.tolerance, told.max_layers, max(2, told.min_layers), longest)
            if not torch.equal(new, rho):
                self._remesh(new)
                has_changed = True
                self.follow()
        return has_changed

    def _remesh(self, step_sizes: Tensor) -> None:
        optimizer = None if self._steps is None else self._steps.optimizer
        if self._shard is not None and are_sharded(self.path.layers):
            remesh_sharded(self.path, step_sizes, optimizer, self._shard, self._recorder.mesh_between)
        else:
            self.path.remesh(step_sizes, optimizer)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_steps": None, "_on_change": None, "_shard": None}
