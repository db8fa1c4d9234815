"""The smallest residual block, and a network of some, as others write them."""

import torch
from torch import Tensor, nn

from lightning_leaky.functional import cost_of_identity


class Block(nn.Module):
    """h + tanh(W h)."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.linear(hidden).tanh()


class Net(nn.Module):
    """Three blocks and a head."""

    def __init__(self, block: type[nn.Module] = Block) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.head = nn.Sequential(*(block() for _ in range(3))), nn.Linear(6, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.encoder(inputs))


def linear(rows: Tensor) -> Tensor:
    """The features of blocks without a leak, [A, 1]."""
    return torch.cat([rows, torch.ones_like(rows[..., :1])], dim=-1)


def effective_dimension(rows: Tensor) -> Tensor:
    """The cost of identity that is read of blocks without a leak."""
    return cost_of_identity(rows, features=linear(rows.double()))
