"""Which samples a rule is given: (N, w), samples in rows and neurons in columns, without padding."""

import warnings
from itertools import product

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from lightning_leaky import StepSizeAdapter, StepSizeHook, make_leaky
from lightning_leaky.reading.layout import Layout

WIDTH, TOKENS = 3, 4
REAL = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])


class Block(nn.Module):
    """Acts on the last axis or, as a convolution of 1 × 1, on the channels of images."""

    def __init__(self, of_images=False):
        super().__init__()
        self.map = nn.Conv2d(WIDTH, WIDTH, 1) if of_images else nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden, src_key_padding_mask=None):
        return hidden + self.map(hidden).tanh()


class Blocks(LightningModule):
    """Two blocks; a batch is a dictionary, whose entry "padding" the blocks are told by keyword."""

    def __init__(self, of_images=False):
        super().__init__()
        self.blocks = nn.ModuleList([Block(of_images), Block(of_images)])

    def forward(self, batch):
        hidden = batch["hidden"]
        for block in self.blocks:
            told = {"src_key_padding_mask": batch["padding"]} if "padding" in batch else {}
            hidden = block(hidden, **told)
        return hidden

    def training_step(self, batch, batch_idx):
        return self(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Seen:
    """A rule that keeps the matrices it is given."""

    def __init__(self):
        self.pairs = []

    def sums(self, previous, current):
        self.pairs.append((previous.clone(), current.clone()))
        return torch.stack([current.square().sum()])

    def distances(self, sums, step_sizes, effective_depth):
        return sums[:, 0]


def blocks(of_images=False):
    torch.manual_seed(0)
    return make_leaky(Blocks(of_images), "blocks.*")


def with_hook(batch, model=None, see=None, forward=None, **settings):
    """Adapt once, after two passes of a loop of one's own; returns the step-sizes."""
    model = blocks(batch["hidden"].ndim == 4) if model is None else model
    forward = model if forward is None else forward
    optimizer = model.configure_optimizers()
    hook = StepSizeHook(model, every_n_steps=1, damping=1.0, **settings).attach(optimizer)
    if see is not None:
        hook.see(see)
    for _ in range(2):
        forward(batch).square().mean().backward()
    optimizer.step()
    return model.leaky_steps.step_sizes


@pytest.fixture
def with_adapter(make_trainer):
    """Adapt once, in a fit."""

    def run(batch, **settings):
        model = blocks(batch["hidden"].ndim == 4)
        trainer = make_trainer(StepSizeAdapter(every_n_steps=1, damping=1.0, **settings), max_epochs=1)
        trainer.fit(model, DataLoader([batch], batch_size=None))
        return model.leaky_steps.step_sizes

    return run


def compiled(model):
    """Code for any number of tokens."""
    torch._dynamo.reset()
    return torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)


def rows_of(shape, places, axis):
    """Numbers of a shape, and what stands along one of its axes at some places, one row a place."""
    hidden = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return hidden, torch.stack([hidden.movedim(axis, -1)[place] for place in places])


TOKEN_PLACES = list(product(range(2), range(TOKENS)))
REAL_PLACES = [place for place in TOKEN_PLACES if REAL[place]]
PADDING = {"padding": REAL == 0}
SAMPLES = {
    "(N, w)": ((5, WIDTH), list(range(5)), {}, {}),
    "(batch, tokens, w)": ((2, TOKENS, WIDTH), TOKEN_PLACES, {}, {}),
    "(tokens, batch, w)": (
        (TOKENS, 2, WIDTH),
        [(token, sample) for sample, token in TOKEN_PLACES],
        {},
        {"layout": Layout("tnc")},
    ),
    "(batch, w, height, width)": ((2, WIDTH, 4, 5), list(product(range(2), range(4), range(5))), {}, {}),
    "padding by keyword": ((2, TOKENS, WIDTH), REAL_PLACES, PADDING, {}),
    "padding by keyword, tokens first": (
        (TOKENS, 2, WIDTH),
        [(token, sample) for sample, token in REAL_PLACES],
        PADDING,
        {"layout": Layout("tnc")},
    ),
    "padding that is read": ((2, TOKENS, WIDTH), TOKEN_PLACES, PADDING, {"padding_mask": None}),
    "padding by the batch": (
        (2, TOKENS, WIDTH),
        REAL_PLACES,
        {"attention_mask": REAL},
        {"padding_mask": "attention_mask"},
    ),
    "padding by a function": (
        (2, TOKENS, WIDTH),
        REAL_PLACES,
        {"mask": REAL},
        {"padding_mask": lambda batch: batch["mask"]},
    ),
}


@pytest.mark.parametrize("case", SAMPLES)
def test_a_rule_is_given_samples_in_rows_and_neurons_in_columns(with_adapter, case):
    shape, places, told, settings = SAMPLES[case]
    hidden, expected = rows_of(shape, places, axis=1 if len(shape) == 4 else -1)
    batch = {"hidden": hidden, **told}
    for run in (with_adapter, lambda *args, **settings: with_hook(*args, see=batch, **settings)):
        rule = Seen()
        run(batch, rule=rule, **settings)
        (before, between), (taken, _) = rule.pairs[-2:]  # before them, others to find the shape of the sums
        assert torch.equal(before, expected.double())
        assert between.shape == expected.shape
        assert torch.equal(taken, between)


class Lengths:
    """A rule of lengths of rows: unlike those of this package it feels what a row is."""

    def sums(self, previous, current):
        return (current - previous).norm(dim=1).sum()[None]

    def distances(self, sums, step_sizes, effective_depth):
        return sums[:, 0] / step_sizes


