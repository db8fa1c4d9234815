"""The optimizer hook that splits and merges layers, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_leaky.functional._checks import check_positive, working_dtype
from lightning_leaky.paths.leaky_path import step_sizes_of
from lightning_leaky.refining.curvature import CurvatureRecorder
from lightning_leaky.refining.mesh import discretisation_errors_of, refined_step_sizes
from lightning_leaky.refining.network import find_refinable_path, optimizer_of
from lightning_leaky.refining.settings import RefinementSettings
from lightning_leaky.utilities.arguments import takes_first
from lightning_leaky.utilities.harmless import harmless, warn_once
from lightning_leaky.utilities.optimizer_steps import OptimizerSteps, heard_optimizer, step_was_skipped
from lightning_leaky.utilities.processes import summed

_TASK = "Refining the layers"


@dataclass(frozen=True, kw_only=True)
class _Arguments(RefinementSettings):
    """What type checkers know of the hook's arguments."""

    max_leak: float = 1.0


class RefinementHook:
    """Splits and merges the layers of a network after optimizer steps: give a tolerance, not a depth [ours].

    Every `every_n_steps` optimizer steps it estimates the error of each Euler step, from every forward pass in training
    mode since the last optimizer step (all micro-batches and, under torch.distributed, all processes), and changes the
    mesh as `lightning_leaky.refining.refined_step_sizes` says. Weights are read as functions of p, and the optimizer's
    state moves along. Layers that stay keep their parameters. If an error is not finite the layers stay as they are,
    with one warning.

    Layers and step-sizes are in the state of the network: load it before you build the optimizer.

    Args:
        model: A `LeakyResNet` (or whatever offers the same), or a module that contains one.
        **settings: When and how to refine: every argument of `lightning_leaky.refining.RefinementSettings`.
        max_leak: No layers are merged into one with a larger ρ_l L̃. Give that of a `StepSizeHook` beside, if it is
            below 1.

    Raises:
        ValueError: If a number is out of range, or the model has no layers that can change: it is no `LeakyResNet`, has
            but one layer, or is compiled.

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
        self._is_automatic, self._has_stepped = True, False

    def attach(
        self, *optimizers: Optimizer, automatic: bool = True, on_change: Callable[[], None] | None = None
    ) -> RefinementHook:
        """Follow the steps of the optimizer that trains the layers from now on.

        Args:
            optimizers: One of them trains all layers. If it holds another, as SAM, Lookahead and what
                ``accelerate.prepare`` returns do, the inner one's steps count.
            automatic: Whether to refine in the optimizer's step. Otherwise call `arm` before the forward passes of a
                step and `end_step` after it; several optimizer steps between the two count as one.
            on_change: Called after layers have changed, to wrap the network in DDP anew, or make a `StepSizeHook` anew;
                the latter not where `automatic`, for in its step an optimizer lets nobody change its hooks.

        Returns:
            This hook.

        Raises:
            ValueError: If it is attached already, or there is not exactly one optimizer that trains the layers, with a
                state that can be moved and a `step` that calls hooks.
        """
        if self.is_attached:
            raise ValueError("`optimizers` must be the only ones, but this hook is attached already; detach it first.")
        optimizer = optimizer_of(self.path, [heard_optimizer(optimizer) for optimizer in optimizers])
        self._on_change, self._is_automatic = on_change, automatic
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
        self._steps, self._on_change = None, None

    @property
    def is_attached(self) -> bool:
        """Whether the hook follows an optimizer."""
        return self._steps is not None

    def state_dict(self) -> dict[str, Any]:
        """Return the counter; layers and step-sizes are the network's."""
        return {"num_steps": self.num_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counter from what `state_dict` has returned."""
        self.num_steps = int(state["num_steps"])
        if self.is_attached and self._is_automatic:
            self.arm()

    def arm(self, anyway: bool = False) -> None:
        """Record the forward passes that come, if a refinement is due after their optimizer step.

        Args:
            anyway: Whether the errors will be read in any case.
        """
        self._has_stepped = False
        self._recorder.armed = anyway or self.settings.is_due(self.num_steps + 1)

    def disarm(self) -> None:
        """Record no more passes of this step, where there has been one; what is recorded stays."""
        if self._steps is not None and self._steps.num_passes:
            self._recorder.armed = False

    def end_step(self, read: Callable[[Tensor], None] | None = None) -> None:
        """Count the step if one was taken, refine if that is due, and forget what was recorded.

        Args:
            read: Called with the estimated errors of the step, shape (L,), before layers change.
        """
        self.num_steps += int(self._has_stepped)
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
        """Forget the passes since the last step, where the next one is not of these passes (fp16 skipped theirs)."""
        with harmless(_TASK, self.said):
            self._recorder.clear()

    def follow(self) -> None:
        """Watch the layers that there are now, after somebody else has changed them (`remesh` by hand)."""
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
        """Errors over the samples of all processes, the same bits on each: all refine alike. NaN where it fails."""
        device = self.path.step_sizes.device  # that of the processes' backend, also where no pass has been recorded
        squares = torch.full((2, len(self.path.layers)), torch.nan, dtype=working_dtype(device), device=device)
        errors = torch.full_like(squares[0], torch.nan, dtype=torch.float64, device="cpu")
        with harmless(_TASK, self.said, is_own=True):  # the other processes wait for what it joins
            squares.copy_(self._recorder.squares)
            squares[:, list(self._recorder.complaints())] = torch.nan
        with harmless(_TASK, self.said):
            errors.copy_(discretisation_errors_of(summed(squares).to(errors), step_sizes_of(self.path)))
        return errors

    def _refine(self, errors: Tensor) -> bool:
        """Change the layers where the errors ask for it, and say whether they have changed."""
        told, has_changed = self.settings, False
        with harmless(_TASK, self.said):
            if not bool(torch.isfinite(errors).all()):
                self._complain(errors)
                return False
            rho, longest = step_sizes_of(self.path), self.max_leak / max(self.max_leak, self.path.effective_depth)
            new = refined_step_sizes(rho, errors, told.tolerance, told.max_layers, max(2, told.min_layers), longest)
            if not torch.equal(new, rho):
                self.path.remesh(new, None if self._steps is None else self._steps.optimizer)
                has_changed = True
                self.follow()
        return has_changed

    def _complain(self, errors: Tensor) -> None:
        usual = "A layer has diverged, its representation is zero, or none has run in training mode."
        reason = next((f"Layer {index + 1} {why}." for index, why in self._recorder.complaints().items()), usual)
        message = f"The layers are left as they are: their estimated errors are {errors.tolist()}. {reason}"
        warn_once(message, reason, self.said)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_steps": None, "_on_change": None}
