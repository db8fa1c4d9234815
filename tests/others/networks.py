"""Networks that are not ours, as their users write them, with a batch and the blocks that one would name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from lightning_leaky import Layout

VOCABULARY, CLASSES, TOKENS, WIDTH = 20, 4, 6, 16


class Task(LightningModule):
    """A module that trains with SGD on the loss of a batch."""

    def __init__(self, model: nn.Module | None = None, weight_decay: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.weight_decay_of_sgd = weight_decay

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, weight_decay=self.weight_decay_of_sgd)


# Hugging Face.


class HuggingFaceTask(Task):
    """A model of transformers that is given its labels and returns its loss."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(**batch).logits

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(**batch).loss


_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_SMALL = {"hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
# Larger weights than those of real configurations, so that three layers do something.
_LIVELY = {"initializer_range": 0.2}


def vit(**settings: float) -> Task:
    config = ViTConfig(image_size=16, patch_size=8, num_labels=CLASSES, **_SMALL, **_NO_DROPOUT, **_LIVELY)
    return HuggingFaceTask(ViTForImageClassification(config), **settings)


def bert(**settings: float) -> Task:
    config = BertConfig(vocab_size=VOCABULARY, num_labels=CLASSES, **_SMALL, **_NO_DROPOUT, **_LIVELY)
    return HuggingFaceTask(BertForSequenceClassification(config), **settings)


def gpt2(**settings: float) -> Task:
    sizes = {"vocab_size": VOCABULARY, "n_positions": 8, "n_embd": WIDTH, "n_layer": 3, "n_head": 2}
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **sizes, **tokens, **_LIVELY)
    return HuggingFaceTask(GPT2LMHeadModel(config), **settings)


def llama(**settings: float) -> Task:
    config = LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=1, pad_token_id=0, **_SMALL, **_LIVELY)
    return HuggingFaceTask(LlamaForCausalLM(config), **settings)


def convnext(**settings: float) -> Task:
    """Two stages, of two and three blocks, with a layer that halves the image before each."""
    sizes = {"image_size": 16, "patch_size": 2, "num_stages": 2, "depths": [2, 3], "hidden_sizes": [4, 6]}
    config = ConvNextConfig(num_labels=CLASSES, layer_scale_init_value=0.5, **sizes, **_LIVELY)
    return HuggingFaceTask(ConvNextForImageClassification(config), **settings)


# torch.nn.TransformerEncoder.


class EncoderTask(Task):
    """Classifies sequences with a `torch.nn.TransformerEncoder` of either axis order."""

    def __init__(self, batch_first: bool, weight_decay: float = 0.0) -> None:
        super().__init__(weight_decay=weight_decay)
        self.batch_first = batch_first
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, dim_feedforward=32, dropout=0.0, batch_first=batch_first)
        # Sequences first, torch has no use for nested tensors and would warn.
        self.encoder = nn.TransformerEncoder(layer, num_layers=3, enable_nested_tensor=batch_first)
        # All layers are copies of one: a user trains them apart, here they start apart.
        for parameter in self.encoder.parameters():
            nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        tokens, padding = batch["tokens"], batch["padding"]
        if self.batch_first:
            hidden = self.encoder(self.embedding(tokens), src_key_padding_mask=padding)
        else:
            hidden = self.encoder(self.embedding(tokens.T), src_key_padding_mask=padding).transpose(0, 1)
        return self.head(hidden.masked_fill(padding[..., None], 0).sum(1) / (~padding).sum(1, keepdim=True))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(self(batch), batch["label"])


# A convolutional network.


