"""The Euler step with ReLU, and the L2 term of its weights, in fewer passes over memory than autograd takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def relu_step(
    representation: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    step_size: float,
    effective_depth: float,
    has_handle: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return A_l as `leaky_step` does, and on request a handle on ‖W_l‖²_F, bias included.

    The handle is a 0 with the gradient of ‖W_l‖²_F. Both come from one node of the graph, so that the gradients of both
    are made by one matrix product.
    """
    kept = 1 - step_size * effective_depth
    return _ReluStep.apply(  # type: ignore[no-untyped-call, no-any-return]
        representation, weight, bias, step_size, kept, has_handle
    )


def l2_term(shares: Tensor, squares: Tensor, handles: Sequence[Tensor | None]) -> Tensor:
    """Return ``Σ_l s_l ‖W_l‖²_F``, whose gradients go through handles.

    Args:
        shares: s_l, shape (L,).
        squares: ‖W_l‖²_F, shape (L,), without gradients.
        handles: Of `relu_step`, one a layer; ``None`` for one without gradients.
    """
    return _L2Term.apply(shares, squares, *handles)  # type: ignore[no-untyped-call, no-any-return]


class _L2Term(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shares: Tensor, squares: Tensor, *handles: Tensor | None) -> Tensor:
        ctx.save_for_backward(shares)
        return torch.dot(shares, squares)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (shares,) = ctx.saved_tensors
        wanted = zip((gradients[0] * shares).unbind(), ctx.needs_input_grad[2:], strict=True)
        return None, None, *(one if is_wanted else None for one, is_wanted in wanted)


class _ReluStep(torch.autograd.Function):
    """The step with leak, step-size and sum inside the matrix products: four passes over N × w fewer than autograd's.

    It keeps σ(A_{l−1}), which is used twice, and A_{l−1}, so that second derivatives come out right.
    """

    @staticmethod
    def forward(
        ctx: Any,
        representation: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        step_size: float,
        kept: float,
        has_handle: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """(1 − ρL̃) A_{l−1} + ρ σ(A_{l−1}) W_lᵀ, where `kept` is 1 − ρL̃, and the handle."""
        active = torch.relu(representation)
        ctx.save_for_backward(representation, active, weight, bias)
        ctx.set_materialize_grads(False)
        ctx.step_size, ctx.kept = step_size, kept
        ctx.parameters = [(one, one._version) for one in (weight, bias) if one is not None] if has_handle else []
        leaked = representation * kept if bias is None else torch.add(bias * step_size, representation, alpha=kept)
        current = leaked.addmm_(active, weight.t(), alpha=step_size)
        return current, weight.new_zeros(()) if has_handle else None

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """With G the gradient at A_l: (1 − ρL̃) G + ρ (G W_l) ∘ 1[A_{l−1} > 0], ρ Gᵀσ(A_{l−1}) and ρ Σ_i G_i.

        To the last two 2c W_l and 2c b are added, with c the gradient at the handle.
        """
        gradient, of_square = gradients
        if gradient is None:
            return None, *_of_square_alone(ctx, of_square), None, None, None
        found = _differentiable if torch.is_grad_enabled() else _in_place
        return *found(ctx, gradient, of_square), None, None, None


def _in_place(ctx: Any, gradient: Tensor, of_square: Tensor | None) -> list[Tensor | None]:
    """Gradients in A_{l−1}, W_l and b, of an ordinary backward pass."""
    _, active, weight, bias = ctx.saved_tensors
    decay = 0.0 if of_square is None else 2 * float(of_square)
    of_representation, of_weight, of_bias = None, None, None
    if ctx.needs_input_grad[0]:
        through = torch.addmm(gradient, gradient, weight, beta=0, alpha=ctx.step_size)
        torch.ops.aten.threshold_backward.grad_input(through, active, 0, grad_input=through)
        of_representation = through.add_(gradient, alpha=ctx.kept)
    if ctx.needs_input_grad[1]:
        of_weight = torch.addmm(weight, gradient.t(), active, beta=decay, alpha=ctx.step_size)
    if ctx.needs_input_grad[2]:
        of_bias = gradient.sum(0).mul_(ctx.step_size)
        of_bias = of_bias.add_(bias, alpha=decay) if decay else of_bias
    return [of_representation, of_weight, of_bias]


def _differentiable(ctx: Any, gradient: Tensor, of_square: Tensor | None) -> list[Tensor | None]:
    """The same where the gradients are differentiated again."""
    representation, _, weight, bias = ctx.saved_tensors
    through = torch.ops.aten.threshold_backward(ctx.step_size * gradient @ weight, representation, 0)
    of_weight = ctx.step_size * gradient.t() @ torch.relu(representation)
    found = [ctx.kept * gradient + through, of_weight, None if bias is None else ctx.step_size * gradient.sum(0)]
    if of_square is not None:
        found[1:] = [of_weight + 2 * of_square * weight, None if bias is None else found[2] + 2 * of_square * bias]
    return [one if wanted else None for one, wanted in zip(found, ctx.needs_input_grad, strict=False)]


def _of_square_alone(ctx: Any, of_square: Tensor | None) -> list[Tensor | None]:
    """Gradients of ‖W_l‖² in W_l and b where A_l has none: in a backward pass of its own, after the other."""
    if of_square is None:
        return [None, None]
    if any(one._version != version for one, version in ctx.parameters):
        raise RuntimeError("a weight of a leaky layer was changed in place before the gradient of its L2 term was made")
    found: list[Tensor | None] = [2 * of_square * one for one, _ in ctx.parameters]
    return [*found, None][:2]
