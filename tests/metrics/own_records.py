"""Records of a user's own, at the top of a module, as an import path and the processes of a test need them."""

import torch
from torch import Tensor

from lightning_leaky.metrics import Quantity, Summary, Sums


def effective_rank_of(sums: Sums) -> Tensor:
    shares = sums.singular_values / sums.singular_values.sum(-1, keepdim=True)
    return torch.special.entr(shares).sum(-1).exp()


def least(values: Tensor, step_sizes: Tensor, effective_depth: float) -> Tensor:
    return values.amin()


def similarities(previous: Tensor, current: Tensor) -> Tensor:
    """Sum of the cosines between what each sample was and became, and how many samples there are."""
    cosines = torch.cosine_similarity(previous, current, dim=-1)
    return torch.stack([cosines.sum(), cosines.new_tensor(len(cosines))])


def block_influence_of(sums: Sums) -> Tensor:
    return 1 - sums.own[:, 0] / sums.own[:, 1]


EFFECTIVE_RANK = Quantity(
    "effective_rank",
    effective_rank_of,
    "spectrum",
    says="Exponential of the entropy of the singular values.",
    summaries=(Summary("min", "Least over the layers.", least),),
)
BLOCK_INFLUENCE = Quantity("block_influence", block_influence_of, "own", similarities, title="block influence")
OWN = (EFFECTIVE_RANK, BLOCK_INFLUENCE)
