"""Cost of identity and kinetic energy by plain code in float64, which calls nothing of the package."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

GAMMA_REL = 1e-3


class Energies(NamedTuple):
    """Both quantities of one layer."""

    cost_of_identity: Tensor
    kinetic_energy: Tensor


class Layer(NamedTuple):
    """A_{l−1} and A_l, each of shape (N, w), with ρ_l and L̃."""

    previous: Tensor
    current: Tensor
    step_size: float
    effective_depth: float

    def cpu(self) -> Layer:
        """The same in the memory of the CPU, whose singular values are the reference for every device."""
        return self._replace(previous=self.previous.cpu(), current=self.current.cpu())

    def matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return A, the velocity V and the features σ(A) with their constant column, in float64."""
        A, after = self.previous.double(), self.current.double()
        return A, (after - A) / self.step_size, torch.cat([A.relu(), torch.ones_like(A[:, :1])], dim=1)


def by_svd(layer: Layer) -> Energies:
    """The reference: singular vectors of σ(A), never its square, and what is left of a matrix outside of them."""
    A, V, sigma = layer.matrices()
    is_wide = sigma.shape[0] < sigma.shape[1]  # of tall matrices LAPACK is several times faster
    left, values, right = torch.linalg.svd(sigma.mT if is_wide else sigma, full_matrices=False)
    vectors = right.mT if is_wide else left
    gamma = GAMMA_REL * values[0] ** 2

    def k_square(M: Tensor) -> Tensor:
        inside = vectors.mT @ M
        outside = M - vectors @ inside
        square: Tensor = (inside.square().sum(1) / (values**2 + gamma)).sum() + outside.square().sum() / gamma
        return square

    return Energies(k_square(A), k_square(V) / (2 * layer.effective_depth))


def by_pseudo_inverse(layer: Layer) -> Energies:
    """The definition as it stands: the pseudo-inverse of the N × N matrix K + γI."""
    A, V, sigma = layer.matrices()
    K = sigma @ sigma.mT
    gamma = GAMMA_REL * torch.linalg.matrix_norm(K, ord=2)
    inverse = torch.linalg.pinv(K + gamma * torch.eye(len(K), dtype=K.dtype, device=K.device))
    return Energies((A * (inverse @ A)).sum(), (V * (inverse @ V)).sum() / (2 * layer.effective_depth))
