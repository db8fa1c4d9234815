"""The search for a better rule: every idea that was tried, on validation data of four seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from examples.paper.statistics import paired
from examples.paper.study import RUNS, Rows, Study, layer_rows
from examples.paper.training import Data, Setting, data_of, network_of, read, stop_step, training, trajectory
from lightning_leaky import LeakyResNet, adaptive_step_sizes, equidistant_step_sizes, irregular_step_sizes
from lightning_leaky.functional import (
    cap_step_sizes,
    cost_of_identity,
    hamiltonian,
    hamiltonian_spread,
    kinetic_energy,
    normalise_step_sizes,
    relative_distances,
    velocity,
)
from lightning_leaky.refining import discretisation_errors

HALF = {3.0: 5, 7.0: 10}
"""Layers of an adaptive net at each L̃; equidistant ones have twice as many too."""
WEIGHT_DECAYS = (0.003, 0.03, 0.3)
SEEDS = (100, 101, 102, 103)


@dataclass(frozen=True)
class RuleSetting(Setting):
    """A run with an idea of this page in place of a rule of the package.

    Args:
        idea: Name from `IDEAS`.
    """

    idea: str = "equidistant"


@dataclass(frozen=True)
class Path:
    """What a rule may look at: the whole path on the training points, in float64."""

    representations: Tensor
    momenta: Tensor
    weights: Tensor
    step_sizes: Tensor
    effective_depth: float

    @property
    def before(self) -> Tensor:
        """A_0, …, A_{L−1}."""
        return self.representations[:-1]

    @property
    def velocities(self) -> Tensor:
        """V_1, …, V_L."""
        return velocity(self.before, self.representations[1:], self.step_sizes)

    @property
    def speeds(self) -> Tensor:
        """‖V_l‖_{K+γ}/L̃."""
        kinetic = kinetic_energy(self.before, self.velocities, self.effective_depth)
        return (2 * self.effective_depth * kinetic).sqrt() / self.effective_depth


def _norms(matrices: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.matrix_norm(matrices)
    return norms


def _raised(numbers: Tensor, floor: float = 0.1) -> Tensor:
    """Numbers with a floor relative to their mean: what vanishes somewhere would take the whole path there."""
    return numbers + floor * numbers.mean()


def _curvature(path: Path) -> Tensor:
    """Root of ‖∂_pV‖: what equalises Euler's local errors."""
    bend = _norms(path.velocities.diff(dim=0)) / path.step_sizes[1:]
    return _raised(torch.cat([bend[:1], bend])).sqrt()


def _relative_curvature(path: Path) -> Tensor:
    """What equalises the errors by which `LeakyResNet.refine` splits and merges layers."""
    return _raised(discretisation_errors(path.representations, path.step_sizes).sqrt() / path.step_sizes)


def _switches(path: Path) -> Tensor:
    """Share of the activations that switch on or off in a layer: where none does two layers could be one."""
    active = path.representations > 0
    return _raised((active[1:] != active[:-1]).double().mean((1, 2)) / path.step_sizes)


def _change_of_weights(path: Path) -> Tensor:
    """‖∂_pW‖: each step holds W constant."""
    distances = (path.step_sizes[1:] + path.step_sizes[:-1]) / 2
    rates = _norms(path.weights.diff(dim=0)) / distances
    return _raised((torch.cat([rates[:1], rates]) + torch.cat([rates, rates[-1:]])) / 2)


def _goal(path: Path) -> Tensor:
    """Root of |⟨B, ∂_pV⟩|: Euler's local errors as the cost feels them."""
    products = (path.momenta[1:] * path.velocities.diff(dim=0)).sum((1, 2)).abs() / path.step_sizes[1:]
    return _raised(torch.cat([products[:1], products])).sqrt()


def _hamiltonian_change(path: Path) -> Tensor:
    """|∂_pH|, which an exact optimum would not have."""
    energies = hamiltonian(path.before, path.momenta, path.effective_depth)
    return _raised(torch.gradient(energies)[0].abs() / path.step_sizes)


