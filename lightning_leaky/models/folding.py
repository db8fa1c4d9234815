"""Folding a factor into a layer's weights."""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

_ADDITIONS = {"call_function": (operator.add, operator.iadd, torch.add), "call_method": ("add", "add_")}
_PASS_THROUGH = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_LINEAR = (nn.Linear, _ConvNd, _BatchNorm, nn.LayerNorm, nn.GroupNorm)


def foldable_layer(model: nn.Module, block: nn.Module) -> nn.Module | None:
    """Return the layer g of a block h + g(…) if its weights can take a factor of the branch exactly."""
    last = _last_layer_of_branch(block)
    return None if last is None or not _owns_its_output(last) or _is_shared(model, last) else last


@torch.no_grad()
def multiply(factors: Iterable[tuple[nn.Module, float]]) -> None:
    """Multiply each layer's parameters by a number: all, or none if it fails."""
    written = [(parameter, factor) for layer, factor in factors for parameter in layer.parameters(recurse=False)]
    for parameter, _ in written:
        parameter.mul_(1)  # raises before any parameter has changed
    for parameter, factor in written:
        parameter.mul_(factor)


def _last_layer_of_branch(block: nn.Module) -> nn.Module | None:
    try:
        graph = fx.symbolic_trace(block).graph
    except Exception:  # of any code
        return None
    modules = dict(block.named_modules())
    start = next(node for node in graph.nodes if node.op == "placeholder")
    end = next(node for node in reversed(graph.nodes) if node.op == "output").args[0]
    if not isinstance(end, fx.Node) or end.kwargs or end.target not in _ADDITIONS.get(end.op, ()):
        return None
    branch = [one for one in end.args if one is not start]
    if len(end.args) != 2 or len(branch) != 1 or not isinstance(branch[0], fx.Node):
        return None
    node = branch[0]
    while _is_call(node, modules, _PASS_THROUGH) and len(node.users) == 1:
        node = node.all_input_nodes[0]
    calls = [other for other in graph.nodes if other.op == "call_module" and other.target == node.target]
    is_last = _is_call(node, modules, _LINEAR) and len(node.users) == 1 and len(calls) == 1
    return modules[str(node.target)] if is_last else None


def _is_call(node: fx.Node, modules: dict[str, nn.Module], kinds: tuple[type[nn.Module], ...]) -> bool:
    return node.op == "call_module" and isinstance(modules.get(str(node.target)), kinds)


def _owns_its_output(layer: nn.Module) -> bool:
    is_plain = type(layer).__module__.startswith("torch.nn.modules.")  # parametrizations make a new class
    return is_plain and layer.weight is not None and not layer._forward_hooks and not layer._forward_pre_hooks


def _is_shared(model: nn.Module, layer: nn.Module) -> bool:
    places = [child for module in model.modules() for child in module._modules.values() if child is layer]
    own = {id(parameter) for parameter in layer.parameters(recurse=False)}
    others = [one for module in model.modules() if module is not layer for one in module.parameters(recurse=False)]
    return len(places) > 1 or any(id(one) in own for one in others)
