"""Moving parameters and an optimizer's state to other step-sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby, repeat
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_leaky.refining.interpolation import Interpolation, interpolation_of
from lightning_leaky.utilities.optimizer_steps import check_state_is_by_parameter
from lightning_leaky.utilities.wrappers import plain_name

Parameters: TypeAlias = dict[str, Tensor]
"""Parameters of one layer by name."""

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@torch.no_grad()
def move_parameters(
    layers: Sequence[nn.Module], step_sizes: Tensor, new_step_sizes: Tensor, optimizer: Optimizer | None = None
) -> None:
    """Move the parameters of L layers to new step-sizes, in place; the number of layers stays [ours].

    Parameters are functions of p, see `interpolation_of`. Tensors of the optimizer's state with a parameter's shape
    (moments, momentum) move with it; the rest stays. Parameters sharded alike need no collective.

    Args:
        layers: L layers, with parameters of the same names and shapes.
        step_sizes: Old ρ, shape (L,).
        new_step_sizes: New ρ, shape (L,).
        optimizer: Optimizer whose state moves too.

    Raises:
        ValueError: If the step-sizes do not fit, the layers' parameters differ, or the optimizer's state cannot move.

    Example:
        >>> layers = [torch.nn.Linear(1, 1, bias=False) for _ in range(2)]
        >>> for layer, value in zip(layers, (1.0, 3.0)):
        ...     _ = torch.nn.init.constant_(layer.weight, value)
        >>> move_parameters(layers, torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75]))
        >>> [layer.weight.item() for layer in layers]
        [1.0, 2.5]
    """
    old = _checked_parameters(layers, step_sizes)
    if len(new_step_sizes) != len(layers):
        raise ValueError(f"`new_step_sizes` must be {len(layers)}, got {len(new_step_sizes)}; see `remeshed_layers`.")
    check_optimizer(optimizer, _tensors(old))
    _interpolate(old, old, interpolation_of(step_sizes, new_step_sizes), optimizer)


def copy_without_hooks(layer: nn.Module) -> nn.Module:
    """Copy a layer without its hooks."""
    hooks = [getattr(module, name) for module in layer.modules() for name in _HOOKS]
    return copy.deepcopy(layer, {id(one): type(one)() for one in hooks})


@torch.no_grad()
def remeshed_layers(
    layers: Sequence[nn.Module],
    step_sizes: Tensor,
    new_step_sizes: Tensor,
    optimizer: Optimizer | None = None,
    copy_of: Callable[[nn.Module], nn.Module] = copy_without_hooks,
) -> list[nn.Module]:
    """Make M layers for new step-sizes from L layers [ours].

    Each new layer descends from the nearest old one. The first descendant is that module, with its parameters; others
    are copies without hooks. Values move as in `move_parameters`.

    In the optimizer a new parameter joins its ancestor's group, with its state. Removed parameters leave groups and
    state. Groups keep the order in which a module lists its parameters, so a state loads into a new optimizer.

    Args:
        layers: L layers, with parameters of the same names and shapes.
        step_sizes: Old ρ, shape (L,).
        new_step_sizes: New ρ, shape (M,).
        optimizer: Optimizer of the layers.
        copy_of: Makes a new layer like the given one, of any values.

    Returns:
        M layers, each on the device and in the mode of its ancestor.

    Raises:
        ValueError: As `move_parameters` does.

    Example:
        >>> layers = [torch.nn.Linear(1, 1) for _ in range(2)]
        >>> new = remeshed_layers(layers, torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.25, 0.5]))
        >>> [layer in layers for layer in new]
        [True, False, True]
    """
    old = _checked_parameters(layers, step_sizes)
    check_optimizer(optimizer, _tensors(old))
    interpolation = interpolation_of(step_sizes, new_step_sizes)
    is_same_number = len(new_step_sizes) == len(layers)
    parents = list(range(len(layers))) if is_same_number else interpolation.nearest.tolist()
    modules = [
        layers[parent] if parents.index(parent) == index else copy_of(layers[parent])
        for index, parent in enumerate(parents)
    ]
    new = [_parameters(module) for module in modules]
    if optimizer is not None:
        for parent, parameters in zip(parents, new, strict=True):
            for name, parameter in parameters.items():
                ancestor = old[parent][name]
                if parameter is not ancestor and ancestor in optimizer.state:
                    optimizer.state[parameter] = copy.deepcopy(optimizer.state[ancestor])
    _interpolate(new, old, interpolation, optimizer)
    if optimizer is not None:
        _regroup(optimizer, old, new, parents)
    return modules


def check_optimizer(optimizer: Optimizer | None, parameters: Iterable[Tensor]) -> None:
    """Raise ValueError if an optimizer's state cannot move."""
    check_state_is_by_parameter(optimizer)
    for parameter in parameters:
        for name, value in _state_of(optimizer, parameter).items():
            if isinstance(value, Tensor) and value.shape != parameter.shape and value.numel() > 1:
                raise ValueError(
                    f"`optimizer` must keep tensors of a parameter's shape, {tuple(parameter.shape)}, or numbers, got "
                    f"{type(optimizer).__name__} with {name!r} of shape {tuple(value.shape)}; use Adam or SGD."
                )


