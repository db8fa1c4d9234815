"""Networks of blocks, each h + f(h), between a first and a last map, as people write them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Attention of several heads."""

    def __init__(self, width: int, num_heads: int, is_causal: bool) -> None:
        super().__init__()
        self.num_heads, self.is_causal = num_heads, is_causal
        self.inputs, self.outputs = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return what is added, shape (batch, tokens, width)."""
        queries, keys, values = self.inputs(hidden).unflatten(-1, (3, self.num_heads, -1)).movedim(1, 3).unbind(1)
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=self.is_causal)
        added: Tensor = self.outputs(mixed.transpose(1, 2).flatten(2))
        return added


def feed_forward(width: int, hidden: int) -> nn.Sequential:
    """Two linear maps, GELU in between."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class TransformerBlock(nn.Module):
    """A pre-norm block."""

    def __init__(self, width: int, is_causal: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention, self.mlp = Attention(width, 4, is_causal), feed_forward(width, 4 * width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the next representation."""
        hidden = hidden + self.attention(self.norms[0](hidden))
        following: Tensor = hidden + self.mlp(self.norms[1](hidden))
        return following


class MixerBlock(nn.Module):
    """Maps over tokens, then over channels."""

    def __init__(self, width: int, num_tokens: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.tokens, self.channels = feed_forward(num_tokens, 2 * num_tokens), feed_forward(width, 2 * width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the next representation."""
        hidden = hidden + self.tokens(self.norms[0](hidden).mT).mT
        following: Tensor = hidden + self.channels(self.norms[1](hidden))
        return following


class ConvolutionBlock(nn.Module):
    """A basic block of a ResNet."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the next representation."""
        return F.relu(hidden + self.branch(hidden))


class DenseBlock(nn.Module):
    """A block of a residual net for tables."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.LayerNorm(width), *feed_forward(width, 2 * width))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the next representation."""
        following: Tensor = hidden + self.branch(hidden)
        return following


class Network(nn.Module):
    """A first map, blocks and a last map.

    Args:
        first: From inputs to the first representation.
        blocks: What comes in between.
        last: From the last representation to outputs.
    """

    def __init__(self, first: nn.Module, blocks: list[nn.Module], last: nn.Module) -> None:
        super().__init__()
        self.first, self.blocks, self.last = first, nn.Sequential(*blocks), last

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs."""
        outputs: Tensor = self.last(self.blocks(self.first(inputs)))
        return outputs


class Characters(nn.Module):
    """Embeds characters and where they stand."""

    def __init__(self, num_characters: int, context: int, width: int) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(num_characters, width), nn.Embedding(context, width)

    def forward(self, codes: Tensor) -> Tensor:
        """Return the first representation, shape (batch, tokens, width)."""
        places: Tensor = self.places(torch.arange(codes.shape[1], device=codes.device))
        embedded: Tensor = self.characters(codes) + places
        return embedded


class Patches(nn.Module):
    """Embeds square patches of an image, and where they are."""

    def __init__(self, size: int, patch: int, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, stride=patch)
        self.places = nn.Parameter(0.02 * torch.randn((size // patch) ** 2, width))

    def forward(self, images: Tensor) -> Tensor:
        """Return the first representation, shape (batch, patches, width)."""
        embedded: Tensor = self.patches(images).flatten(2).mT + self.places
        return embedded


class Mean(nn.Module):
    """The mean over tokens, or over places of an image."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Return shape (batch, width)."""
        return hidden.mean(1) if hidden.ndim == 3 else hidden.mean((2, 3))
