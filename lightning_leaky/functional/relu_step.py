"""The Euler step with ReLU and its L2 term."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

_NEVER = -1


def relu_step(
    representation: Tensor, weight: Tensor, bias: Tensor | None, step_size: float, effective_depth: float
) -> Tensor:
    """`leaky_step` with ReLU."""
    kept = 1 - step_size * effective_depth
    return _ReluStep.apply(representation, weight, bias, step_size, kept)  # type: ignore[no-untyped-call, no-any-return]


def step_behind(current: Tensor, weight: Tensor) -> ReferenceType[Any] | None:
    """Return the autograd node that made A_l, as a reference that keeps no graph alive.

    ``None`` if it is not a `relu_step`, or W_l is computed from other parameters or not trained.
    """
    step = current.grad_fn
    is_trained = type(weight) is nn.Parameter and weight.requires_grad
    return ref(step) if is_trained and isinstance(step, _ReluStep._backward_cls) else None


def square_handle(step: Any, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return a handle on ‖W_l‖²_F, bias included: a 0 that has its gradient.

    A backward pass through the handle and the step of a layer adds both gradients in one matrix product.
    """
    return _Handle.apply(weight, bias, step)  # type: ignore[no-untyped-call, no-any-return]


def l2_term(shares: Tensor, squares: Tensor, handles: Sequence[Tensor | None]) -> Tensor:
    """Return ``Σ_l s_l ‖W_l‖²_F`` from s and ‖W_l‖²_F, shape (L,), whose gradients go through `square_handle`."""
    return _L2Term.apply(shares, squares, *handles)  # type: ignore[no-untyped-call, no-any-return]


class _L2Term(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shares: Tensor, squares: Tensor, *handles: Tensor | None) -> Tensor:
        """Σ_l s_l ‖W_l‖²_F."""
        ctx.save_for_backward(shares)
        return torch.dot(shares, squares)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The share s_l for each handle."""
        (shares,) = ctx.saved_tensors
        wanted = zip((gradients[0] * shares).unbind(), ctx.needs_input_grad[2:], strict=True)
        return None, None, *(one if is_wanted else None for one, is_wanted in wanted)


class _Handle(torch.autograd.Function):
    """A 0 with the gradient of ‖W_l‖²_F.

    It passes its gradient to the layer's step if that runs later in the same backward pass. The engine runs newer nodes
    first, but not those of another thread.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor | None, step: Any) -> Tensor:
        """A 0."""
        ctx.save_for_backward(weight, bias)
        ctx.step = step
        return weight.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """2 W_l and 2 b times the gradient, or nothing if the step adds them."""
        (of_square,) = gradients
        weight, bias = ctx.saved_tensors
        step, task = ctx.step, torch._C._current_graph_task_id()
        if torch._C._will_engine_execute_node(step) and step.ran_in != task:
            left_in, left = step.left
            step.left = task, left + of_square if left_in == task else of_square
            return None, None, None
        return 2 * of_square * weight, None if bias is None else 2 * of_square * bias, None


class _ReluStep(torch.autograd.Function):
    """The step with leak, step-size and sum inside the matrix products: four passes over N × w fewer than autograd.

    It saves σ(A_{l−1}) for both passes, and A_{l−1} for second derivatives.
    """

    @staticmethod
    def forward(
        ctx: Any, representation: Tensor, weight: Tensor, bias: Tensor | None, step_size: float, kept: float
    ) -> Tensor:
        """(1 − ρL̃) A_{l−1} + ρ σ(A_{l−1}) W_lᵀ with `kept` = 1 − ρL̃."""
        active = torch.relu(representation)
        ctx.save_for_backward(representation, active, weight, bias)
        ctx.step_size, ctx.kept = step_size, kept
        ctx.ran_in, ctx.left = _NEVER, (_NEVER, None)  # backward passes, and what handles left for one
        leaked = representation * kept if bias is None else torch.add(bias * step_size, representation, alpha=kept)
        return leaked.addmm_(active, weight.t(), alpha=step_size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """From G = ∂C/∂A_l: (1 − ρL̃) G + ρ (G W_l) ∘ 1[A_{l−1} > 0], ρ Gᵀσ(A_{l−1}) and ρ Σ_i G_i.

        A handle's gradient c adds 2c W_l and 2c b to the last two.
        """
        (left_in, left), task = ctx.left, torch._C._current_graph_task_id()
        of_square = left if left_in == task else None  # not that of a pass that broke
        ctx.ran_in, ctx.left = task, (_NEVER, None)
        # A batch of gradients, as of `torch.autograd.grad(is_grads_batched=True)`, cannot be written in place.
        is_plain = not torch.is_grad_enabled() and not torch._C._functorch.is_legacy_batchedtensor(gradients[0])
        found = _in_place if is_plain else _differentiable
        return *found(ctx, gradients[0], of_square), None, None


def _in_place(ctx: Any, gradient: Tensor, of_square: Tensor | None) -> list[Tensor | None]:
    """Gradients in A_{l−1}, W_l and b."""
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
    """The same gradients, differentiable and for batches of them."""
    representation, _, weight, bias = ctx.saved_tensors
    through = torch.ops.aten.threshold_backward(ctx.step_size * gradient @ weight, representation, 0)
    of_weight = ctx.step_size * gradient.t() @ torch.relu(representation)
    found = [ctx.kept * gradient + through, of_weight, None if bias is None else ctx.step_size * gradient.sum(0)]
    if of_square is not None:
        found[1:] = [of_weight + 2 * of_square * weight, None if bias is None else found[2] + 2 * of_square * bias]
    return [one if wanted else None for one, wanted in zip(found, ctx.needs_input_grad, strict=False)]