class BasicBlock(nn.Module):
    """The block of ResNet-18."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """ResNet-18 with narrow stages."""

    def __init__(self, widths: tuple[int, ...] = (4, 6, 8, 10)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._stage(widths[0], widths[0], stride=1)
        self.layer2 = self._stage(widths[0], widths[1], stride=2)
        self.layer3 = self._stage(widths[1], widths[2], stride=2)
        self.layer4 = self._stage(widths[2], widths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], CLASSES)

    @staticmethod
    def _stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(in_channels, channels, stride), BasicBlock(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


class ImageTask(Task):
    """Classifies pairs of images and labels."""

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.model(batch[0])


def resnet(**settings: float) -> Task:
    return ImageTask(ResNet(), **settings)


# Batches.


def images(size: int) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 3, 16, 16), torch.randint(CLASSES, (size,))


def images_by_name(size: int) -> dict[str, Tensor]:
    pixels, labels = images(size)
    return {"pixel_values": pixels, "labels": labels}


def _tokens(size: int) -> Tensor:
    return torch.randint(1, VOCABULARY, (size, TOKENS))


def _is_real(size: int) -> Tensor:
    """Sequences of 6, 4, 3, 5, 6, … real tokens, padded on the right."""
    lengths = torch.tensor([6, 4, 3, 5]).repeat(size)[:size]
    return torch.arange(TOKENS) < lengths[:, None]


def padded_texts(size: int) -> dict[str, Tensor]:
    real = _is_real(size)
    tokens = _tokens(size).masked_fill(~real, 0)
    return {"input_ids": tokens, "attention_mask": real.long(), "labels": torch.randint(CLASSES, (size,))}


def texts(size: int) -> dict[str, Tensor]:
    tokens = _tokens(size)
    return {"input_ids": tokens, "labels": tokens.clone()}


def texts_padded_on_the_left(size: int) -> dict[str, Tensor]:
    real = _is_real(size).flip(1)
    tokens = _tokens(size).masked_fill(~real, 0)
    return {"input_ids": tokens, "attention_mask": real.long(), "labels": tokens.masked_fill(~real, -100)}


def padded_sequences(size: int) -> dict[str, Tensor]:
    real = _is_real(size)
    tokens = _tokens(size).masked_fill(~real, 0)
    return {"tokens": tokens, "padding": ~real, "label": torch.randint(CLASSES, (size,))}


# How a representation becomes rows, by hand.


def rows_of_positions(hidden: Tensor, batch: Any) -> Tensor:
    return hidden.reshape(-1, hidden.shape[-1])


def rows_of_pixels(hidden: Tensor, batch: Any) -> Tensor:
    return hidden.movedim(1, -1).reshape(-1, hidden.shape[1])


def rows_of_attention_mask(hidden: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return hidden.reshape(-1, hidden.shape[-1])[batch["attention_mask"].flatten() == 1]


def rows_of_padding(hidden: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return hidden.reshape(-1, hidden.shape[-1])[~batch["padding"].flatten()]


def rows_of_padding_sequences_first(hidden: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return hidden.reshape(-1, hidden.shape[-1])[~batch["padding"].T.flatten()]


@dataclass(frozen=True)
class Network:
    """A network, a batch for it of some size, and what a monitor must find there.

    `blocks` are those that one would name, in order; `rows` makes samples of a representation and its batch, by hand;
    `segments` are the lengths of the parts into which changes of shape split the blocks.
    """

    make: Callable[..., Task]
    batch: Callable[[int], Any]
    blocks: tuple[str, ...]
    rows: Callable[[Tensor, Any], Tensor]
    segments: tuple[int, ...] = ()
    layout: Layout | None = None
    hidden_states: bool = False

    @property
    def layers(self) -> str:
        """A choice of exactly the blocks."""
        return "re:" + "|".join(name.replace(".", r"\.") for name in self.blocks)


def _numbered(prefix: str, number: int = 3) -> tuple[str, ...]:
    return tuple(f"{prefix}.{index}" for index in range(number))


_CONVNEXT = (
    *_numbered("model.convnext.encoder.stages.0.layers", 2),
    *_numbered("model.convnext.encoder.stages.1.layers", 3),
)
_RESNET = ("model.layer1.0", "model.layer1.1", "model.layer2.1", "model.layer3.1", "model.layer4.1")

NETWORKS = {
    "vit": Network(vit, images_by_name, _numbered("model.vit.layers"), rows_of_positions, hidden_states=True),
    "bert": Network(
        bert, padded_texts, _numbered("model.bert.encoder.layer"), rows_of_attention_mask, hidden_states=True
    ),
    "gpt2": Network(gpt2, texts, _numbered("model.transformer.h"), rows_of_positions, hidden_states=True),
    "llama": Network(
        llama,
        texts_padded_on_the_left,
        _numbered("model.model.layers"),
        rows_of_attention_mask,
        hidden_states=True,
    ),
    "encoder": Network(
        partial(EncoderTask, batch_first=True), padded_sequences, _numbered("encoder.layers"), rows_of_padding
    ),
    "encoder_of_sequences_first": Network(
        partial(EncoderTask, batch_first=False),
        padded_sequences,
        _numbered("encoder.layers"),
        rows_of_padding_sequences_first,
        layout=Layout("tnc"),
    ),
    "resnet": Network(resnet, images, _RESNET, rows_of_pixels, segments=(2, 1, 1, 1)),
    "convnext": Network(convnext, images_by_name, _CONVNEXT, rows_of_pixels, segments=(2, 3)),
}
