"""Blocks as leaky steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from lightning_leaky.functional._checks import check_non_negative, working_dtype
from lightning_leaky.functional.step_sizes import check_step_sizes, equidistant_step_sizes
from lightning_leaky.hooks.compiled import forget_compiled_code
from lightning_leaky.hooks.state import StateChoice, StatePlace, certain_choice, state_candidates, state_place
from lightning_leaky.hooks.structures import replaced, same_shape, tensors_of
from lightning_leaky.paths.layers import device_of
from lightning_leaky.utilities.processes import warn
from lightning_leaky.utilities.wrappers import unwrapped


class LeakySteps(nn.Module):
    """Makes blocks of a model leaky steps: ``h ← (1 − ρ_l L̃) h + ρ_l L f_l(h)`` with f_l(h) = block_l(h) − h [ours].

    At L̃ = 0 and ρ_l = 1/L the outputs stay the same: exactly in float32 and narrower, to the last place in float64.
    A forward hook on each block mixes its output with its input, so modules and parameters keep name, class and place.
    A `StepSizeAdapter` or `StepSizeHook` finds this `LeakyPath` in the model.

    The step-sizes stay in float64 (float32 on MPS) if the model is cast. They are saved with the model, unless they are
    equidistant at L̃ = 0 outside torch.distributed. A state without step-sizes loads as equidistant. A copy of this
    module keeps them; a copy of blocks alone runs as plain blocks and warns once.

    Args:
        blocks: The blocks in running order, each shape-preserving; not registered here.
        effective_depth: L̃ ≥ 0.
        step_sizes: ρ, L positive numbers that sum to 1; equidistant by default.
        names: Names in errors; numbers by default.
        state: Which tensor is h, if a block takes or returns several of one shape: an argument, by name or position;
            a pair of an argument and an output, by index, key or attribute; or ``"sum"`` of all that are handed on,
            such as hidden and residual.

    Raises:
        ValueError: If there are no blocks, one is a leaky step already, or a number is out of range. A forward pass
            raises it if a block changes the shape, overwrites its input (unnoticed in inference mode), or leaves open
            which tensor is h.

    Example:
        >>> block = nn.Linear(2, 2)
        >>> steps = LeakySteps([block], effective_depth=1.0)  # one step leaks all of h
        >>> torch.allclose(block(torch.ones(1, 2)), block.weight.sum(1) + block.bias - 1)
        True
    """

    step_sizes: Tensor

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        effective_depth: float = 0.0,
        step_sizes: Sequence[float] | None = None,
        names: Sequence[str] | None = None,
        state: StateChoice = None,
    ) -> None:
        super().__init__()
        self._names = [f"number {index + 1}" for index in range(len(blocks))] if names is None else list(names)
        _check_blocks(blocks, self._names)
        if callable(state):
            raise ValueError(f"`state` must be a place, got {state!r}; give a name or index.")
        self.effective_depth = check_non_negative("effective_depth", effective_depth)
        self._unregistered = (nn.ModuleList(blocks),)  # nn.Module looks in no tuple
        rho = equidistant_step_sizes(len(blocks))
        if step_sizes is not None:
            rho = check_step_sizes(torch.as_tensor(step_sizes, dtype=torch.float64), len(blocks))
        device = device_of(self.layers)
        self.register_buffer("step_sizes", rho.to(device, working_dtype(device)))
        self.state = state
        self._places = [state_place(block, state) for block in blocks]
        self._versions: dict[int, dict[int, int]] = {}
        self._handles: list[RemovableHandle] = []
        self._link = _Link(self)
        try:
            self._attach()
        except BaseException:
            self.detach()
            raise

    @property
    def layers(self) -> nn.ModuleList:
        """The blocks."""
        return self._unregistered[0]

    def forward(self, representation: Tensor) -> Tensor:
        """Return the input, for an `nn.Sequential`."""
        return representation

    def detach(self) -> None:
        """Remove the hooks from the blocks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._link.steps, self._link.is_silent = None, True  # for copies of the hooks

    def gain(self, index: int) -> float:
        """ρ_l L, the factor of f_l."""
        return float(self.step_sizes[index]) * len(self.step_sizes)

    def takes_state_first(self, index: int) -> bool:
        """Whether h is a block's first argument."""
        inputs = self._places[index].inputs
        return not inputs or 0 in inputs

    def extra_repr(self) -> str:
        """Describe the steps."""
        return f"num_layers={len(self.step_sizes)}, effective_depth={self.effective_depth}"

    def _attach(self) -> None:
        for index, block in enumerate(self.layers):
            for link in _links(block):  # of a copy without steps
                link.is_silent = True
            # First: other hooks see the leaky step.
            enter, step = partial(self._link.enter, index), partial(self._link.step, index)
            self._handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
            self._handles.append(block.register_forward_hook(step, with_kwargs=True, prepend=True))
        forget_compiled_code()

    def _step(self, index: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        place, name = self._places[index], self._names[index]
        befores, afters = state_candidates(place, args, kwargs, output)
        _check_state(name, block, befores, afters, [*args, *kwargs.values()])
        before, after = befores[0], afters[0]
        if not torch.compiler.is_compiling():
            # A block may return its input, as stochastic depth does.
            versions = self._versions.pop(index, {})
            inputs = tensors_of((args, kwargs)) if place.is_sum else [before]
            if any(_version(one) != versions.get(id(one), _version(one)) for one in inputs):
                raise ValueError(
                    f"`layers` must leave their input as it is, but {name}, a {type(block).__name__}, overwrites it."
                )
            if place == StatePlace():  # because the next batch may be ambiguous
                choice = certain_choice(args, kwargs, output, before, after)
                self._places[index] = state_place(block, choice)
        mixed = self._mix(index, before, after)
        if not place.is_sum:
            return replaced(output, after, mixed)
        first = state_candidates(place._replace(is_sum=False), args, kwargs, output)[1][0]
        return replaced(output, first, first + (mixed - after).to(first.dtype))

    def _enter(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.compiler.is_compiling():
            self._versions[index] = {id(tensor): _version(tensor) for tensor in tensors_of((args, kwargs))}

    def _mix(self, index: int, before: Tensor, after: Tensor) -> Tensor:
        """(1 − ρL̃ − ρL) h + ρL block(h): exactly block(h) at ρL = 1 and L̃ = 0."""
        dtype = torch.promote_types(after.dtype, torch.float32)
        step_size = self.step_sizes[index].to(after.device)
        gain = (step_size * len(self.step_sizes)).to(dtype)
        kept = 1 - gain - (step_size * self.effective_depth).to(dtype)
        return (gain * after + kept * before).to(after.dtype)

    def _says_something(self) -> bool:
        if self.effective_depth > 0 or self.step_sizes.is_meta:
            return self.effective_depth > 0
        if dist.is_available() and dist.is_initialized():
            return True
        equidistant = equidistant_step_sizes(len(self.step_sizes)).to(self.step_sizes)
        return not torch.equal(self.step_sizes, equidistant)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if self._says_something():
            destination[f"{prefix}step_sizes"] = self.step_sizes if keep_vars else self.step_sizes.detach()

    @torch.no_grad()
    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        num_layers = len(self.step_sizes)
        loaded = check_step_sizes(state_dict.get(f"{prefix}step_sizes", equidistant_step_sizes(num_layers)), num_layers)
        if self.step_sizes.is_meta:
            self.step_sizes = loaded.clone()
        else:
            self.step_sizes.copy_(loaded)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> nn.Module:
        # Follows a move to another device, but not a cast.
        rho = equidistant_step_sizes(len(self.step_sizes)) if self.step_sizes.is_meta else self.step_sizes
        device = fn(torch.empty(0, device=self.step_sizes.device)).device
        self.step_sizes = rho.to(device, working_dtype(device))
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._link.steps = self if self._handles else None


class _Link:
    """Leads hooks to their steps; a copy leads nowhere."""

    def __init__(self, steps: LeakySteps) -> None:
        self.steps: LeakySteps | None = steps
        self.is_silent = False

    # Quantised modules give no keywords.
    def enter(self, index: int, block: nn.Module, args: tuple[Any, ...], *kwargs: dict[str, Any]) -> None:
        if self.steps is not None:
            self.steps._enter(index, args, *kwargs or ({},))

    def step(self, index: int, block: nn.Module, args: tuple[Any, ...], *rest: Any) -> Any:
        if self.steps is not None:
            return self.steps._step(index, block, args, *rest if len(rest) == 2 else ({}, *rest))
        self.say()
        return None

    def say(self) -> None:
        if not self.is_silent:
            self.is_silent = True
            warn(
                "A copy of leaky blocks was made without their step-sizes, and runs as plain blocks. Copy the model "
                "that make_leaky was given, or call make_leaky on the copy."
            )

    # Compiling runs it, in less time than `torch.compiler.assume_constant_result`.
    say._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def __getstate__(self) -> dict[str, Any]:
        return {"steps": None, "is_silent": self.steps is None}


def _check_blocks(blocks: Sequence[nn.Module], names: Sequence[str]) -> None:
    if not blocks:
        raise ValueError("`blocks` must hold at least one module, got none.")
    if len({id(unwrapped(block)) for block in blocks}) < len(blocks):
        raise ValueError("`blocks` must differ, got one of them twice.")
    taken = [name for name, block in zip(names, blocks, strict=True) if any(link.steps for link in _links(block))]
    if taken:
        raise ValueError(f"`layers` must be no leaky steps yet, but {taken} are; unmake_leaky their model first.")


def _links(block: nn.Module) -> list[_Link]:
    hooks = [*block._forward_hooks.values(), *unwrapped(block)._forward_hooks.values()]
    owners = [getattr(getattr(hook, "func", None), "__self__", None) for hook in hooks]
    return [owner for owner in owners if isinstance(owner, _Link)]


def _check_state(name: str, block: nn.Module, befores: list[Tensor], afters: list[Tensor], inputs: list[Any]) -> None:
    if any(isinstance(part, fx.Proxy) for part in inputs):
        raise ValueError(
            f"`model` must not be traced by torch.fx while {name} is a leaky step; use torch.export, or "
            "unmake_leaky(model) first."
        )
    if not befores or not afters or not same_shape(befores[0], afters[0]):
        shapes = f"{tuple(befores[0].shape)} to {tuple(afters[0].shape)}" if befores and afters else "no tensor"
        raise ValueError(
            f"`layers` must preserve the shape of a tensor, but {name}, a {type(block).__name__}, maps {shapes}; leave "
            "it out."
        )
    if len(befores) > 1 or len(afters) > 1:
        raise ValueError(
            f"`state` must say which tensor is the state of {name}, a {type(block).__name__}, which takes "
            f"{len(befores)} and returns {len(afters)} of shape {tuple(afters[0].shape)}. Give make_leaky an "
            "argument's name or position, a pair of it and an output, or 'sum'."
        )


def _version(tensor: Tensor) -> int:
    # Not counted in inference mode.
    return 0 if tensor.is_inference() else tensor._version
