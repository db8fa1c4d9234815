"""Residual blocks of any network as leaky steps, and back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_leaky.functional._checks import check_non_negative, working_dtype
from lightning_leaky.functional.step_sizes import check_step_sizes, equidistant_step_sizes
from lightning_leaky.hooks.structures import paired_tensors, replaced, same_shape, tensors_of
from lightning_leaky.models.folding import fold_gain
from lightning_leaky.paths.layers import LayerChoice, choose_layers, device_of
from lightning_leaky.utilities.processes import is_sharded

Model = TypeVar("Model", bound=nn.Module)

_NAME = "leaky_steps"


class LeakySteps(nn.Module):
    """Makes blocks that live elsewhere leaky steps: ``h ← (1 − ρ_l L̃) h + ρ_l L f_l(h)``, f_l(h) = block_l(h) − h.

    [ours] At L̃ = 0 and ρ_l = 1/L the blocks are what they were: exactly in float32 and narrower, to the last place in
    float64. A forward hook on each block mixes its output with its input, so no module and no parameter changes its
    name, its class or its place. It is a `LeakyPath`: a `StepSizeAdapter` or `StepSizeHook` finds it in the model.

    The step-sizes stay in float64 whatever the model is cast to (float32 on MPS). They are saved with the model, except
    where they say nothing (equidistant at L̃ = 0): then the state is that of the original model; a state without
    step-sizes is loaded as equidistant. Of sharded blocks they always are: a sharded checkpoint is loaded in place, key
    by key of the state that asks.

    Args:
        blocks: The blocks in the order in which they run, each shape-preserving; they are not registered here.
        effective_depth: L̃ ≥ 0.
        step_sizes: ρ, L positive numbers that sum to 1; equidistant by default.
        names: What to call the blocks in errors; their numbers by default.

    Raises:
        ValueError: If there are no blocks, a number is out of range, or the step-sizes are no distribution; from a
            forward pass, if a block changes the shape or overwrites its input (in inference mode, where torch does not
            count writes, that is not noticed).

    Example:
        >>> block = nn.Linear(2, 2)
        >>> steps = LeakySteps([block], effective_depth=1.0)  # with one step of size 1 the leak takes all of h
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
    ) -> None:
        super().__init__()
        if not blocks:
            raise ValueError("`blocks` must hold at least one module, got none.")
        self.effective_depth = check_non_negative("effective_depth", effective_depth)
        self._unregistered = (nn.ModuleList(blocks),)  # in a tuple, where nn.Module does not look
        self._names = [f"number {index + 1}" for index in range(len(blocks))] if names is None else list(names)
        rho = equidistant_step_sizes(len(blocks))
        if step_sizes is not None:
            rho = check_step_sizes(torch.as_tensor(step_sizes, dtype=torch.float64), len(blocks))
        device = device_of(self.layers)
        self.register_buffer("step_sizes", rho.to(device, working_dtype(device)), persistent=False)
        self._versions: dict[int, dict[int, int]] = {}
        self._handles = []
        for index, block in enumerate(blocks):
            # First of all hooks: what others see of a block, be it a list of its hidden states, is the leaky step.
            enter, step = partial(self._enter, index), partial(self._step, index)
            self._handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
            self._handles.append(block.register_forward_hook(step, with_kwargs=True, prepend=True))

    @property
    def layers(self) -> nn.ModuleList:
        """The blocks."""
        return self._unregistered[0]

    def forward(self, representation: Tensor) -> Tensor:
        """Return what is given: in an `nn.Sequential` this module stands behind its blocks and does nothing."""
        return representation

    def detach(self) -> None:
        """Give the blocks back as they were; their parameters stay."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def gain(self, index: int) -> float:
        """ρ_l L, what f_l is multiplied by."""
        return float(self.step_sizes[index]) * len(self.step_sizes)

    def extra_repr(self) -> str:
        """Describe the steps in `print`."""
        return f"num_layers={len(self.step_sizes)}, effective_depth={self.effective_depth}"

    def _step(self, index: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        pair = paired_tensors((args, kwargs), output)
        if pair is None or not same_shape(*pair):
            shapes = "no tensor" if pair is None else f"{tuple(pair[0].shape)} to {tuple(pair[1].shape)}"
            raise ValueError(
                f"`layers` must preserve the shape of a tensor, but {self._names[index]}, a {type(block).__name__}, "
                f"maps {shapes}; leave it out, for example by a predicate of name and module."
            )
        before, after = pair
        if not torch.compiler.is_compiling() and self._was_overwritten(index, before):
            raise ValueError(
                f"`layers` must leave their input as it is, but {self._names[index]}, a {type(block).__name__}, "
                "overwrites it; use out-of-place operations."
            )
        return replaced(output, after, self._mix(index, before, after))

    def _enter(self, index: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.compiler.is_compiling():
            self._versions[index] = {id(tensor): _version(tensor) for tensor in tensors_of((args, kwargs))}

    def _was_overwritten(self, index: int, before: Tensor) -> bool:
        # By its version, not by its place: a block that hands its input on, as stochastic depth does, is in its right.
        return _version(before) != self._versions.pop(index, {}).get(id(before), _version(before))

    def _mix(self, index: int, before: Tensor, after: Tensor) -> Tensor:
        """(1 − ρL̃ − ρL) h + ρL block(h): at ρL = 1 and L̃ = 0 the first factor is exactly 0, the second exactly 1."""
        dtype = torch.promote_types(after.dtype, torch.float32)
        step_size = self.step_sizes[index].to(after.device)
        gain = (step_size * len(self.step_sizes)).to(dtype)
        kept = 1 - gain - (step_size * self.effective_depth).to(dtype)
        return (gain * after + kept * before).to(after.dtype)

    def _says_something(self) -> bool:
        if self.step_sizes.is_meta:
            return self.effective_depth > 0
        equidistant = equidistant_step_sizes(len(self.step_sizes)).to(self.step_sizes)
        if self.effective_depth > 0 or any(map(is_sharded, self.layers.parameters())):
            return True
        return not torch.equal(self.step_sizes, equidistant)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if self._says_something():
            destination[f"{prefix}step_sizes"] = self.step_sizes if keep_vars else self.step_sizes.detach()

    @torch.no_grad()
    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # A state without step-sizes is one that `_says_something` had nothing to add to: all steps are equal.
        num_layers = len(self.step_sizes)
        loaded = check_step_sizes(state_dict.get(f"{prefix}step_sizes", equidistant_step_sizes(num_layers)), num_layers)
        if self.step_sizes.is_meta:
            self.step_sizes = loaded.clone()
        else:
            self.step_sizes.copy_(loaded)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> nn.Module:
        """Follow a move to another device, but not a cast."""
        rho = equidistant_step_sizes(len(self.step_sizes)) if self.step_sizes.is_meta else self.step_sizes
        device = fn(torch.empty(0, device=self.step_sizes.device)).device
        self.step_sizes = rho.to(device, working_dtype(device))
        return self


class LeakyResidual(nn.Module):
    """A stack of residual blocks, run as leaky steps: ``h ← (1 − ρ_l L̃) h + ρ_l L f_l(h)``.

    For new networks; `make_leaky` does the same to a stack that an existing model holds and calls by itself.

    Args:
        blocks: Shape-preserving residual blocks, h ↦ h + f_l(h), or one of them.
        effective_depth: L̃ ≥ 0; at 0, with equidistant steps, the stack is its blocks one after another.
        step_sizes: ρ, L positive numbers that sum to 1; equidistant by default.

    Raises:
        ValueError: If there are no blocks, a number is out of range, or the step-sizes are no distribution.

    Example:
        >>> stack = LeakyResidual([nn.TransformerEncoderLayer(8, 2, batch_first=True) for _ in range(3)], 1.0)
        >>> stack(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])
        >>> stack.steps.step_sizes
        tensor([0.3333, 0.3333, 0.3333], dtype=torch.float64)
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module] | nn.Module,
        effective_depth: float = 0.0,
        step_sizes: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        several = isinstance(blocks, (nn.ModuleList, nn.Sequential)) or not isinstance(blocks, nn.Module)
        self.layers = nn.ModuleList(blocks if several else [blocks])  # type: ignore[arg-type, list-item]
        self.steps = LeakySteps(list(self.layers), effective_depth, step_sizes)

    def forward(self, representation: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return A_L from A_0; further arguments go to every block."""
        for layer in self.layers:
            output = layer(representation, *args, **kwargs)
            pair = paired_tensors(representation, output)
            representation = output if pair is None else pair[1]
        return representation


def make_leaky(model: Model, layers: LayerChoice, effective_depth: float = 0.0) -> Model:
    """Turn blocks of an existing model into leaky steps, in place (`LeakySteps`).

    At L̃ = 0, until step-sizes are adapted, outputs, gradients and state of the model stay those it had.

    Args:
        model: A model, a LightningModule included.
        layers: Which blocks, in the order in which they run; see `lightning_leaky.paths.layers.choose_layers`. Each
            must return its input's shape; they need not be of one width.
        effective_depth: L̃ ≥ 0.

    Returns:
        The model, with a submodule ``leaky_steps``.

    Raises:
        ValueError: If the layers cannot be chosen so, the model has leaky steps already, or L̃ is negative.

    Example:
        >>> model = make_leaky(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "*")
        >>> model.leaky_steps.step_sizes
        tensor([0.5000, 0.5000], dtype=torch.float64)
        >>> list(model.state_dict())
        ['0.weight', '0.bias', '1.weight', '1.bias']
    """
    if hasattr(model, _NAME):
        raise ValueError(
            f"`model` must have no leaky steps yet, got {getattr(model, _NAME)}; unmake_leaky(model) first."
        )
    chosen = choose_layers(model, layers)
    steps = LeakySteps(list(chosen.values()), effective_depth, names=list(chosen))
    model.add_module(_NAME, steps)
    return model


def unmake_leaky(model: Model) -> Model:
    """Give back the original model, with the step-sizes folded into its weights where that is exact.

    It is exact where L̃ = 0 and a step is equidistant, or its block is ``h + g(…)`` and ends with a linear,
    convolutional or normalisation layer g: g is multiplied by ρ_l L. Elsewhere (a pre-norm transformer block adds
    twice, a block may end with an activation) the block is given back as it was, and a warning names it: the model
    then computes something else than the leaky one did.

    Args:
        model: A model that `make_leaky` has returned.

    Returns:
        The model, in place.

    Raises:
        ValueError: If the model has no leaky steps.

    Example:
        >>> model = unmake_leaky(make_leaky(nn.Sequential(nn.Linear(2, 2)), "*"))
        >>> list(model.named_children())
        [('0', Linear(in_features=2, out_features=2, bias=True))]
    """
    steps = getattr(model, _NAME, None)
    if not isinstance(steps, LeakySteps):
        raise ValueError("`model` must have leaky steps to unmake, got none; make_leaky(model, layers) makes them.")
    steps.detach()
    delattr(model, _NAME)
    names = {id(module): name for name, module in model.named_modules()}
    left = [
        names.get(id(block), str(index + 1))
        for index, block in enumerate(steps.layers)
        if steps.effective_depth > 0 or not fold_gain(model, block, steps.gain(index))
    ]
    if left:
        warnings.warn(
            f"unmake_leaky: the steps of {left} cannot be folded into their weights exactly and are dropped; the model "
            "computes something else than with them.",
            stacklevel=2,
        )
    return model


def _version(tensor: Tensor) -> int:
    """How often a tensor has been written to; in inference mode nobody counts."""
    return 0 if tensor.is_inference() else tensor._version
