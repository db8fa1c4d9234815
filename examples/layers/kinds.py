"""The kinds of network of the study: half of them to choose a score on, half to judge it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from examples.layers.networks import (
    Characters,
    ConvolutionBlock,
    DenseBlock,
    Mean,
    MixerBlock,
    Network,
    Patches,
    TransformerBlock,
)
from examples.layers.tasks import CONTEXT, Task

_SIDE, _PATCH = 14, 2
_TOKENS = (_SIDE // _PATCH) ** 2


@dataclass(frozen=True)
class Kind:
    """A kind of network.

    Args:
        task: What it learns.
        width: Width of its representations.
        num_blocks: Number of blocks.
        first: From a width to the first map.
        block: From a width to a block.
        last: From a width and a number of outputs to the last map.
        batch_size: Samples of a batch.
        num_steps: Steps of training.
        judges: Whether it judges scores, or they are chosen on it.
    """

    task: str
    width: int
    num_blocks: int
    first: Callable[[int], nn.Module]
    block: Callable[[int], nn.Module]
    last: Callable[[int, int], nn.Module]
    batch_size: int
    num_steps: int
    judges: bool

    def network(self, task: Task, num_blocks: int) -> Network:
        """Return a new network."""
        blocks = [self.block(self.width) for _ in range(num_blocks)]
        return Network(self.first(self.width), blocks, self.last(self.width, task.num_outputs))


def _characters(width: int) -> nn.Module:
    return Characters(128, CONTEXT, width)


def _patches(width: int) -> nn.Module:
    return Patches(_SIDE, _PATCH, width)


def _pixels(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def _columns(width: int) -> nn.Module:
    return nn.Linear(26, width)


def _causal(width: int) -> nn.Module:
    return TransformerBlock(width, is_causal=True)


def _both_ways(width: int) -> nn.Module:
    return TransformerBlock(width, is_causal=False)


def _mixer(width: int) -> nn.Module:
    return MixerBlock(width, _TOKENS)


def _each_token(width: int, num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_outputs))


def _mean_of_tokens(width: int, num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(width), Mean(), nn.Linear(width, num_outputs))


def _mean_of_pixels(width: int, num_outputs: int) -> nn.Module:
    return nn.Sequential(Mean(), nn.Linear(width, num_outputs))


KINDS = {
    "gpt 8": Kind("text", 64, 8, _characters, _causal, _each_token, 32, 1200, judges=False),
    "vit": Kind("mnist", 48, 12, _patches, _both_ways, _mean_of_tokens, 64, 500, judges=False),
    "mlp": Kind("table", 64, 12, _columns, DenseBlock, _each_token, 256, 1500, judges=False),
    "gpt 16": Kind("text", 64, 16, _characters, _causal, _each_token, 32, 1200, judges=True),
    "resnet": Kind("mnist", 24, 12, _pixels, ConvolutionBlock, _mean_of_pixels, 64, 400, judges=True),
    "mixer": Kind("mnist", 48, 12, _patches, _mixer, _mean_of_tokens, 64, 600, judges=True),
}
"""Kinds by name; which of them judge was fixed before anything was measured."""