def _phase_space(path: Path) -> Tensor:
    """Relative distance of A and B together: the momentum too moves on two time scales."""
    of_momenta = _norms(path.momenta.diff(dim=0)) / _norms(path.momenta[1:]) / path.step_sizes[1:]
    of_momenta = torch.cat([of_momenta[:1], of_momenta])
    return (relative_distances(path.representations, path.step_sizes).square() + of_momenta.square()).sqrt()


def _equaliser(sign: float, path: Path) -> Tensor:
    """Log step-sizes moved along H_l less its mean, which is −∂(objective/λ)/∂ρ_l at a critical point.

    The mesh at which the objective is stationary has the same H in all layers. Down (+1) or up (−1) the objective.
    """
    energies = hamiltonian(path.before, path.momenta, path.effective_depth)
    excess = (energies - (path.step_sizes * energies).sum()) / energies.abs().mean()
    return 1 / (path.step_sizes * (sign * excess).clamp(-0.5, 0.5).exp())


def _graded(num_layers: int, growth: float) -> Tensor:
    """Each step longer than the one before by the same factor."""
    return normalise_step_sizes(growth ** torch.arange(num_layers, dtype=torch.float64))


def _change(name: str, strength: float = 1.0) -> Callable[[Path], Tensor]:
    return lambda path: CHANGES[name](path) ** strength


CHANGES: dict[str, Callable[[Path], Tensor]] = {
    "relative distance": lambda path: relative_distances(path.representations, path.step_sizes),
    "relative distance of features": lambda path: relative_distances(path.representations.relu(), path.step_sizes),
    "distance": lambda path: _norms(path.velocities),
    "kinetic energy": lambda path: path.speeds + 0.1,
    "potential energy": lambda path: cost_of_identity(path.before).sqrt(),
    "curvature": _curvature,
    "relative curvature": _relative_curvature,
    "curvature felt by the cost": _goal,
    "change of H": _hamiltonian_change,
    "phase space": _phase_space,
    "switches": _switches,
    "switches and relative distance": lambda path: (
        _switches(path) * relative_distances(path.representations, path.step_sizes)
    ).sqrt(),
    "change of weights": _change_of_weights,
    "kinetic energy and change of weights": lambda path: (
        CHANGES["kinetic energy"](path) * _change_of_weights(path)
    ).sqrt(),
    "switches and change of weights": lambda path: (_switches(path) * _change_of_weights(path)).sqrt(),
    "equal H, objective down": partial(_equaliser, 1.0),
    "equal H, objective up": partial(_equaliser, -1.0),
}
"""c_l of each idea; step-sizes become inverse to it."""

ADAPTIVE = {
    **{name: _change(name) for name in CHANGES},
    **{
        f"{name}, strength {strength:g}": _change(name, strength)
        for name in ("relative distance", "kinetic energy", "switches")
        for strength in (0.5, 1.5)
    },
}
BOUNDED = (
    "relative distance",
    "kinetic energy",
    "kinetic energy, strength 0.5",
    "phase space",
    "switches",
    "switches and relative distance",
    "kinetic energy and change of weights",
    "switches and change of weights",
)
"""Ideas that are also tried with the bound."""

FIXED: dict[str, Callable[[int], Tensor]] = {
    "equidistant": equidistant_step_sizes,
    "twice the layers": equidistant_step_sizes,
    **{f"irregular, a = {a:g}": partial(irregular_step_sizes, unevenness=a) for a in (0.3, 0.6, 0.9)},
    **{f"graded, q = {q:g}": partial(_graded, growth=q) for q in (0.77, 1.3, 1.6)},
    "last step three times the others": lambda num_layers: normalise_step_sizes(
        torch.tensor([1.0] * (num_layers - 1) + [3.0])
    ),
}


