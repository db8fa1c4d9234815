"""The optimizer hook that adapts layer step-sizes, in plain PyTorch."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_leaky.capture import DistanceRecorder
from lightning_leaky.functional._checks import check_positive
from lightning_leaky.functional.step_sizes import (
    adaptive_step_sizes,
    cap_step_sizes,
    distances_are_usable,
    relative_distances_of,
)
from lightning_leaky.leaky_path import find_leaky_path, step_sizes_of
from lightning_leaky.processes import num_processes, summed


class StepSizeHook:
    """Adapts the layer step-sizes of a network after optimizer steps (arXiv 2405.17573, section 4).

    The paper's rule ``ρ_l ← c_l⁻¹ / Σ_i c_i⁻¹`` with ``c_l = ‖A_l − A_{l−1}‖_F / (ρ_l ‖A_l‖_F)``, so that in the end
    all layers move by the same relative distance. Distances are those of every forward pass in training mode since the
    last optimizer step: all micro-batches and, under torch.distributed, all processes. Damping, bound and guard are
    ours.

    The step-sizes change in place, after an optimizer step and never between forward and backward. A float64 master
    keeps their sum at 1. If a distance is zero or not finite they stay as they are, with one warning.

    Args:
        model: A network with step-sizes (`LeakyResNet`, or whatever offers the same), or a module that contains one.
        every_n_steps: Optimizer steps between two adaptations.
        damping: How far each adaptation goes, in (0, 1]; 1 is the paper's undamped rule.
        start_step: First optimizer step (counted from 1) after which to adapt.
        stop_step: Last one; ``None`` never stops.
        max_leak: Upper bound of ρ_l L̃; 1 keeps (1 − ρ_l L̃) ≥ 0 as in the paper. ``None`` for no bound.

    Raises:
        ValueError: If the model has no step-sizes, a number is out of range, or L̃/L exceeds `max_leak`, so that no
            step-sizes can keep the bound.

    Example:
        >>> from lightning_leaky import LeakyResNet
        >>> network = LeakyResNet(2, 2, width=4, num_layers=3, effective_depth=1.0)
        >>> optimizer = torch.optim.Adam(network.parameters())
        >>> hook = StepSizeHook(network, every_n_steps=1)
        >>> handle = hook.attach(optimizer)
        >>> network(torch.ones(5, 2)).sum().backward()
        >>> before = network.step_sizes.clone()
        >>> _ = optimizer.step()
        >>> bool((network.step_sizes != before).any())
        True
    """

    def __init__(
        self,
        model: nn.Module,
        every_n_steps: int = 10,
        damping: float = 0.1,
        start_step: int = 1,
        stop_step: int | None = None,
        max_leak: float | None = 1.0,
    ) -> None:
        self.path = find_leaky_path(model)
        self.every_n_steps, self.damping, self.max_leak = every_n_steps, damping, max_leak
        self.start_step, self.stop_step = start_step, stop_step
        check_settings(every_n_steps, damping, start_step, stop_step, max_leak)
        self._maximum = _maximum_step_size(max_leak, self.path.effective_depth, len(self.path.layers))
        self.num_steps = 0
        self._master = step_sizes_of(self.path)
        self._recorder = DistanceRecorder(list(self.path.layers))
        self._handle: RemovableHandle | None = None
        self._warned = False

    def attach(self, optimizer: Optimizer) -> StepSizeHook:
        """Follow an optimizer's steps from now on.

        Args:
            optimizer: The optimizer that trains the network.

        Returns:
            This hook.

        Raises:
            ValueError: If it follows an optimizer already.
        """
        if self._handle is not None:
            raise ValueError("`optimizer` must be the only one, but this hook is attached already; detach it first.")
        self._recorder.attach()
        self._recorder.armed = self._is_due(self.num_steps + 1)
        self._handle = optimizer.register_step_post_hook(self._after_step)
        return self

    def detach(self) -> None:
        """Remove every hook; the step-sizes stay."""
        self._recorder.detach()
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    @property
    def is_attached(self) -> bool:
        """Whether the hook follows an optimizer."""
        return self._handle is not None

    def state_dict(self) -> dict[str, Any]:
        """Counter, master step-sizes and the distances summed so far: with them a resumed run equals the other."""
        return {
            "num_steps": self.num_steps,
            "step_sizes": self._master.clone(),
            "squares": self._recorder.squares.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; the network's own buffer comes with the network's state.

        Args:
            state: As of `state_dict`.

        Raises:
            ValueError: If it is of a network with another number of layers.
        """
        if len(state["step_sizes"]) != len(self._master):
            raise ValueError(
                f"`state` must hold {len(self._master)} step-sizes, got {len(state['step_sizes'])}; "
                "it was saved with another number of layers."
            )
        self.num_steps = int(state["num_steps"])
        self._master = state["step_sizes"].to("cpu", torch.float64).clone()
        with torch.no_grad():  # FSDP1's sharded checkpoints may leave out those of a model that was equidistant
            self.path.step_sizes.copy_(self._master)
        self._recorder.clear()
        if num_processes() == 1:  # of several, each would take the distances of the one that has saved its own
            self._recorder.squares = state["squares"].clone()
        self._recorder.armed = self.is_attached and self._is_due(self.num_steps + 1)

    def forget(self) -> None:
        """Forget the distances since the last step, where the next one is not of these passes (fp16 skipped theirs)."""
        self._recorder.clear()

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not _step_was_skipped(optimizer):
            self.num_steps += 1
            if self._is_due(self.num_steps):
                self._adapt()
        self._recorder.clear()
        self._recorder.armed = self._is_due(self.num_steps + 1)

    def _is_due(self, num_steps: int) -> bool:
        after_start = num_steps - self.start_step
        before_stop = self.stop_step is None or num_steps <= self.stop_step
        return before_stop and after_start >= 0 and after_start % self.every_n_steps == 0

    @torch.no_grad()
    def _adapt(self) -> None:
        self._follow_buffer()
        complaints = self._recorder.complaints()
        # On the network's device even where no batch has come by: a process without data joins the sum all the same.
        squares = self._recorder.squares.to(self.path.step_sizes.device)
        squares[:, list(complaints)] = torch.nan  # whoever complains, all processes leave their step-sizes as they are
        squares = summed(squares).to("cpu", torch.float64)
        distances = relative_distances_of(squares, self._master)
        if not distances_are_usable(distances):
            self._warn_once(squares, distances, complaints)
            return
        self._recorder.stop_checking()
        self._master = adaptive_step_sizes(self._master, distances, self.damping)
        if self._maximum is not None:
            self._master = cap_step_sizes(self._master, self._maximum)
        self.path.step_sizes.copy_(self._master)

    def _follow_buffer(self) -> None:
        """Start from the buffer where somebody else has changed it (a checkpoint, the user)."""
        if not torch.equal(self.path.step_sizes.cpu(), self._master.to(self.path.step_sizes.dtype)):
            self._master = step_sizes_of(self.path)

    def _warn_once(self, squares: Tensor, distances: Tensor, complaints: dict[int, str]) -> None:
        if self._warned:
            return
        self._warned = True
        if complaints:
            reason = "".join(f"Layer {index + 1} {complaint}." for index, complaint in complaints.items())
        elif squares.any():
            reason = "Look for layers that do nothing, have diverged, or overwrite their input on another process."
        else:
            reason = (
                "Only passes in training mode count: models are in evaluation mode after `from_pretrained`, and want "
                "model.train()."
            )
        reason = (
            f"The relative distances of the layers are {distances.tolist()}, and the adaptive rule wants them positive "
            f"and finite. {reason}"
        )
        warnings.warn(f"Step-sizes left as they are. {reason}", stacklevel=2)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}


