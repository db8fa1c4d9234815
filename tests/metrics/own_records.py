"""Records of a user's own, at the top of a module, as an import path and the processes of a test need them."""

import torch
from torch import Tensor

from lightning_leaky.metrics import Quantity, Summary, Sums


def effective_rank_of(sums: Sums) -> Tensor:
    shares = sums.singular_values / sums.singular_values.sum(-1, keepdim=True)
    return torch.special.entr(shares).sum(-1).exp()


def least(values: Tensor, step_sizes: Tensor, effective_depth: float) -> Tensor:
    return values.amin()


def squares(previous: Tensor, current: Tensor) -> Tensor:
    """Squared sizes of what came and of what left."""
    return torch.stack([previous.square().sum(), current.square().sum()])


def growth_of(sums: Sums) -> Tensor:
    return sums.own[:, 1] - sums.own[:, 0]


EFFECTIVE_RANK = Quantity(
    "effective_rank",
    effective_rank_of,
    "spectrum",
    says="Exponential of the entropy of the singular values.",
    summaries=(Summary("min", "Least over the layers.", least),),
)
GROWTH = Quantity("growth", growth_of, "own", squares, title="growth of squares")
OWN = (EFFECTIVE_RANK, GROWTH)
