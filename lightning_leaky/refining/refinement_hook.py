"""The optimizer hook that splits and merges layers, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_leaky.functional._checks import check_positive, working_dtype
from lightning_leaky.paths.leaky_path import step_sizes_of
from lightning_leaky.refining.curvature import CurvatureRecorder
from lightning_leaky.refining.mesh import check_refinement, discretisation_errors_of, refined_step_sizes
from lightning_leaky.refining.network import find_refinable_path, optimizer_of
from lightning_leaky.utilities.optimizer_steps import Rhythm, step_was_skipped
from lightning_leaky.utilities.processes import summed, warn


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
        tolerance: Bound on the estimated error, > 0, no unit: relative to the size of the representations.
        every_n_steps: Optimizer steps between two refinements.
        start_step: First optimizer step (counted from 1) after which to refine.
        stop_step: Last one; ``None`` never stops.
        max_layers: No layer is split where there are so many.
        min_layers: No layers are merged where there are so few; at least 2.
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

    def __init__(
        self,
        model: nn.Module,
        tolerance: float,
        every_n_steps: int = 100,
        start_step: int = 100,
        stop_step: int | None = None,
        max_layers: int = 64,
        min_layers: int = 2,
        max_leak: float = 1.0,
    ) -> None:
        self.rhythm = Rhythm(every_n_steps, start_step, stop_step)
        check_refinement(tolerance, max_layers, min_layers)
        self.path = find_refinable_path(model)
        self.tolerance, self.max_leak = tolerance, check_positive("max_leak", max_leak)
        self.max_layers, self.min_layers = max_layers, max(2, min_layers)
        self.num_steps = 0
        self._recorder = CurvatureRecorder(self.path)
        self._optimizer: Optimizer | None = None
        self._handle: RemovableHandle | None = None
        self._on_change: Callable[[], None] | None = None
        self._is_automatic = True
        self._has_stepped = False
        self._warned = False

    def attach(
        self, *optimizers: Optimizer, automatic: bool = True, on_change: Callable[[], None] | None = None
    ) -> RefinementHook:
        """Follow the steps of the optimizer that trains the layers from now on.

        Args:
            optimizers: One of them trains all layers.
            automatic: Whether to refine in the optimizer's step. Otherwise call `arm` before the forward passes of a
                step and `end_step` after it; several optimizer steps between the two count as one.
            on_change: Called after layers have changed, to wrap the network in DDP anew, or make a `StepSizeHook` anew;
                the latter not where `automatic`, for in its step an optimizer lets nobody change its hooks.

        Returns:
            This hook.

        Raises:
            ValueError: If it is attached already, or there is not exactly one optimizer that trains the layers, with a
                state that can be moved.
        """
        if self.is_attached:
            raise ValueError("`optimizers` must be the only ones, but this hook is attached already; detach it first.")
        self._optimizer = optimizer_of(self.path, optimizers)
        self._on_change, self._is_automatic = on_change, automatic
        self.follow()
        self._recorder.attach()
        self._handle = self._optimizer.register_step_post_hook(self._after_step)
        if automatic:
            self.arm()
        return self

    def detach(self) -> None:
        """Remove every hook; the layers stay."""
        self._recorder.detach()
        if self._handle is not None:
            self._handle.remove()
        self._optimizer, self._handle, self._on_change = None, None, None

    @property
    def is_attached(self) -> bool:
        """Whether the hook follows an optimizer."""
        return self._handle is not None

    def state_dict(self) -> dict[str, Any]:
        """Return the counter; layers and step-sizes are the network's."""
        return {"num_steps": self.num_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counter.

        Args:
            state: As of `state_dict`.
        """
        self.num_steps = int(state["num_steps"])
        if self.is_attached and self._is_automatic:
            self.arm()

    def arm(self, anyway: bool = False) -> None:
        """Record the forward passes that come, if a refinement is due after their optimizer step.

        Args:
            anyway: Whether the errors will be read in any case.
        """
        self._has_stepped = False
        self._recorder.armed = anyway or self.rhythm.is_due(self.num_steps + 1)

    def disarm(self) -> None:
        """Record no more passes of this step; what is recorded stays."""
        self._recorder.armed = False

    def end_step(self, read: Callable[[Tensor], None] | None = None) -> None:
        """Count the step if one was taken, refine if that is due, and forget what was recorded.

        Args:
            read: Called with the estimated errors of the step, shape (L,), before layers change.
        """
        self.num_steps += int(self._has_stepped)
        refines = self._has_stepped and self.rhythm.is_due(self.num_steps)
        if refines or read is not None:
            errors = self._errors()
            if read is not None:
                read(errors)
            if refines:
                self._refine(errors)
        self.disarm()
        self.forget()

    def forget(self) -> None:
        """Forget the passes since the last step, where the next one is not of these passes (fp16 skipped theirs)."""
        self._recorder.clear()

    def follow(self) -> None:
        """Watch the layers that there are now, after somebody else has changed them (`remesh` by hand)."""
        if self._recorder.layers != list(self.path.layers):
            armed = self._recorder.armed
            self._recorder.detach()
            self._recorder = CurvatureRecorder(self.path)
            if self.is_attached:
                self._recorder.attach().armed = armed

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._has_stepped = self._has_stepped or not step_was_skipped(optimizer)
        if self._is_automatic:
            self.end_step()
            self.arm()

    def _errors(self) -> Tensor:
        """Errors over the samples of all processes; the same bits on each, so that all refine alike."""
        device = self.path.step_sizes.device  # that of the processes' backend, also where no pass has been recorded
        squares = summed(self._recorder.squares.to(device, working_dtype(device))).to("cpu", torch.float64)
        return discretisation_errors_of(squares, step_sizes_of(self.path))

    def _refine(self, errors: Tensor) -> None:
        if not bool(torch.isfinite(errors).all()):
            self._warn_once(errors)
            return
        rho, longest = step_sizes_of(self.path), self.max_leak / max(self.max_leak, self.path.effective_depth)
        new = refined_step_sizes(rho, errors, self.tolerance, self.max_layers, self.min_layers, longest)
        if not torch.equal(new, rho):
            self.path.remesh(new, self._optimizer)
            self.follow()
            if self._on_change is not None:
                self._on_change()

    def _warn_once(self, errors: Tensor) -> None:
        if not self._warned:
            self._warned = True
            warn(
                f"The estimated errors of the layers are {errors.tolist()}; layers are left as they are. A layer has "
                "diverged, its representation is zero, or none has run in training mode."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_optimizer": None, "_handle": None, "_on_change": None}