def _step_was_skipped(optimizer: Optimizer) -> bool:
    """Whether an AMP scaler made this step a no-op: fused optimizers are called all the same, with `found_inf` set."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf > 0)


def check_settings(
    every_n_steps: int, damping: float, start_step: int, stop_step: int | None, max_leak: float | None
) -> None:
    """Raise ValueError where a setting is out of range, whatever the model."""
    for name, value in (("every_n_steps", every_n_steps), ("start_step", start_step)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value!r}.")
    if not 0 < damping <= 1:
        raise ValueError(f"`damping` must be in (0, 1], got {damping!r}; 1 is the paper's undamped rule.")
    if stop_step is not None and stop_step < start_step:
        raise ValueError(f"`stop_step` must be at least `start_step` = {start_step}, got {stop_step!r}.")
    if max_leak is not None:
        check_positive("max_leak", max_leak)


def _maximum_step_size(max_leak: float | None, effective_depth: float, num_layers: int) -> float | None:
    if max_leak is None or effective_depth == 0:
        return None
    if max_leak * num_layers < effective_depth * (1 - 1e-9):
        raise ValueError(
            f"`max_leak` must be at least L̃/L = {effective_depth / num_layers:.4g} for {num_layers} layers, got "
            f"{max_leak!r}: step-sizes sum to 1. Raise it, pass None for no bound, or take more layers."
        )
    return max_leak / effective_depth
