"""What `EnergyMonitor` adds to networks of others.

On a GPU these are GPT-2 small, and a ViT-B/16 of `torch.nn.TransformerEncoder`; on a CPU small ones of this class.
"""

from __future__ import annotations

import importlib
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.environment import package_version
from benchmarks.fits import Fit, Side, fits_in_turn
from benchmarks.monitoring import READ, Epoch, callback_row, epochs_of, validation_row
from benchmarks.networks import LEARNING_RATE
from benchmarks.sizes import Settings, Size
from benchmarks.tables import Row, ratio_row
from lightning_leaky import EnergyMonitor

PATCH, HEAD = 16, 64
GIB = 2**30


@dataclass(frozen=True)
class Stack(Size):
    """A stack of blocks.

    Attributes:
        positions: Tokens or patches of a sample.
        classes: Tokens of the vocabulary, or classes of images.
    """

    positions: int = 0
    classes: int = 0

    @property
    def reduced(self) -> Stack:
        """One of the same kind that a CPU trains in milliseconds."""
        small = replace(self, samples=2, width=HEAD, num_layers=3, positions=16, classes=10)
        return replace(small, name=f"{self.name}-reduced")


GPT2 = Stack("GPT-2 small", 8, 768, 12, 0.0, steps=100, precision="bf16-mixed", positions=1024, classes=50257)
VIT = Stack("ViT-B/16", 64, 768, 12, 0.0, steps=100, precision="bf16-mixed", positions=196, classes=1000)

SMALL_GPT = Stack("GPT, width 128", 16, 128, 6, 0.0, steps=100, positions=128, classes=256)
SMALL_VIT = Stack("ViT, width 192", 16, 192, 6, 0.0, steps=100, positions=64, classes=10)
VALIDATION_SAMPLES = 2000


class Task(LightningModule):
    """A module that trains with AdamW on the loss of a batch."""

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of a batch."""
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss."""
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss."""
        self.log("val_loss", self.loss(batch), batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=LEARNING_RATE)


class Gpt2(Task):
    """The model of transformers with random weights."""

    def __init__(self, size: Stack) -> None:
        super().__init__()
        transformers = importlib.import_module("transformers")
        blocks = {"n_embd": size.width, "n_layer": size.num_layers, "n_head": size.width // HEAD}
        ends = {"vocab_size": size.classes, "n_positions": size.positions, "bos_token_id": 0, "eos_token_id": 0}
        self.model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**blocks, **ends))

    def loss(self, batch: Tensor) -> Tensor:
        """The cross-entropy of the next token."""
        loss: Tensor = self.model(input_ids=batch, labels=batch).loss
        return loss


def encoder_of(size: Stack) -> nn.TransformerEncoder:
    """Blocks and a norm, as one writes them with torch alone."""
    block = nn.TransformerEncoderLayer(
        size.width, size.width // HEAD, 4 * size.width, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(block, size.num_layers, nn.LayerNorm(size.width), enable_nested_tensor=False)


class Gpt(Task):
    """A language model as one writes it with torch alone."""

    def __init__(self, size: Stack) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.classes, size.width)
        self.places = nn.Parameter(0.02 * torch.randn(1, size.positions, size.width))
        self.encoder = encoder_of(size)
        self.head = nn.Linear(size.width, size.classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits."""
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=tokens.device)
        hidden = self.encoder(self.tokens(tokens) + self.places, mask=mask, is_causal=True)
        logits: Tensor = self.head(hidden)
        return logits

    def loss(self, batch: Tensor) -> Tensor:
        """The cross-entropy of the next token."""
        return F.cross_entropy(self(batch)[:, :-1].flatten(0, 1), batch[:, 1:].flatten())


