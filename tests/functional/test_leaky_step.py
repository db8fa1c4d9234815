"""One Euler step: the formula, its derivatives of every kind, and the same under every transform that looks into it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import forward_ad

from lightning_leaky.functional import leaky_step
from tests.strategies import generator_of, normal

DEPTH = 3.0


def formula(A, W, b, rho, depth, sigma=torch.relu):
    """The step, entry by entry as the paper writes it, in whatever dtype is given."""
    S = sigma(A)
    if b is not None:
        S, W = torch.cat([S, torch.ones_like(A[..., :1])], dim=-1), torch.cat([W, b[:, None]], dim=1)
    return (1 - rho * depth) * A + rho * torch.einsum("...i,oi->...o", S, W)


def arguments(rows=5, width=4, has_bias=True, seed=0, dtype=torch.float64):
    generator = generator_of(seed)
    A, W, b = (normal(*shape, generator=generator) for shape in ((rows, width), (width, width), (width,)))
    tensors = [tensor.to(dtype).requires_grad_() for tensor in (A, W, b)]
    return tensors if has_bias else [*tensors[:2], None]


rho = torch.tensor(0.2, dtype=torch.float64)


@given(
    rows=st.integers(0, 7),
    width=st.integers(1, 6),
    has_bias=st.booleans(),
    depth=st.floats(0, 8),
    step_size=st.floats(1e-3, 1),
    seed=st.integers(0, 99),
)
def test_value_and_gradients_are_those_of_the_formula(rows, width, has_bias, depth, step_size, seed):
    inputs = arguments(rows, width, has_bias, seed)
    step_size = torch.tensor(step_size, dtype=torch.float64)
    found, wanted = leaky_step(*inputs, step_size, depth), formula(*inputs, step_size, depth)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    sources = [tensor for tensor in inputs if tensor is not None]
    weights = normal(rows, width, generator=generator_of(seed + 1))
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), sources),
        torch.autograd.grad((wanted * weights).sum(), sources),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("has_bias", [True, False])
def test_first_and_second_derivatives_are_those_of_finite_differences(has_bias):
    inputs = arguments(has_bias=has_bias)
    sources = [tensor for tensor in inputs if tensor is not None]

    def step(A, W, b=None):
        return leaky_step(A, W, b, rho, DEPTH)

    assert torch.autograd.gradcheck(step, sources)
    assert torch.autograd.gradgradcheck(step, sources)


def test_only_wanted_gradients_are_formed():
    A, W, b = arguments()
    for frozen in (A, W, b):
        inputs = [tensor.detach().requires_grad_(tensor is not frozen) for tensor in (A, W, b)]
        leaky_step(*inputs, rho, DEPTH).sum().backward()
        assert [tensor.grad is None for tensor in inputs] == [tensor is frozen for tensor in (A, W, b)]


def test_a_nan_stays_where_it_is():
    A, W, b = arguments(rows=3)
    with torch.no_grad():
        A[1, 0] = torch.nan
    output = leaky_step(A, W, b, rho, DEPTH)
    assert torch.isnan(output).any(1).tolist() == [False, True, False]
    output[[0, 2]].sum().backward()
    assert torch.isfinite(A.grad).all()


def test_other_shapes_and_other_activations_follow_the_formula():
    A, W, b = arguments(rows=6)
    wanted = formula(A, W, b, rho, DEPTH)
    torch.testing.assert_close(leaky_step(A.reshape(2, 3, 4), W, b, rho, DEPTH), wanted.reshape(2, 3, 4))
    torch.testing.assert_close(leaky_step(A[0], W, b, rho, DEPTH), wanted[0])
    torch.testing.assert_close(
        leaky_step(A, W, b, rho, DEPTH, "tanh"), formula(A, W, b, rho, DEPTH, torch.tanh), rtol=1e-12, atol=1e-12
    )


def test_a_step_size_can_have_a_gradient():
    A, W, b = arguments()
    step_size = rho.clone().requires_grad_()
    leaky_step(A, W, b, step_size, DEPTH).sum().backward()
    wanted = torch.autograd.functional.jacobian(lambda r: formula(A, W, b, r, DEPTH).sum(), rho)
    torch.testing.assert_close(step_size.grad, wanted)


def test_function_transforms_pass_through():
    A, W, b = arguments()

    def cost(W, A):
        return leaky_step(A, W, b, rho, DEPTH).square().sum()

    def reference(W, A):
        return formula(A, W, b, rho, DEPTH).square().sum()

    torch.testing.assert_close(torch.func.grad(cost)(W, A), torch.func.grad(reference)(W, A))
    torch.testing.assert_close(torch.func.hessian(cost)(W, A), torch.func.hessian(reference)(W, A))
    many = torch.stack([W, 2 * W])
    torch.testing.assert_close(
        torch.func.vmap(cost, in_dims=(0, None))(many, A), torch.stack([reference(one, A) for one in many])
    )


def test_forward_mode_passes_through():
    A, W, b = arguments()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(A.detach(), torch.ones_like(A))
        found = forward_ad.unpack_dual(leaky_step(dual, W.detach(), b.detach(), rho, DEPTH)).tangent
        wanted = forward_ad.unpack_dual(formula(dual, W.detach(), b.detach(), rho, DEPTH)).tangent
    torch.testing.assert_close(found, wanted)


def test_mixed_precision_multiplies_in_its_own_type():
    A, W, b = arguments(rows=8, width=8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = leaky_step(A, W, b, rho.float(), DEPTH)
    output.sum().backward()
    assert output.dtype == torch.float32
    # bfloat16 keeps three digits: some difference there must be.
    assert 1e-4 < (output - formula(A, W, b, rho.float(), DEPTH)).abs().max() < 0.05


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # a TensorBoardLogger that draws a graph uses it
def test_a_traced_step_has_no_python_inside():
    A, W, b = (tensor.detach() for tensor in arguments(dtype=torch.float32))
    traced = torch.jit.trace(lambda A: leaky_step(A, W, b, rho.float(), DEPTH), (A,))
    assert "PythonOp" not in str(traced.graph)
    torch.testing.assert_close(traced(2 * A), formula(2 * A, W, b, rho.float(), DEPTH))