def settings(reduced: bool) -> Sequence[RuleSetting]:
    """Every idea without a bound on leaks; those that reach beyond ρ_l L̃ = 1 with it too."""
    seeds, depths, decays = (SEEDS, HALF, WEIGHT_DECAYS) if not reduced else (SEEDS[:2], (3.0,), (0.1,))
    sizes = {"num_steps": 3000, "width": 50} if not reduced else {"num_steps": 20, "width": 16, "num_points": 100}
    return [
        RuleSetting(
            seed,
            depth,
            HALF[depth] * (2 if idea == "twice the layers" else 1),
            decay,
            dims="30-6-3-30",
            teacher="resnet",
            idea=idea,
            max_leak=leak,
            **sizes,  # type: ignore[arg-type]
        )
        for seed in seeds
        for depth in depths
        for decay in decays
        for leak in (0.0, 1.0)
        for idea in (*FIXED, *ADAPTIVE)
        if leak == 0 or idea in BOUNDED
    ]


def measure(setting: RuleSetting) -> dict[str, Rows]:
    """Train with an idea; validation error, spread of H and how critical the net is."""
    data = data_of(setting)
    network = network_of(setting)
    if setting.idea in FIXED:
        network.set_step_sizes(FIXED[setting.idea](setting.num_layers))
    for step, _ in training(setting, data, network):
        if setting.idea in ADAPTIVE and step % setting.every_n_steps == 0 and step <= stop_step(setting):
            _adapt(setting, data, network)
    trained = read(network, data, setting.weight_decay)
    row = {
        # Ideas are compared on validation data only.
        **{name: error for name, error in trained.errors.items() if name != "test_error"},
        "spread": float(hamiltonian_spread(trained.hamiltonians)),
        "criticality_residual": float(trained.residuals.median()),
        "largest_leak": float(network.step_sizes.max() * setting.effective_depth),
    }
    layers = {"step_size": network.step_sizes, "hamiltonian": trained.hamiltonians}
    return {RUNS: [row], "layers": layer_rows(layers)}


def _adapt(setting: RuleSetting, data: Data, network: LeakyResNet) -> None:
    """What `StepSizeHook` does, with whatever an idea wants to look at."""
    rho = normalise_step_sizes(network.step_sizes)
    representations, momenta = trajectory(network, data, setting.weight_decay)
    weights = network.weights().detach().double()
    path = Path(representations.double(), momenta.double(), weights, rho, setting.effective_depth)
    adapted = adaptive_step_sizes(rho, ADAPTIVE[setting.idea](path), setting.damping)
    network.set_step_sizes(
        cap_step_sizes(adapted, setting.max_leak / setting.effective_depth) if setting.max_leak else adapted
    )


def comparison(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """A table for each L̃: by how much an idea misses the goal, twice as many equidistant layers, at each λ."""
    runs = tables[RUNS]
    return {f"rules_{depth:g}": _misses(of_depth) for depth, of_depth in runs.groupby("effective_depth")}


def _misses(runs: pd.DataFrame) -> pd.DataFrame:
    goal, rows = runs[runs["idea"] == "twice the layers"], []
    for (idea, leak), group in runs.groupby(["idea", "max_leak"], sort=False):
        row = {"idea": idea, "bound on ρL̃": f"{leak:g}" if leak else "–"}
        for decay, of_decay in group.groupby("weight_decay"):
            for value, label, form, unit in (
                ("val_error", "error", "{:+.1f} ± {:.1f}", 1e4),
                ("spread", "spread", "{:+.2f} ± {:.2f}", 1.0),
            ):
                _, mean, half = paired(of_decay, goal, ["seed", "weight_decay"], value)
                row[f"{label}, λ = {decay:g}"] = form.format(unit * mean, unit * half)
        rows.append(row)
    return pd.DataFrame(rows)


STUDY = Study("rules", settings, measure, figures=lambda tables: {}, tables=comparison)