class Vit(Task):
    """A vision transformer as one writes it with torch alone."""

    def __init__(self, size: Stack) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, size.width, PATCH, stride=PATCH)
        self.first = nn.Parameter(torch.zeros(1, 1, size.width))
        self.places = nn.Parameter(0.02 * torch.randn(1, 1 + size.positions, size.width))
        self.encoder = encoder_of(size)
        self.head = nn.Linear(size.width, size.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        tokens = self.patches(images).flatten(2).mT
        tokens = torch.cat([self.first.expand(len(tokens), -1, -1), tokens], dim=1) + self.places
        logits: Tensor = self.head(self.encoder(tokens)[:, 0])
        return logits

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The cross-entropy of the class."""
        images, labels = batch
        return F.cross_entropy(self(images), labels)


def texts(size: Stack, device: torch.device) -> Tensor:
    """Random tokens."""
    return torch.randint(size.classes, (size.samples, size.positions), device=device)


def images(size: Stack, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random images and labels."""
    side, labels = PATCH * math.isqrt(size.positions), torch.randint(size.classes, (size.samples,), device=device)
    return torch.randn(size.samples, 3, side, side, device=device), labels


class Network(NamedTuple):
    """What is trained on what, and the names of its blocks."""

    size: Stack
    module: Callable[[Stack], Task]
    batch: Callable[[Any, torch.device], Any]
    blocks: str


NETWORKS = (
    Network(GPT2, Gpt2, texts, "model.transformer.h.*"),
    Network(VIT, Vit, images, "encoder.layers.*"),
)
ON_A_CPU = (
    Network(SMALL_GPT, Gpt, texts, "encoder.layers.*"),
    Network(SMALL_VIT, Vit, images, "encoder.layers.*"),
)


def run(settings: Settings) -> Iterator[Row]:
    """Fits in turn and validation epochs in turn; a quick run takes reduced networks, on a CPU those of a GPU too.

    In fits the monitor finds the blocks, in the first logging period. For an epoch alone it is told their names.
    """
    is_cpu = settings.device.type == "cpu"
    for network in NETWORKS if settings.quick or not is_cpu else ():
        size = network.size.reduced if settings.quick else network.size
        if network.module is Gpt2 and not package_version("transformers"):
            yield Row("EnergyMonitor", size.name, note="transformers is not installed")
        else:
            side = Side(partial(network.module, size), batch=network.batch)
            yield from _fitting(side, size, settings)
            yield validation_row(side, size, settings, Epoch(), network.blocks)
    for network in ON_A_CPU if is_cpu else ():
        size = network.size.reduced if settings.quick else network.size
        side = Side(partial(network.module, size), batch=network.batch)
        yield from _fitting_on_a_cpu(side, size, settings)
        for epoch in epochs_of([VALIDATION_SAMPLES], "samples", size, settings):
            yield validation_row(side, size, settings, epoch, network.blocks)


def _fitting_on_a_cpu(side: Side, size: Size, settings: Settings) -> Iterator[Row]:
    """Whole fits, and what the steps that are read and logged take longer than with logging alone, in other steps."""
    sides = {"without": side, "with": replace(side, callbacks=lambda: [EnergyMonitor()])}
    fits = fits_in_turn(sides, size, settings)
    yield callback_row("EnergyMonitor", size, settings, fits["with"], fits["without"], READ, 1.02)
    pairs = zip(fits["with"], fits["without"], strict=True)
    extra = [one.extra(READ) - other.extra(READ) for one, other in pairs]
    yield ratio_row("one reading", size.name, "one training step", extra, [one.ordinary(READ) for one in fits["with"]])


def _fitting(side: Side, size: Size, settings: Settings) -> list[Row]:
    default, every = "EnergyMonitor", "EnergyMonitor(every_n_steps=1)"
    sides = {
        "without": side,
        default: replace(side, callbacks=lambda: [EnergyMonitor()]),
        every: replace(side, callbacks=lambda: [EnergyMonitor(every_n_steps=1)]),
    }
    fits = fits_in_turn(sides, size, settings)
    rows = {name: _row(name, size, fits[name], fits["without"]) for name in (default, every)}
    pairs = zip(fits[every], fits["without"], strict=True)
    extra = statistics.median(one.per_step / other.per_step - 1 for one, other in pairs)
    rows[every].measures = {"one reading / a step": extra} | rows[every].measures
    return list(rows.values())


def _row(name: str, size: Size, fits: Sequence[Fit], without: Sequence[Fit]) -> Row:
    """Row of the mean time of a training step, and of peak memory on a GPU."""
    ours, theirs = ([one.per_step for one in side] for side in (fits, without))
    peaks: Mapping[str, Sequence[Fit]] = {"peak, GiB": fits, "peak without, GiB": without}
    measures = {title: max(one.peak for one in side) / GIB for title, side in peaks.items()}
    shown = measures if any(measures.values()) else None
    return ratio_row(f"a training step with {name}", size.name, "the same without", ours, theirs, measures=shown)
