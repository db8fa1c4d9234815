"""Fig. 2 and the discrete–continuous gap: test error, spread of H and Euler's error against L, scheme by scheme."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from examples.paper import meshes_figures
from examples.paper.continuous import Reading, gap
from examples.paper.study import RUNS, Rows, Study, layer_rows
from examples.paper.training import Setting, data_of, read, train
from lightning_leaky.functional import (
    bottleneck_rank,
    hamiltonian_spread,
    kinetic_energy,
    singular_values,
)
from lightning_leaky.models import LeakyResNet

DEPTHS = (1.0, 3.0, 7.0)
WEIGHT_DECAYS = (0.003, 0.03, 0.3)
NUM_LAYERS = (5, 10, 20)
SCHEMES = ("equidistant", "irregular", "relative_distance", "switches")
ADAPTIVE = SCHEMES[2:]
NUM_SEEDS = 10
_GAP_POINTS = 200
_NUM_SINGULAR_VALUES = 12
_NUM_PATHS = 30


def settings(reduced: bool) -> Sequence[Setting]:
    """Every scheme at every L̃, λ and L, and both rules with the bound where they reach it and L > L̃."""
    if reduced:
        small = {"num_steps": 30, "num_points": 100, "width": 16}
        return [
            *(
                _setting(seed, 3.0, 0.1, size, scheme, **small)
                for seed in (0, 1)
                for size in (4, 8)
                for scheme in SCHEMES
            ),
            *(_setting(seed, 3.0, 0.1, 4, rule, max_leak=1.0, **small) for seed in (0, 1) for rule in ADAPTIVE),
        ]
    sizes = {"num_steps": 3000, "width": 50}
    # All of one seed before the next, so that what there is is always paired.
    return [
        *(
            _setting(seed, depth, decay, num_layers, scheme, **sizes)
            for seed in range(NUM_SEEDS)
            for depth in DEPTHS
            for decay in WEIGHT_DECAYS
            for num_layers in NUM_LAYERS
            for scheme in SCHEMES
        ),
        *(
            _setting(seed, 7.0, decay, 10, rule, max_leak=1.0, **sizes)
            for seed in range(NUM_SEEDS)
            for decay in WEIGHT_DECAYS
            for rule in ADAPTIVE
        ),
    ]


def _setting(seed: int, depth: float, decay: float, num_layers: int, scheme: str, **others: Any) -> Setting:
    # Without a bound steps may leak more than everything, as the paper's: with L = 5 < L̃ = 7 they must.
    return Setting(seed, depth, num_layers, decay, dims="30-6-3-30", teacher="resnet", scheme=scheme, **others)


def measure(setting: Setting) -> dict[str, Rows]:
    """Train; measure errors, the spread of H, how critical the net is, and how far from its continuous limit."""
    data = data_of(setting)
    trained = read(train(setting, data), data, setting.weight_decay)
    energies, residuals = trained.hamiltonians, trained.residuals
    row = {
        **trained.errors,
        "spread": float(hamiltonian_spread(energies)),
        "rank_estimate": float(bottleneck_rank(energies, setting.effective_depth).median()),
        "criticality_residual": float(residuals.median()),
        **_gaps(trained.network, data["test"][0][:_GAP_POINTS]),
    }
    layers = {
        "step_size": trained.network.step_sizes,
        "hamiltonian": energies,
        "criticality_residual": residuals,
        "kinetic_energy": kinetic_energy(trained.before, trained.velocities, setting.effective_depth),
    }
    return {RUNS: [row], "layers": layer_rows(layers), **_pictures(setting, trained.network, trained.path)}


def _gaps(network: LeakyResNet, inputs: Tensor) -> dict[str, float]:
    """Euler's errors against an adaptive solver's path, with the weights constant on each step and linear in p."""
    readings: tuple[Reading, ...] = get_args(Reading)
    return {
        f"{name}_{reading}": value
        for reading in readings
        for name, value in gap(network, inputs, reading).items()
        if isinstance(value, float)
    }


def _pictures(setting: Setting, network: LeakyResNet, path: Tensor) -> dict[str, Rows]:
    """Spectra (Fig. 2b) and the path in its two leading directions (Fig. 2c), of the first seed only."""
    if setting.seed > 0:
        return {}
    spectra = [
        {"matrix": name, "layer": layer, "index": index, "value": value}
        for name, matrices in (("A", path), ("W", network.weights().detach()))
        for layer, values in enumerate(singular_values(matrices)[:, :_NUM_SINGULAR_VALUES].tolist())
        for index, value in enumerate(values, start=1)
    ]
    directions = torch.linalg.svd(path.flatten(0, 1), full_matrices=False).Vh[:2]
    samples = (path[:, :_NUM_PATHS] @ directions.mT).tolist()
    paths = [
        {"layer": layer, "sample": sample, "x": x, "y": y}
        for layer, points in enumerate(samples)
        for sample, (x, y) in enumerate(points)
    ]
    return {"spectra": spectra, "paths": paths}


STUDY = Study("meshes", settings, measure, meshes_figures.figures, meshes_figures.tables_for_readers)
