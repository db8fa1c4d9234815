"""Fig. 1 and Fig. 3, Theorem 4 and the stabiliser: one set of trained teachers, measured layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from examples.paper import energies_figures
from examples.paper.study import RUNS, Rows, Study, layer_rows
from examples.paper.training import Setting, Trained, data_of, read, train
from lightning_leaky.functional import (
    KNorm,
    cost_of_identity,
    features,
    kinetic_energy,
    relative_gamma,
    singular_values,
)

GAMMAS = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""γ0; 0 is the raw form."""
DEPTHS = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 14.0, 20.0)
RANKS = (1, 2, 3, 5)
NUM_SINGULAR_VALUES = 12


def settings(reduced: bool) -> Sequence[Setting]:
    """All L̃ with k* = 3, three L̃ with the other ranks, and twice the layers at the largest L̃."""
    if reduced:
        return [
            Setting(seed, depth, num_layers=8, weight_decay=0.3, num_steps=30, num_points=100, width=20)
            for seed in range(2)
            for depth in (3.0, 7.0)
        ]
    seeds = range(5)
    main = [Setting(seed, depth, num_layers=20, weight_decay=0.3) for seed in seeds for depth in DEPTHS]
    ranks = [
        Setting(seed, depth, num_layers=20, weight_decay=0.3, dims=f"30-{rank}-30")
        for seed in seeds
        for rank in RANKS
        if rank != 3
        for depth in (3.0, 7.0, 14.0)
    ]
    finer = [Setting(seed, DEPTHS[-1], num_layers=40, weight_decay=0.3) for seed in seeds]
    return [*main, *ranks, *finer]


def measure(setting: Setting) -> dict[str, Rows]:
    """Train, and read everything in float64 over the training points."""
    data = data_of(setting)
    trained = read(train(setting, data), data, setting.weight_decay)
    return {
        RUNS: [trained.errors],
        "layers": _layers(trained),
        "energies": [row for gamma_rel in GAMMAS for row in _energies(trained, gamma_rel)],
        "spectra": [*_spectra("A", trained.path), *_spectra("W", trained.network.weights().detach())],
    }


def _layers(trained: Trained) -> Rows:
    """What needs no stabiliser: Hamiltonian, residual and the sizes that Fig. 3 says are bounded."""
    rho = trained.network.step_sizes
    columns = {
        "position": rho.cumsum(0) - rho,
        "step_size": rho,
        "hamiltonian": trained.hamiltonians,
        "criticality_residual": trained.residuals,
        "representation_square": trained.before.square().sum((1, 2)),
        "momentum_square": trained.momenta.square().sum((1, 2)),
        "features_momentum_square": (trained.momenta.mT @ features(trained.before)).square().sum((1, 2)),
    }
    return layer_rows(columns)


def _energies(trained: Trained, gamma_rel: float) -> Rows:
    """What depends on γ."""
    k_norm = KNorm(gamma_rel=gamma_rel) if gamma_rel else KNorm(gamma=0.0)
    kinetic = kinetic_energy(trained.before, trained.velocities, trained.network.effective_depth, k_norm)
    gamma = relative_gamma(trained.before, gamma_rel) if gamma_rel else torch.zeros_like(kinetic)
    columns = {"gamma": gamma, "cost_of_identity": cost_of_identity(trained.before, k_norm), "kinetic_energy": kinetic}
    return [{"gamma_rel": gamma_rel, **row} for row in layer_rows(columns)]


def _spectra(matrix: str, matrices: Tensor) -> Rows:
    values = singular_values(matrices)[:, :NUM_SINGULAR_VALUES].tolist()
    return [
        {"matrix": matrix, "layer": layer, "index": index, "value": value}
        for layer, of_layer in enumerate(values, start=matrix == "W")
        for index, value in enumerate(of_layer, start=1)
    ]


STUDY = Study("energies", settings, measure, figures=energies_figures.figures, tables=energies_figures.rank_tables)