def test_images_adapt_as_their_pixels_do_in_rows():
    images, pixels = rows_of((2, WIDTH, 4, 5), list(product(range(2), range(4), range(5))), axis=1)
    of_rows, of_images = blocks(), blocks(of_images=True)
    for row, image in zip(of_rows.blocks, of_images.blocks, strict=True):
        image.map.weight.data, image.map.bias.data = row.map.weight.data[..., None, None], row.map.bias.data
    step_sizes = with_hook({"hidden": images}, of_images, rule=Lengths())
    torch.testing.assert_close(step_sizes, with_hook({"hidden": pixels}, of_rows, rule=Lengths()))
    assert float(step_sizes.std()) > 1e-3


def test_a_layer_that_is_told_nothing_has_no_padding():
    """Not that of the micro-batch before."""
    rule, (hidden, _) = Seen(), rows_of((2, TOKENS, WIDTH), TOKEN_PLACES, -1)
    passes = iter([PADDING, {}])
    model = blocks()
    with_hook({"hidden": hidden}, model, forward=lambda batch: model(batch | next(passes)), rule=rule)
    assert [len(current) for _, current in rule.pairs[-4:]] == [5, 5, 8, 8]


class Tower(nn.Module):
    """Blocks in a module that is told of the padding, or is not."""

    def __init__(self):
        super().__init__()
        self.inner = Blocks()

    def forward(self, hidden, attention_mask=None):
        return self.inner({"hidden": hidden})


@pytest.mark.parametrize(("part", "expected"), [("texts", 5), ("patches", 8)])
def test_a_tower_has_the_mask_that_it_is_given(part, expected):
    rule, (hidden, _) = Seen(), rows_of((2, TOKENS, WIDTH), TOKEN_PLACES, -1)
    model = nn.ModuleDict({"texts": Tower(), "patches": Tower()})
    make_leaky(model, f"{part}.inner.blocks.*")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    StepSizeHook(model, every_n_steps=1, rule=rule).attach(optimizer)
    (model["texts"](hidden, attention_mask=REAL).sum() + model["patches"](hidden).sum()).backward()
    assert len(rule.pairs[-1][0]) == expected


def test_a_checkpointed_path_adapts_as_another():
    """Layers run twice, and are told their padding twice."""
    batch, model = {"hidden": rows_of((2, TOKENS, WIDTH), TOKEN_PLACES, -1)[0], **PADDING}, blocks()
    found = with_hook(batch, model, forward=lambda batch: checkpoint(model, batch, use_reentrant=False))
    torch.testing.assert_close(found, with_hook(batch), rtol=1e-12, atol=0)


# Compiled code, whose number of rows must be known beforehand.


@pytest.mark.parametrize(
    ("told", "settings"),
    [
        ({}, {}),
        (PADDING, {}),
        (PADDING, {"rule": "switches", "layout": Layout(per_sample=True)}),
        ({}, {"layout": Layout(max_samples=3)}),
        ({}, {"rule": "relative_speed"}),
        (PADDING, {"rule": "relative_speed"}),
    ],
)
def test_compiled_code_adapts_as_eager_code_does(told, settings):
    batch = {"hidden": rows_of((2, TOKENS, WIDTH), TOKEN_PLACES, -1)[0], **told}
    expected, model = with_hook(batch, **settings), blocks()
    found = with_hook(batch, model, forward=compiled(model), **settings)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert float(found.std()) > 1e-3


# What cannot be read stops nobody's training.


class Fails(Seen):
    """A rule with a mistake."""

    def sums(self, previous, current):
        raise IndexError("no such neuron")


@pytest.mark.parametrize("how", [lambda model: model, compiled], ids=["eager", "compiled"])
@pytest.mark.parametrize(
    ("settings", "see", "reason"),
    [
        ({"layout": Layout("nchw")}, None, r"Layer 1 cannot be read: `layout` must name the axes"),
        (
            {"padding_mask": "real"},
            {"real": torch.ones(2, 9)},
            r"Layer 1 cannot be read: `padding_mask` must have shape \(2, 4\)",
        ),
        ({"padding_mask": "mask"}, {}, r"Layer 1 cannot be read: `padding_mask` must be a key of the batch"),
        ({"rule": Fails()}, None, "Layer 1 cannot be read: no such neuron"),
    ],
)
def test_what_cannot_be_read_is_told_once_and_changes_nothing(settings, see, reason, how):
    model, (hidden, _) = blocks(), rows_of((2, TOKENS, WIDTH), TOKEN_PLACES, -1)
    with pytest.warns(UserWarning, match=reason) as caught:
        step_sizes = with_hook({"hidden": hidden}, model, see, how(model), **settings)
    assert torch.equal(step_sizes, torch.full_like(step_sizes, 0.5))
    said = [str(one.message) for one in caught if "Step-sizes left" in str(one.message)]
    assert len(said) == 1
    assert "Layer 2" not in said[0]


def test_a_complaint_is_of_every_step_on_its_batch_and_of_no_other():
    model, (hidden, _) = blocks(), rows_of((2, TOKENS, WIDTH), TOKEN_PLACES, -1)
    optimizer, same = model.configure_optimizers(), object()
    hook = StepSizeHook(model, every_n_steps=1, padding_mask="mask").attach(optimizer)
    for batch, adapts in (({}, False), (same, False), ({"mask": REAL}, True), (None, True)):
        before = model.leaky_steps.step_sizes.clone()
        if batch is not same:
            hook.see(batch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model({"hidden": hidden}).sum().backward()
            optimizer.step()
        assert torch.equal(before, model.leaky_steps.step_sizes) != adapts
