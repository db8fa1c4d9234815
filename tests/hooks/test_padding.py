"""Whose padding mask is whose."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from lightning_leaky import measure_path
from lightning_leaky.hooks.capture import PathCapture
from tests.blocks import Block

TOKENS, REAL = torch.randn(4, 6, 8), torch.arange(6) < torch.tensor([2, 6, 3, 5])[:, None]


class Tower(nn.Module):
    """Blocks that are told nothing; who calls the tower may tell it."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(8), Block(8))

    def forward(self, hidden, attention_mask=None):
        return self.blocks(hidden)


class Told(nn.Module):
    """Blocks around which only the model knows the padding."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(8), Block(8))

    def forward(self, hidden, attention_mask):
        return self.blocks(hidden)


class Traced(Told):
    """Beside the blocks a module of TorchScript, which keeps no names of arguments."""

    def __init__(self):
        super().__init__()
        self.traced = torch.jit.trace(nn.Linear(8, 8), TOKENS)

    def forward(self, hidden, attention_mask):
        return super().forward(self.traced(hidden), attention_mask)


class TwoTowers(nn.Module):
    """As many patches as tokens, so that the mask of the texts would fit."""

    def __init__(self, texts_first):
        super().__init__()
        self.texts, self.patches, self.texts_first = Tower(), Tower(), texts_first

    def forward(self, texts, patches, attention_mask):
        if self.texts_first:
            return self.texts(texts, attention_mask).sum() + self.patches(patches).sum()
        return self.patches(patches).sum() + self.texts(texts, attention_mask=attention_mask).sum()


class Pooled(nn.Module):
    """A mask that goes to the pooling alone: nothing says that it is that of the blocks."""

    def __init__(self):
        super().__init__()
        self.blocks, self.pool = nn.Sequential(Block(8), Block(8)), Pool()

    def forward(self, hidden, attention_mask):
        return self.pool(self.blocks(hidden), attention_mask)


class Pool(nn.Module):
    def forward(self, hidden, attention_mask):
        return (hidden * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True)


def read(model, batch, layers, **settings):
    return measure_path(model, [batch], ["kinetic_energy"], layers=layers, **settings)["kinetic_energy"]


def right(blocks, rows):
    return measure_path(blocks, [rows], ["kinetic_energy"], layers="*")["kinetic_energy"]


@pytest.mark.parametrize("mask", [REAL, REAL.long(), REAL.float()])
def test_a_mask_that_the_model_is_given_is_that_of_its_layers(mask):
    model = Told()
    found = read(model, {"hidden": TOKENS, "attention_mask": mask}, "blocks.*")
    torch.testing.assert_close(found, right(model.blocks, TOKENS[REAL]))


def test_a_module_without_a_signature_is_given_no_mask():
    """A model with one is read, with the mask that others are given."""
    model = Traced()
    found = read(model, {"hidden": TOKENS, "attention_mask": REAL}, "blocks.*")
    torch.testing.assert_close(found, right(model.blocks, model.traced(TOKENS)[REAL]))


@pytest.mark.parametrize("texts_first", [True, False])
def test_the_mask_of_the_texts_does_not_thin_the_patches(texts_first):
    model, patches = TwoTowers(texts_first), torch.randn(4, 6, 8)
    batch = {"texts": TOKENS, "patches": patches, "attention_mask": REAL}
    found = read(model, batch, "patches.blocks.*")
    torch.testing.assert_close(found, right(model.patches.blocks, patches.reshape(-1, 8)))
    found = read(model, batch, "texts.blocks.*")
    torch.testing.assert_close(found, right(model.texts.blocks, TOKENS[REAL]))


@pytest.mark.parametrize("texts_first", [True, False])
def test_the_mask_of_the_texts_does_not_thin_patches_that_are_found(texts_first):
    """In the first batch, too, which a search has seen before the path was known."""
    model, patches = TwoTowers(texts_first), torch.randn(4, 6, 8)
    model.texts.requires_grad_(False)  # a path that is found is one that is trained
    batch = {"texts": TOKENS, "patches": patches, "attention_mask": REAL}
    found = measure_path(model, [batch], ["kinetic_energy"])
    assert found.names == ("patches.blocks.0", "patches.blocks.1")
    torch.testing.assert_close(found["kinetic_energy"], right(model.patches.blocks, patches.reshape(-1, 8)))


class Asking(Block):
    """A block that is given the mask itself."""

    def forward(self, hidden, attention_mask):
        return super().forward(hidden)


def test_a_mask_that_a_wrapped_layer_is_given_by_position():
    """The wrapper itself takes anything."""
    model = nn.Sequential(checkpoint_wrapper(Asking(8)))
    capture = PathCapture(list(model), model=model).attach()
    capture.arm()
    model[0](TOKENS, REAL)
    capture.settle()
    assert torch.equal(capture.passages[0].real[0], REAL)


def test_a_mask_that_went_elsewhere_is_taken_by_the_users_word():
    model, batch = Pooled(), {"hidden": TOKENS, "attention_mask": REAL.long()}
    torch.testing.assert_close(read(model, batch, "blocks.*"), right(model.blocks, TOKENS.reshape(-1, 8)))
    found = read(model, batch, "blocks.*", padding_mask="attention_mask")
    torch.testing.assert_close(found, right(model.blocks, TOKENS[REAL]))


def test_each_pass_has_its_own_mask():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.tower = Tower()

        def forward(self, hidden):
            return self.tower(hidden, REAL), self.tower(hidden.flip(0), ~REAL), self.tower(hidden)

    model = Twice()
    rows = torch.cat([TOKENS[REAL], TOKENS.flip(0)[~REAL], TOKENS.reshape(-1, 8)])
    torch.testing.assert_close(read(model, TOKENS, "tower.blocks.*"), right(model.tower.blocks, rows))


def test_a_mask_of_who_may_look_at_whom_is_no_padding():
    model = Told()
    batch = {"hidden": TOKENS, "attention_mask": torch.ones(4, 1, 6, 6).tril()}
    torch.testing.assert_close(read(model, batch, "blocks.*"), right(model.blocks, TOKENS.reshape(-1, 8)))


class Causal(Block):
    def forward(self, hidden, attention_mask):
        return super().forward(hidden)


@pytest.mark.parametrize("samples", [4, 6])
def test_a_mask_of_tokens_by_tokens_is_no_padding(samples):
    model = nn.ModuleDict({"blocks": nn.ModuleList([Causal(8), Causal(8)])})
    mask = torch.ones(6, 6).tril()
    model.forward = lambda hidden: model["blocks"][1](model["blocks"][0](hidden, mask), mask)
    tokens = torch.randn(samples, 6, 8)
    clean = nn.Sequential(Block(8), Block(8))
    clean.load_state_dict(model["blocks"].state_dict())
    torch.testing.assert_close(read(model, tokens, "blocks.*"), right(clean, tokens.reshape(-1, 8)))


def test_a_mask_that_no_module_is_given_by_name_is_told_of():
    class Unnamed(Told):
        def forward(self, hidden, mask):
            return self.blocks(hidden)

    from lightning_leaky.paths.block_path import path_of
    from lightning_leaky.reading.observer import PathObserver
    from lightning_leaky.reading.passed_batch import Batch
    from lightning_leaky.reading.settings import ReadingSettings

    model = Unnamed()
    observer = PathObserver(model, path_of(model, "blocks.*"), ReadingSettings(["kinetic_energy"])).attach()
    observer.arm(Batch({"hidden": TOKENS, "attention_mask": REAL}))
    model(TOKENS, REAL)
    with pytest.warns(UserWarning, match="holds an `attention_mask`, which neither .* padding is read"):
        observer.drain()
