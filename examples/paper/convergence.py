"""Convergence of the adaptive iteration: distance to its fixed point over training, the guards, the overhead."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch

from examples.paper.convergence_figures import figures, tables
from examples.paper.frozen import PathOf, distance_to_fixed_point, eigenvalues, frozen_path, frozen_weights, iterate
from examples.paper.study import RUNS, Rows, Study
from examples.paper.training import Data, Setting, data_of, errors, network_of, stop_step, training, trajectory
from lightning_leaky import LeakyResNet
from lightning_leaky.functional import hamiltonian, hamiltonian_spread

DEPTHS = (3.0, 7.0)
DAMPINGS = (0.05, 0.1, 0.3, 1.0)
PERIODS = (1, 10, 100)
GUARDED = ((0.1, 1.0), (1, 10))
"""Dampings and periods that are also run with the bound ρ_l L̃ ≤ 1."""
BATCH_SIZES = (0, 100)
NUM_RECORDS = 30
"""Steps at which a run is looked at, spaced evenly in log(step)."""
FROZEN = {"weights": frozen_weights, "path": frozen_path}
FROZEN_ITERATIONS = (*range(11), 12, 15, 20, 25, 30, 35, 40, 50, 60, 80, 100, *range(150, 201, 10))
FROZEN_POINTS = 500
RULES_TIMED = ("relative_distance", "switches")
ROUNDS = 31
STEPS_A_ROUND = 200


@dataclass(frozen=True)
class Iteration(Setting):
    """One training run, or one measurement of time.

    Args:
        batch_size: Points of a batch; 0 for all.
        what: ``"convergence"`` or ``"overhead"``.
    """

    batch_size: int = 0
    what: str = "convergence"


def settings(reduced: bool) -> Sequence[Iteration]:
    """Without adaptation, every damping and period without the bound, some with it; all of one seed before the next.

    The overhead comes last. What else runs on the machine disturbs it: its sides are measured in turn, and the
    quartiles of the rounds' ratios stand beside the median.
    """
    shape: dict[str, Any] = {"dims": "30-6-3-30", "teacher": "resnet", "width": 50, "num_steps": 2000}
    if reduced:
        shape |= {"width": 20, "num_steps": 60, "num_points": 300}

    def one(seed: int, depth: float, batch_size: int, **kwargs: Any) -> Iteration:
        layers = 6 if reduced else 10
        return Iteration(seed, depth, layers, weight_decay=0.1, **shape, batch_size=batch_size, **kwargs)

    schemes: list[dict[str, Any]] = [{}]
    for damping, period in product(GUARDED[0] if reduced else DAMPINGS, PERIODS):
        rule = {"scheme": "relative_distance", "damping": damping, "every_n_steps": period}
        schemes += [rule, {**rule, "max_leak": 1.0}] if damping in GUARDED[0] and period in GUARDED[1] else [rule]
    seeds, depths = (range(2), (5.0,)) if reduced else (range(5), DEPTHS)
    runs = [one(*place, **scheme) for place in product(seeds, depths, BATCH_SIZES) for scheme in schemes]
    return [*runs, *(one(0, depths[0], size, what="overhead") for size in BATCH_SIZES)]


def measure(setting: Iteration) -> dict[str, Rows]:
    """Train and watch the mesh, or measure times."""
    data = data_of(setting)
    if setting.what == "overhead":
        return {RUNS: [{}], "overhead": _overhead(setting, data)}
    iterates, summary, network = _watched(setting, data)
    inputs = data["train"][0]
    found = errors(network, data) | {"spread": _spread_of_hamiltonian(setting, network, data)} | summary
    measured = {RUNS: [found], "iterates": iterates}
    if setting.scheme == "equidistant" and not setting.batch_size:
        path_ofs = {name: freeze(network, inputs[:FROZEN_POINTS]) for name, freeze in FROZEN.items()}
        for table, read in (("frozen", _frozen), ("eigenvalues", _eigenvalues)):
            measured[table] = [
                row for name, path_of in path_ofs.items() for row in read(name, path_of, setting.num_layers)
            ]
    return measured


def _watched(setting: Iteration, data: Data) -> tuple[Rows, dict[str, Any], LeakyResNet]:
    """Distances and meshes over training, how often which guard acted, and the network.

    A step-size counts as at the bound where ``ρ_l L̃ ≥ 1``: of a run without the bound, where it would have acted. An
    adaptation that left all step-sizes as they were was refused.
    """
    network = network_of(setting)
    before = network.step_sizes.clone()
    stop = stop_step(setting)
    records = {*np.geomspace(1, setting.num_steps, NUM_RECORDS).round().astype(int).tolist(), stop}
    rows: Rows = []
    num_adapted, num_bound, change = 0, 0, 0.0
    for step, _ in training(setting, data, network, setting.batch_size):
        now = network.step_sizes
        if not torch.equal(now, before):
            num_adapted += 1
            num_bound += bool(now.max() * setting.effective_depth >= 1 - 1e-5)
            change = float((now - before).abs().sum())
            before = now.clone()
        if step in records:
            mesh = {f"step_size_{layer}": value for layer, value in enumerate(now.tolist(), start=1)}
            rows.append({"step": step, "distance": _distance(network, data), "change": change, **mesh})
    due = len(range(1, stop + 1, setting.every_n_steps)) if setting.scheme != "equidistant" else 0
    distances = {row["step"]: row["distance"] for row in rows}
    summary = {
        "stop": stop,
        "distance_at_stop": distances[stop],
        "final_distance": distances[setting.num_steps],
        "adaptations": num_adapted,
        "at_bound": num_bound,
        "refused": due - num_adapted,
    }
    return rows, summary, network


@torch.no_grad()
def _distance(network: LeakyResNet, data: Data) -> float:
    return distance_to_fixed_point(network.representations(data["train"][0]))


def _spread_of_hamiltonian(setting: Iteration, network: LeakyResNet, data: Data) -> float:
    """``(max_l H_l − min_l H_l)/|median_l H_l|``."""
    path, momenta = trajectory(copy.deepcopy(network).double(), data, setting.weight_decay)
    found = hamiltonian(path[:-1], momenta, setting.effective_depth)
    return float(hamiltonian_spread(found) / found.median().abs())


# The iteration by itself.


def _frozen(name: str, path_of: PathOf, num_layers: int) -> Rows:
    rows = []
    for damping, size in product(DAMPINGS, BATCH_SIZES):
        distances = iterate(path_of, num_layers, damping, FROZEN_ITERATIONS[-1], size)
        key = {"frozen": name, "damping": damping, "batch_size": size}
        rows += [{**key, "iteration": number, "distance": distances[number]} for number in FROZEN_ITERATIONS]
    return rows


def _eigenvalues(name: str, path_of: PathOf, num_layers: int) -> Rows:
    found = eigenvalues(path_of, num_layers)
    return [{"frozen": name, "real": float(value.real), "imaginary": float(value.imag)} for value in found]


# The overhead.


def _overhead(setting: Iteration, data: Data) -> Rows:
    """Seconds a step with the hook, of each rule at every period, over those without, in turn, round by round."""
    adaptive = [replace(setting, scheme=rule, every_n_steps=period) for rule, period in product(RULES_TIMED, PERIODS)]
    rounds = [[_seconds(side, data) for side in (setting, *adaptive)] for _ in range(1 + ROUNDS)][1:]
    without, *seconds = zip(*rounds, strict=True)
    rows = []
    for side, times in zip(adaptive, seconds, strict=True):
        ratios = [with_hook / alone for with_hook, alone in zip(times, without, strict=True)]
        row = {"rule": side.scheme, "every_n_steps": side.every_n_steps}
        row |= dict(zip(("lower_quartile", "ratio", "upper_quartile"), quantiles(ratios), strict=True))
        rows.append({**row, "rounds": ROUNDS, "milliseconds_without": 1e3 * median(without)})
    return rows


def _seconds(setting: Iteration, data: Data) -> float:
    """Time of a step, while the hook adapts; the first one warms up."""
    steps = training(setting, data, network_of(setting), setting.batch_size)
    steps = islice(steps, min(STEPS_A_ROUND, stop_step(setting)))
    next(steps)
    start = time.perf_counter()
    count = sum(1 for _ in steps)
    return (time.perf_counter() - start) / count


STUDY = Study("convergence", settings, measure, figures, tables)
