"""The optimizer hook that adapts step-sizes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_leaky.functional._checks import working_dtype
from lightning_leaky.functional.step_sizes import adaptive_step_sizes, cap_step_sizes, distances_are_usable
from lightning_leaky.hooks.layer_hooks import unreadable
from lightning_leaky.optim.settings import AdaptationSettings
from lightning_leaky.optim.sum_recorder import SumRecorder
from lightning_leaky.paths.leaky_path import find_leaky_path, step_sizes_of
from lightning_leaky.utilities.arguments import takes_first
from lightning_leaky.utilities.harmless import harmless, warn_once
from lightning_leaky.utilities.optimizer_steps import OptimizerSteps, heard_optimizer, held_parameters, step_was_skipped
from lightning_leaky.utilities.processes import first_of, is_flattened, is_sharded, num_processes, summed

_MOST_DIMENSIONS = 4  # of a rule's sums
_TASK = "Adapting the step-sizes"


class StepSizeHook:
    """Adapts the layer step-sizes of a network after optimizer steps (arXiv 2405.17573, section 4).

    ``ρ_l ← c_l⁻¹ / Σ_i c_i⁻¹``. With the paper's rule, ``c_l = ‖A_l − A_{l−1}‖_F / (ρ_l ‖A_l‖_F)``, all layers move by
    the same relative distance in the end. Distances cover all forward passes in training mode since the last optimizer
    step, of all micro-batches and processes. Damping, bound and the other rules are ours.

    The step-sizes change in place. If a distance is zero or not finite, they stay as they are, with one warning.

    Every token or pixel by `layout` is a sample. Padding is not: layers get its mask by keyword, or a loop calls `see`.

    Args:
        model: A network with step-sizes (a `LeakyResNet` or any `LeakyPath`), or a module that contains one.
        **settings: Arguments of `lightning_leaky.optim.AdaptationSettings`.

    Raises:
        ValueError: If the model has no step-sizes, a number is out of range, or L̃/L exceeds `max_leak`.

    Example:
        >>> from lightning_leaky import LeakyResNet
        >>> network = LeakyResNet(2, 2, width=4, num_layers=3, effective_depth=1.0)
        >>> optimizer = torch.optim.Adam(network.parameters())
        >>> hook = StepSizeHook(network, every_n_steps=1).attach(optimizer)
        >>> network(torch.ones(5, 2)).sum().backward()
        >>> optimizer.step()
        >>> bool((network.step_sizes != 1 / 3).any())
        True
    """

    @takes_first(nn.Module, AdaptationSettings)
    def __init__(self, model: nn.Module, *values: Any, **settings: Any) -> None:
        self.settings = AdaptationSettings(*values, **settings)
        self.path = find_leaky_path(model, self.settings.path)
        layers, state = list(self.path.layers), getattr(self.path, "state", None)
        self._maximum = _maximum_step_size(self.settings.max_leak, self.path.effective_depth, len(layers))
        self.num_steps = 0
        self._master = step_sizes_of(self.path)
        self._recorder = SumRecorder(layers, self.settings, self.path.step_sizes.device, model, state)
        self.said: set[str] = set()
        self._model: nn.Module | None = model
        self._steps: OptimizerSteps | None = None
        self._handles: list[RemovableHandle] = []
        self._shape: list[int] | None = None

    def attach(self, optimizer: Optimizer, automatic: bool = True) -> StepSizeHook:
        """Follow an optimizer's steps.

        Args:
            optimizer: The network's optimizer, or a wrapper (SAM, Lookahead, ``accelerate.prepare``): the inner one's
                steps count.
            automatic: Whether to adapt after the optimizer's steps; otherwise you call `end_step`.

        Returns:
            This hook.

        Raises:
            ValueError: If it is attached already, the optimizer calls no hooks or trains another path, or the layers
                cannot move weights or scale gradients.
        """
        if self.is_attached:
            raise ValueError("`optimizer` must be the only one, but this hook is attached already; detach it first.")
        optimizer = heard_optimizer(optimizer)
        held = held_parameters(optimizer)
        if self._model is not None and find_leaky_path(self._model, self.settings.path, held) is not self.path:
            raise ValueError(
                f"`optimizer` must train the layers whose step-sizes are adapted, but this {type(optimizer).__name__} "
                "trains another path; give another optimizer or `path`."
            )
        if self.settings.move_weights:  # nowhere, to raise errors early
            self._move_weights(self._master, optimizer)
        if self.settings.scale_gradients:
            self._handles += self._gradient_hooks()
        self.said.clear()
        self._steps = OptimizerSteps(optimizer, self._after_step, self.said, automatic)
        self._recorder.attach().on_pass = self._steps.count_pass
        self._arm()
        return self

    def detach(self) -> None:
        """Remove all hooks; the step-sizes stay."""
        self._recorder.detach()
        for handle in self._handles:
            handle.remove()
        if self._steps is not None:
            self._steps.remove()
        self._handles, self._steps = [], None

    @property
    def is_attached(self) -> bool:
        """Whether the hook follows an optimizer."""
        return self._steps is not None

    def state_dict(self) -> dict[str, Any]:
        """Return what resumes exactly."""
        return {
            "num_steps": self.num_steps,
            "step_sizes": self._master.clone(),
            "sums": None if self._recorder.sums is None else self._recorder.sums.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict`, and the network's step-sizes with it.

        Raises:
            ValueError: If it is for another number of layers.
        """
        if len(state["step_sizes"]) != len(self._master):
            raise ValueError(f"`state` must hold {len(self._master)} step-sizes, got {len(state['step_sizes'])}.")
        self.num_steps = int(state["num_steps"])
        self._master = state["step_sizes"].to("cpu", torch.float64).clone()
        with torch.no_grad():  # FSDP1's sharded checkpoints may leave out equidistant step-sizes
            self.path.step_sizes.copy_(self._master)
        self._recorder.clear()
        if num_processes() == 1:  # else all would take the sums of the one that saved
            self._recorder.sums = None if state["sums"] is None else state["sums"].clone()
        self._arm()

    def see(self, batch: Any) -> None:
        """Announce a batch before its forward pass, to leave out its padding (by `padding_mask`).

        Args:
            batch: The batch; ``None`` if it has no padding.

        Example:
            >>> from lightning_leaky import LeakyResNet
            >>> hook = StepSizeHook(LeakyResNet(2, 2, width=4, num_layers=3, effective_depth=1.0))
            >>> hook.see({"attention_mask": torch.tensor([[1, 1, 0]])})
        """
        self._recorder.see(batch)

    def end_step(self) -> None:
        """Tell the hook that a step has moved the weights, if it is not `automatic`."""
        if self._steps is not None and not self._steps.hears:
            self._steps.end_step()

    def forget(self) -> None:
        """Forget the distances since the last step."""
        with harmless(_TASK, self.said):
            self._recorder.clear()

    def _after_step(self, optimizer: Optimizer) -> None:
        with harmless(_TASK, self.said, step=self.num_steps + 1):
            if not step_was_skipped(optimizer):
                self.num_steps += 1
                if self.settings.is_due(self.num_steps):
                    self._adapt(optimizer)
        self.forget()
        self._arm()

    def _arm(self) -> None:
        self._recorder.armed = self.is_attached and self.settings.is_due(self.num_steps + 1)

    @torch.no_grad()
    def _adapt(self, optimizer: Optimizer) -> None:
        sums, complaints = self._sums_of_all()
        # Others may change the buffer.
        if not torch.equal(self.path.step_sizes.cpu(), self._master.to(self.path.step_sizes.dtype)):
            self._master = step_sizes_of(self.path)
        distances = torch.full_like(self._master, torch.nan)
        if sums is not None:
            distances = self._recorder.rule.distances(sums, self._master, self.path.effective_depth)
        if not distances_are_usable(distances):
            self._complain(sums, distances, complaints)
            return
        self._recorder.copy_less()
        new = adaptive_step_sizes(self._master, distances, self.settings.damping)
        if self._maximum is not None:
            new = cap_step_sizes(new, self._maximum)
        if self.settings.move_weights:
            self._move_weights(new, optimizer)
        self._master = new
        self.path.step_sizes.copy_(new)

    def _move_weights(self, new: Tensor, optimizer: Optimizer) -> None:
        from lightning_leaky.refining.remesh import move_parameters

        move_parameters(list(self.path.layers), self._master, new, optimizer)

    def _gradient_hooks(self) -> list[RemovableHandle]:
        parameters = [(index, one) for index, layer in enumerate(self.path.layers) for one in layer.parameters()]
        # FSDP1 without `use_orig_params` may leave one flat parameter.
        if not parameters or any(is_sharded(one) or is_flattened(one) for _, one in parameters):
            raise ValueError("`scale_gradients` must be False for sharded parameters, got True.")
        return [
            one.register_hook(partial(self._per_unit, index))  # type: ignore[no-untyped-call]
            for index, one in parameters
            if one.requires_grad
        ]

    def _per_unit(self, index: int, gradient: Tensor) -> Tensor:
        share = self.path.step_sizes[index] * len(self.path.layers)
        return gradient / share.to(gradient)

    def _sums_of_all(self) -> tuple[Tensor | None, dict[int, str]]:
        """Sums of all processes, NaN for layers that one cannot read, and this one's complaints."""
        own, device = self._recorder.sums, self.path.step_sizes.device
        if self._shape is None:  # which a process without data needs
            shape = [] if own is None else list(own.shape)
            padded = torch.tensor(shape + [-1] * (_MOST_DIMENSIONS - len(shape)), device=device)
            agreed = first_of(padded, own is not None)
            if agreed is None:
                return None, self._recorder.complaints()
            self._shape = [size for size in agreed.tolist() if size >= 0]
        sums = torch.full(self._shape, torch.nan, dtype=working_dtype(device), device=device)
        try:
            complaints = self._recorder.complaints()
            sums.copy_(torch.zeros_like(sums) if own is None else own)
            sums[list(complaints)] = torch.nan
        except Exception as error:  # the others wait for this process
            complaints = {0: unreadable(error)}
        return summed(sums).to("cpu", torch.float64), complaints

    def _complain(self, sums: Tensor | None, distances: Tensor, complaints: dict[int, str]) -> None:
        if complaints:
            firsts = {complaint: index for index, complaint in reversed(complaints.items())}
            reason = " ".join(f"Layer {index + 1} {complaint}." for complaint, index in firsts.items())
        elif sums is not None and sums.any():
            reason = "Look for layers that do nothing, have diverged, or overwrite their input on another process."
        else:
            reason = "Only passes in training mode count: models of `from_pretrained` want model.train()."
        message = (
            f"Step-sizes left as they are. The layers change by {distances.tolist()} per unit of p, which must be "
            f"positive and finite. {reason}"
        )
        warn_once(message, reason, self.said, is_own=bool(complaints))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": [], "_steps": None, "_model": None}


def _maximum_step_size(max_leak: float | None, effective_depth: float, num_layers: int) -> float | None:
    if max_leak is None or effective_depth == 0:
        return None
    if max_leak * num_layers < effective_depth * (1 - 1e-9):
        raise ValueError(
            f"`max_leak` must be at least L̃/L = {effective_depth / num_layers:.4g} for {num_layers} layers, got "
            f"{max_leak!r}; raise it, pass None for no bound, or take more layers."
        )
    return max_leak / effective_depth