def _parameters(layer: nn.Module) -> Parameters:
    return {plain_name(name): parameter for name, parameter in layer.named_parameters()}


def _tensors(layers: Iterable[Parameters]) -> list[Tensor]:
    return [parameter for parameters in layers for parameter in parameters.values()]


def _checked_parameters(layers: Sequence[nn.Module], step_sizes: Tensor) -> list[Parameters]:
    if len(layers) == 0 or len(step_sizes) != len(layers):
        raise ValueError(f"`step_sizes` must be {len(layers)} > 0, one a layer, got {len(step_sizes)}.")
    found = [_parameters(layer) for layer in layers]
    first, *others = ({name: one.shape for name, one in parameters.items()} for parameters in found)
    for number, shapes in enumerate(others, start=2):
        if shapes != first:
            raise ValueError(
                f"`layers` must have parameters of the same names and shapes, but layer {number} has {shapes} and "
                f"layer 1 {first}."
            )
    tensors = _tensors(found)
    if len(set(map(id, tensors))) < len(tensors):
        raise ValueError("`layers` must have parameters of their own, but two of them share one.")
    return found


def _interpolate(
    new: list[Parameters], old: list[Parameters], interpolation: Interpolation, optimizer: Optimizer | None
) -> None:
    for name in old[0]:
        sources, targets = ([parameters[name] for parameters in layers] for layers in (old, new))
        _interpolate_into(targets, sources, interpolation)
        states, new_states = ([_state_of(optimizer, one) for one in tensors] for tensors in (sources, targets))
        for key in states[0]:
            values: list[Any] = [state.get(key) for state in states]
            if key != "step" and all(isinstance(one, Tensor) and one.shape == sources[0].shape for one in values):
                _interpolate_into([state[key] for state in new_states], values, interpolation)


def _interpolate_into(targets: Sequence[Tensor], sources: Sequence[Tensor], interpolation: Interpolation) -> None:
    """Write M interpolated tensors, some of which may be among the L sources, in the same order."""
    # `left` never falls: only overwritten sources that a later target reads are kept.
    position = {id(source): index for index, source in enumerate(sources)}
    rows = list(zip(*(part.tolist() for part in interpolation), strict=True))
    kept: dict[int, Tensor] = {}
    for number, (target, (left, right, fraction)) in enumerate(zip(targets, rows, strict=True)):
        start, end = (kept.get(index, sources[index]) for index in (left, right))
        value = start if left == right else start.lerp(end, fraction)
        next_left = rows[number + 1][0] if number + 1 < len(rows) else len(sources)
        kept = {index: tensor for index, tensor in kept.items() if index >= next_left}
        if value is not target:
            overwritten = position.get(id(target), -1)
            if overwritten >= next_left:
                kept[overwritten] = target.clone()
            target.copy_(value)


def _state_of(optimizer: Optimizer | None, parameter: Tensor) -> dict[str, Any]:
    # `optimizer.state[parameter]` would create a state.
    return {} if optimizer is None else optimizer.state.get(parameter, {})


def _regroup(optimizer: Optimizer, old: list[Parameters], new: list[Parameters], parents: Sequence[int]) -> None:
    layer_of = {tensor: index for index, layer in enumerate(old) for tensor in layer.values()}
    name_of = {tensor: name for layer in old for name, tensor in layer.items()}
    for group in optimizer.param_groups:
        labels = group.get("param_names")
        pairs: list[tuple[Tensor, str]] = []
        members = zip(group["params"], labels or repeat(""), strict=False)
        for index, run in groupby(members, lambda pair: layer_of.get(pair[0])):
            if index is None:
                pairs += run
                continue
            names = [(name_of[tensor], label) for tensor, label in run]
            pairs += [
                (new[number][name], f"{label.removesuffix(f'{index}.{name}')}{number}.{name}")
                for number, parent in enumerate(parents)
                if parent == index
                for name, label in names
            ]
        group["params"] = [tensor for tensor, _ in pairs]
        if labels is not None:
            group["param_names"] = [label for _, label in pairs]
    for gone in {*_tensors(old)} - {*_tensors(new)}:
        optimizer.state.pop(gone, None)
