"""Layouts: every way to hold the same samples gives the same rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_leaky import Layout

IMAGES = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)  # n, c, h, w
PIXELS = torch.stack([IMAGES[n, :, y, x] for n in range(2) for y in range(4) for x in range(5)])
TOKENS = torch.arange(2 * 3 * 4.0).reshape(2, 3, 4)  # n, t, c
MASK = torch.tensor([[True, True, False], [False, True, False]])
REAL = torch.stack([TOKENS[0, 0], TOKENS[0, 1], TOKENS[1, 1]])


@pytest.mark.parametrize(
    ("axes", "tensor", "rows"),
    [
        (None, TOKENS[0], TOKENS[0]),
        (None, TOKENS, TOKENS.reshape(6, 4)),
        ("tnc", TOKENS.transpose(0, 1), TOKENS.reshape(6, 4)),
        ("nct", TOKENS.transpose(1, 2), TOKENS.reshape(6, 4)),
        (None, IMAGES, PIXELS),
        (None, IMAGES.to(memory_format=torch.channels_last), PIXELS),
        ("nhwc", IMAGES.permute(0, 2, 3, 1), PIXELS),
        ("hwnc", IMAGES.permute(2, 3, 0, 1), PIXELS),
        (None, IMAGES[:, :, None], PIXELS),
        ("cn", TOKENS[0].T, TOKENS[0]),
    ],
)
def test_axes_are_told_or_taken_from_their_number(axes, tensor, rows):
    assert torch.equal(Layout(axes).rows(tensor), rows)
    assert Layout(axes).width(tensor) == rows.shape[1]


@pytest.mark.parametrize(("axes", "tensor"), [(None, TOKENS), ("tnc", TOKENS.transpose(0, 1))])
def test_padding_has_no_row(axes, tensor):
    """The mask is (batch, tokens) whatever the axes."""
    assert torch.equal(Layout(axes).rows(tensor, MASK), REAL)
    assert torch.equal(Layout(axes).rows(tensor, MASK.long()), REAL)


def test_means_of_samples_leave_padding_out():
    means = Layout(per_sample=True).rows(TOKENS, MASK)
    assert torch.equal(means, torch.stack([TOKENS[0, :2].mean(0), TOKENS[1, 1]]))
    assert torch.equal(Layout(per_sample=True).rows(IMAGES), IMAGES.mean((2, 3)))
    assert torch.equal(Layout(per_sample=True).rows(TOKENS[0]), TOKENS[0])


def test_a_sample_that_is_all_padding_has_no_mean():
    mask = MASK.clone()
    mask[1] = False
    assert torch.equal(Layout(per_sample=True).rows(TOKENS, mask), TOKENS[0, :2].mean(0, keepdim=True))


def test_infinite_padding_does_not_spoil_a_mean():
    spoilt = torch.where(MASK[..., None], TOKENS, torch.inf)
    assert Layout(per_sample=True).rows(spoilt, MASK).isfinite().all()


def test_means_are_taken_in_float32_at_least():
    """bf16 sums of thousands of positions stall."""
    hidden = torch.ones(1, 5000, 2, dtype=torch.bfloat16)
    hidden[:, ::2] = 3
    assert torch.equal(Layout(per_sample=True).rows(hidden), torch.full((1, 2), 2.0))


@given(samples=st.integers(1, 40), positions=st.integers(1, 12), most=st.integers(1, 60))
def test_thinning_keeps_at_most_so_many_rows_and_no_favourite_position(samples, positions, most):
    tensor = torch.stack(torch.meshgrid(torch.arange(samples), torch.arange(positions), indexing="ij"), -1).double()
    before = torch.get_rng_state()
    rows = Layout(max_samples=most).rows(tensor)
    assert torch.equal(torch.get_rng_state(), before)
    assert 1 <= len(rows) <= most
    if samples * positions <= most:
        assert len(rows) == samples * positions
    else:
        where = rows[:, 0] * positions + rows[:, 1]
        stride = torch.diff(where).unique()
        assert len(stride) <= 1
        # One position after another: as many of them as there are rows, until each has been seen.
        assert len(rows[:, 1].unique()) == min(len(rows), positions)


def test_the_same_rows_of_two_representations_are_kept():
    layout = Layout(max_samples=7)
    first, second = torch.randn(5, 6, 4), torch.randn(5, 6, 4)
    both = layout.rows(torch.cat([first, second], dim=-1))
    assert torch.equal(torch.cat([layout.rows(first), layout.rows(second)], dim=-1), both)


@pytest.mark.parametrize("axes", ["tw", "ntcc", "n c", "", "nc1", "c"])
def test_axes_must_be_letters_with_batch_and_channels(axes):
    with pytest.raises(ValueError, match=f"`axes` must be distinct letters.*got {axes!r}"):
        Layout(axes)


@pytest.mark.parametrize(("axes", "shape"), [("tnc", (2, 3)), (None, (2,)), (None, (1, 2, 3, 4, 5, 6))])
def test_a_tensor_with_other_axes_is_named(axes, shape):
    with pytest.raises(ValueError, match="`layout` must name the axes of a representation of shape"):
        Layout(axes).rows(torch.zeros(shape))


def test_a_mask_of_other_positions_is_named():
    with pytest.raises(ValueError, match=r"`padding_mask` must have shape \(2, 3\).*got \(2, 4\)"):
        Layout().rows(TOKENS, torch.ones(2, 4))
    assert torch.equal(Layout().rows(TOKENS[0], torch.ones(3, 9)), TOKENS[0])  # no positions, no padding


def test_max_samples_must_be_positive():
    with pytest.raises(ValueError, match="`max_samples` must be at least 1, got 0"):
        Layout(max_samples=0)


@pytest.mark.parametrize(
    ("layout", "all_positions"),
    [(Layout("tnc"), True), (Layout(max_samples=3), False), (Layout(per_sample=True), False)],
)
def test_momenta_want_every_position(layout, all_positions):
    assert layout.reads_all_positions is all_positions


@pytest.mark.parametrize(
    ("axes", "shape"), [(None, (4, 3, 2)), ("tnc", (3, 4, 2)), ("nchw", (4, 2, 3, 1)), (None, (4, 2))]
)
@pytest.mark.parametrize("per_sample", [False, True])
def test_repeated_samples_have_no_row(axes, shape, per_sample):
    """Wherever the batch is; with padding, what is neither repeated nor padding."""
    if per_sample and len(shape) == 2:
        return
    layout, tensor = Layout(axes, per_sample), torch.randn(shape)
    fresh = torch.tensor([True, True, True, False])
    first = tensor.narrow("nc".index("n") if axes is None else axes.index("n"), 0, 3)
    assert torch.equal(layout.rows(tensor, None, fresh), layout.rows(first))
    if tensor.ndim == 3:
        keep = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1]]).bool()
        assert torch.equal(layout.rows(tensor, keep, fresh), layout.rows(first, keep[:3]))


@pytest.mark.parametrize("shape", [(8, 4, 2), (12, 2)])
def test_a_tensor_of_another_number_of_samples_keeps_its_rows(shape):
    """Tokens first without saying so, or two views in one: nobody knows which rows repeat."""
    tensor = torch.randn(shape)
    assert torch.equal(Layout().rows(tensor, None, torch.tensor([True, True, True, False])), Layout().rows(tensor))
